"""The operation ledger: counts what a spiking network does, per sample and timestep, while it runs.

Rules. An analogue input meets its weights by multiply-accumulates, all of them, zeros included; a weight that would
reach outside the image is not counted. A spike (or an input event) costs one accumulate for every synapse it meets.
Average pooling passes each spike on to the layer behind it, as hardware does that folds the pool's constant into
the weights, so a pooled spike costs the fan-out at its pooled position. Biases, thresholds, potentials and learnt
scales per timestep belong to the neuron update, one per neuron and timestep.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bench_core.snn.layers import AveragePool, Flatten, Synapse
from bench_core.snn.network import SpikingNetwork
from bench_core.snn.neurons import SpikingNeuron
from bench_core.snn.normalization import TemporalScale

__all__ = ["OperationLedger", "UncountableLayerError"]


class UncountableLayerError(Exception):
    """A layer that the ledger has no rule for; energies of the workload are n/a."""


class OperationLedger:
    """Counts operations of one network on inputs of one shape.

    Args:
        network: the network that will run.
        input_shape: (C, H, W) of a frame.

    Raises:
        UncountableLayerError: naming the layer.

    Attributes:
        macs_once: multiply-accumulates spent once per sample, under constant input; else 0.
        neuron_updates: per sample and timestep.
    """

    def __init__(self, network: SpikingNetwork, input_shape: tuple[int, int, int]) -> None:
        self._network = network
        layers = list(network.layers)
        shapes = _shapes(network, input_shape)
        stem = layers[0]
        if not isinstance(stem, Synapse):
            raise UncountableLayerError(type(stem).__name__)
        self._input = _Synapses(stem.fan_out(shapes[0]))
        self._synapses: dict[SpikingNeuron, _Synapses] = {}
        self.neuron_updates = 0
        for index, layer in enumerate(layers):
            if isinstance(layer, SpikingNeuron):
                self._synapses[layer] = _Synapses(_fan_out_behind(layers, shapes, index), layer.amplitude)
                self.neuron_updates += shapes[index].numel()
            elif not isinstance(layer, AveragePool | Flatten | Synapse | TemporalScale):
                raise UncountableLayerError(type(layer).__name__)
            elif index and isinstance(layer, Synapse) and not _fed_by_spikes(layers, index):
                raise UncountableLayerError("a Synapse that isn't fed by spikes")
        self.macs_once = int(self._input.fan_out.sum()) if network.constant_input else 0
        self._counted: list[torch.Tensor] = []

    @contextmanager
    def counting(self) -> Iterator[Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]]:
        """Count what the network does inside the block.

        Yields a function that, given the network's input, returns accumulates and spikes since its last call, int64
        [B, T] each.
        """
        hooks = [neuron.register_forward_hook(self._count) for neuron in self._synapses]
        try:
            yield self._collect
        finally:
            for hook in hooks:
                hook.remove()
            self._counted.clear()

    def _count(self, neuron: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        assert isinstance(neuron, SpikingNeuron)
        self._counted.append(self._synapses[neuron].meet(output))

    def _collect(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        per_layer = len(self._synapses)
        folds = [
            torch.stack(self._counted[start : start + per_layer]).sum(0)
            for start in range(0, len(self._counted), per_layer)
        ]
        self._counted.clear()
        counts = torch.cat(folds)  # [T, B, 2]
        acs, spikes = counts[..., 0], counts[..., 1]
        if not self._network.constant_input:
            acs = acs + self._input.meet(inputs)[..., 0]  # each input event is an accumulate per synapse
        return acs.T.round().to(torch.int64), spikes.T.round().to(torch.int64)


class _Synapses:
    """The synapses behind a layer of neurons: how many each of its spikes meets.

    Args:
        fan_out: synapses behind each neuron, float64 [C, H, W] or [F].
        amplitude: what a spike carries.
    """

    def __init__(self, fan_out: torch.Tensor, amplitude: float = 1.0) -> None:
        self.fan_out = fan_out
        self._amplitude = amplitude
        self._channels_alike = fan_out.dim() == 3 and bool((fan_out == fan_out[:1]).all())
        weights = fan_out[0] if self._channels_alike else fan_out
        self._weights = torch.stack([weights.flatten(), torch.ones(weights.numel(), dtype=torch.float64)], dim=1)

    def meet(self, spikes: torch.Tensor) -> torch.Tensor:
        """Synapses met, and spikes, per timestep and sample, float64 [T, B, 2] (whole numbers, exact below 2**53).

        ``spikes`` [T, B, ...] are zeros and multiples of the amplitude.
        """
        if self._channels_alike:
            spikes = spikes.sum(2)  # the same fan-out in every channel: add channels up first
        spikes = spikes.flatten(2).to(torch.float64)
        if self._amplitude != 1.0:
            spikes = (spikes / self._amplitude).round()
        return spikes @ self._weights


def _fed_by_spikes(layers: list[nn.Module], index: int) -> bool:
    """Whether only pools lie between the layer at ``index`` and a layer of neurons before it."""
    before = index - 1
    while before > 0 and isinstance(layers[before], AveragePool | Flatten):
        before -= 1
    return isinstance(layers[before], SpikingNeuron)


def _shapes(network: SpikingNetwork, input_shape: tuple[int, int, int]) -> list[torch.Size]:
    """Shape of one sample's input to each layer, without time and batch."""
    shapes = []
    network.reset()
    parameter = next(network.parameters())
    x = torch.zeros((1, 1, *input_shape), dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad():
        for layer in network.layers:
            shapes.append(x.shape[2:])
            x = layer(x)
    network.reset()
    return shapes


def _fan_out_behind(layers: list[nn.Module], shapes: list[torch.Size], index: int) -> torch.Tensor:
    """Fan-out of a spike at each output of the neuron layer at ``index``, through pools to the next synapse."""
    behind = index + 1
    while behind < len(layers) and isinstance(layers[behind], AveragePool | Flatten):
        behind += 1
    synapse = layers[behind] if behind < len(layers) else None
    if not isinstance(synapse, Synapse):
        raise UncountableLayerError(type(synapse).__name__ if synapse else "a network that ends in neurons")
    fan_out = synapse.fan_out(shapes[behind])
    for position in range(behind - 1, index, -1):
        layer = layers[position]
        if isinstance(layer, Flatten):
            fan_out = fan_out.reshape(shapes[position])
        elif isinstance(layer, AveragePool):
            before = torch.zeros(shapes[position], dtype=torch.float64)  # a rim the pool drops meets nothing
            spread = fan_out.repeat_interleave(layer.size, 1).repeat_interleave(layer.size, 2)
            before[:, : spread.shape[1], : spread.shape[2]] = spread
            fan_out = before
    return fan_out
