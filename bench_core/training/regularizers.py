"""The regulariser interface: a loss on the layers' activity, added to the task's loss."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from bench_core.knobs import Configurable
from bench_core.snn.network import AnalogNetwork, SpikingNetwork
from bench_core.snn.neurons import SpikingNeuron

__all__ = ["LayerRecord", "Regularizer", "TrainingBatch", "layer_records"]


@dataclass(frozen=True)
class LayerRecord:
    """Input and output of one layer of neurons (or activations) in a batch.

    Attributes:
        current: its input, [T, B, ...]; for an ANN the pre-activation with T = 1.
        output: its output, [T, B, ...]; spikes (0 or 1), or activations with T = 1.
        potential: membrane potential after the reset, [T, B, ...]; None in an ANN.
        threshold: potential at which its neurons spike; None in an ANN.
    """

    current: torch.Tensor
    output: torch.Tensor
    potential: torch.Tensor | None = None
    threshold: float | None = None


@contextmanager
def layer_records(network: SpikingNetwork | AnalogNetwork, *, wanted: bool = True) -> Iterator[list[LayerRecord]]:
    """Collect a record of every layer of neurons (or activations) while the network runs inside the block.

    Clear the list before every batch; it stays empty unless records are ``wanted``. A spiking network must run all its
    timesteps in one fold.
    """
    records: list[LayerRecord] = []

    def collect(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if isinstance(module, SpikingNeuron):
            potential = None if module.potentials is None else module.potentials.float()
            spikes = output.float() / module.amplitude
            records.append(LayerRecord(inputs[0].float(), spikes, potential, module.threshold))
        else:
            records.append(LayerRecord(inputs[0].float(), output.float()))

    nodes = network.neurons() if isinstance(network, SpikingNetwork) else network.activations
    with ExitStack() as stack:
        for node in nodes if wanted else ():
            stack.callback(node.register_forward_hook(collect).remove)
            if isinstance(node, SpikingNeuron):
                node.keeps_potentials = True
                stack.callback(setattr, node, "keeps_potentials", False)
        yield records


@dataclass(frozen=True)
class TrainingBatch:
    """A batch as a regulariser sees it; floating-point tensors are float32, regardless of the network's precision.

    Attributes:
        inputs: the network's first input, float32 [B, C, H, W]; for events, the first frame.
        layers: one record per layer of neurons, input to output.
        logits: o_t [T, B, K], T = 1 for an ANN.
        labels: int64 [B].
        companion: the result of ``Regularizer.companion``, or None.
    """

    inputs: torch.Tensor
    layers: list[LayerRecord]
    logits: torch.Tensor
    labels: torch.Tensor
    companion: nn.Module | None = None


class Regularizer(Configurable, ABC):
    """Base of every regulariser that ``bench_regularizers`` returns.

    Must implement: ``name``, ``reference``, ``loss``.
    May implement: ``companion``. May set: ``knobs``.
    """

    @abstractmethod
    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        """Return the term to add, a scalar with gradient."""

    def companion(self, input_shape: tuple[int, int, int], timesteps: int) -> nn.Module | None:
        """Return a module that is trained along with the network and discarded afterwards, or None (the default)."""
        del input_shape, timesteps
        return None
