"""Spiking networks: layers in order, run folded over all timesteps or step by step, and their ANN twins."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from bench_core.snn.layers import AveragePool, GlobalAveragePool, Residual, Synapse
from bench_core.snn.neurons import SpikingNeuron
from bench_core.snn.normalization import TemporalScale
from bench_core.snn.state_rows import kept_rows, overwrite_rows

__all__ = ["AnalogNetwork", "SpikingNetwork"]


class SpikingNetwork(nn.Module):
    """A network whose first layer turns input into current and whose last gives the logits of each timestep.

    Two modes, with results that agree up to rounding: ``run`` computes all timesteps, layer by layer; ``reset``,
    ``step``, ``keep`` and ``renew`` compute one timestep at a time, drop finished samples and let new ones take their
    places.

    Args:
        layers: modules on [T, B, ...]; the first is a Synapse that reads the input.
        constant_input: the same frame is presented at every timestep, so that the first layer is evaluated once.
    """

    def __init__(self, layers: Sequence[nn.Module], *, constant_input: bool) -> None:
        """Create a network from its layers; see the class."""
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.constant_input = constant_input
        self._current: torch.Tensor | None = None  # first layer's output under constant input, [1, B, ...]
        self._holders: list[SpikingNeuron | TemporalScale] | None = None  # stateful modules, once they are fixed

    def neurons(self) -> Iterator[SpikingNeuron]:
        """Return every spiking neuron layer, in order."""
        return (module for module in self.modules() if isinstance(module, SpikingNeuron))

    def reset(self) -> None:
        """Clear all state: the next step starts new samples."""
        self._current = None
        for module in self._stateful():
            module.reset()

    def keep(self, index: torch.Tensor) -> None:
        """Continue with the samples at ``index`` [B'] only; all state is compacted."""
        if self._current is not None:
            self._current = kept_rows(self._current[0], index).unsqueeze(0)
        for module in self._stateful():
            module.keep(index)

    def renew(self, index: torch.Tensor, frames: torch.Tensor) -> None:
        """Replace samples with new ones, whose state is that before a first step. Inference only.

        Args:
            index: places in the batch, int64 [R].
            frames: their input [R, C, H, W] under constant input; ignored for events, which each ``step`` receives.
        """
        if self._current is not None:
            overwrite_rows(self._current[0], index, self.layers[0](frames.unsqueeze(0))[0])
        for module in self._stateful():
            module.renew(index)

    def step(self, frame: torch.Tensor) -> torch.Tensor:
        """Compute one timestep.

        Args:
            frame: this timestep's input [B, C, H, W]. Under constant input it is read at the first step only.

        Returns:
            o_t, the logits of this timestep alone, [B, K].
        """
        if not self.constant_input:
            return self._advance(self.layers[0](frame.unsqueeze(0)))[0]
        if self._current is None:
            self._current = self.layers[0](frame.unsqueeze(0))
        return self._advance(self._current)[0]

    def run(self, inputs: torch.Tensor, timesteps: int, *, fold: int | None = None) -> torch.Tensor:
        """Compute all timesteps of new samples.

        Args:
            inputs: [B, C, H, W] under constant input, else [T, B, C, H, W].
            timesteps: T.
            fold: timesteps computed together, default all; results agree up to rounding.

        Returns:
            o_t per timestep, [T, B, K].
        """
        self.reset()
        fold = fold or timesteps
        logits = []
        for start in range(0, timesteps, fold):
            count = min(fold, timesteps - start)
            if self.constant_input:
                if self._current is None:
                    self._current = self.layers[0](inputs.unsqueeze(0))
                current = self._current.expand(count, *self._current.shape[1:])
            else:
                current = self.layers[0](inputs[start : start + count])
            logits.append(self._advance(current))
        return torch.cat(logits)

    def _stateful(self) -> Sequence[SpikingNeuron | TemporalScale]:
        if self._holders is not None:
            return self._holders
        return [module for module in self.modules() if isinstance(module, SpikingNeuron | TemporalScale)]

    def _advance(self, current: torch.Tensor) -> torch.Tensor:
        for layer in list(self.layers)[1:]:
            current = layer(current)
        return current

    def prepare_for_inference(self) -> "SpikingNetwork":
        """Set evaluation mode, fuse normalisation and optimise the memory layout, in place; return the network.

        Afterwards spikes overwrite the currents they come from or, if those are stored, the spikes of the previous
        step; a hook that keeps the output of a synapse or a neuron must copy it.
        """
        self.eval()
        for module in list(self.modules()):
            if isinstance(module, Synapse):
                module.fuse()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        _save_memory(list(self.layers), kept=self.layers[0] if self.constant_input else None)
        self._holders = None
        self._holders = list(self._stateful())
        return self


def _save_memory(layers: Sequence[nn.Module], *, kept: nn.Module | None = None, fresh: bool = False) -> bool:
    """Let neurons overwrite a current that was just computed and has no other user, or spikes that were already read.

    In unknown layers, no neurons do so.

    Args:
        layers: in order.
        kept: a layer whose output is reused at every step.
        fresh: whether the input of the first layer was just computed and has no other user.

    Returns:
        Whether the same is true of the output of the last layer.
    """
    for before, layer, behind in zip([None, *layers], layers, [*layers[1:], None], strict=False):
        if isinstance(layer, SpikingNeuron):
            read_again = kept is not None and before is kept
            layer.spike_memory = "current" if fresh else "own" if read_again and _only_reads(behind) else "new"
            fresh = False
        elif type(layer) is nn.Sequential:  # a subclass may do anything
            fresh = _save_memory(list(layer), fresh=fresh)
        elif type(layer) is Residual:
            _save_memory(list(layer.body))
            _save_memory(list(layer.shortcut))
            fresh = True
        else:
            fresh = type(layer) is Synapse
        fresh = fresh and layer is not kept
    return fresh


def _only_reads(layer: nn.Module | None) -> bool:
    """Return whether a layer has finished with its input when it returns: it neither stores it nor passes it on."""
    if type(layer) is Residual:
        return all(_only_reads(branch[0]) for branch in (layer.body, layer.shortcut) if len(branch))
    return type(layer) in (AveragePool, GlobalAveragePool, Synapse)


class AnalogNetwork(nn.Module):
    """The ANN twin: the same layers, with activation functions in place of the spiking network's neurons.

    Args:
        layers: modules on [1, B, ...].
        activations: those modules, or parts of them, that replace the spiking network's neurons, input to output.
    """

    def __init__(self, layers: Sequence[nn.Module], activations: Sequence[nn.Module]) -> None:
        """Create a network from its layers; see the class."""
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.activations = tuple(activations)  # a tuple, so that they aren't registered twice

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map images [B, C, H, W] to logits [B, K]."""
        x = inputs.unsqueeze(0)
        for layer in self.layers:
            x = layer(x)
        return x[0]
