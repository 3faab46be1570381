"""The model interface: one definition that gives a spiking network and its ANN twin."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

from bench_core.snn.layers import Synapse
from bench_core.snn.network import AnalogNetwork, SpikingNetwork
from bench_core.snn.neurons import trained_neuron
from bench_core.snn.normalization import TemporalScale, batch_norm

__all__ = ["Model", "Parts"]


@dataclass(frozen=True)
class Parts:
    """The components of a definition; they decide whether it becomes a spiking network or its ANN twin.

    Attributes:
        node: makes the module that follows a synapse: a layer of neurons, or an activation function.
        normalization: one of ``bench_core.snn.normalization.NORMALIZATIONS``.
        timesteps: T; 1 in an ANN.
    """

    node: Callable[[], nn.Module]
    normalization: str = "bn"
    timesteps: int = 1

    def synapse(self, convolution: nn.Conv2d, *, branches: int = 1) -> list[nn.Module]:
        """Return a convolution with its normalisation; ``branches`` outputs are added before the next node."""
        norm = batch_norm(self.normalization, convolution.out_channels, branches=branches)
        layers: list[nn.Module] = [Synapse(convolution, norm)]
        return [*layers, TemporalScale(self.timesteps)] if self.normalization == "tebn" else layers


class Model(ABC):
    """Base of every model that ``bench_models`` returns: ``name``, ``reference`` and one definition, ``layers``."""

    name: ClassVar[str]
    reference: ClassVar[str]

    @abstractmethod
    def layers(self, input_shape: tuple[int, int, int], classes: int, parts: Parts) -> list[nn.Module]:
        """Return newly initialised layers in order: the first a Synapse that reads frames, the last gives logits."""

    def spiking(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        *,
        constant_input: bool,
        normalization: str = "bn",
        timesteps: int = 1,
        neuron: str = "lif",
        surrogate: str = "triangle",
    ) -> SpikingNetwork:
        """Return a newly initialised spiking network.

        Args:
            input_shape: (C, H, W) of a frame.
            classes: K.
            constant_input: the same frame is presented at every timestep.
            normalization: one of ``bench_core.snn.normalization.NORMALIZATIONS``.
            timesteps: T; matters to ``tebn`` only.
            neuron: one of ``bench_core.snn.neurons.NEURONS``.
            surrogate: one of ``bench_core.snn.surrogate.SURROGATES``.
        """
        parts = Parts(partial(trained_neuron, neuron, surrogate), normalization, timesteps)
        return SpikingNetwork(self.layers(input_shape, classes, parts), constant_input=constant_input)

    def analog(
        self, input_shape: tuple[int, int, int], classes: int, activation: Callable[[], nn.Module]
    ) -> AnalogNetwork:
        """Return the ANN twin, with ``activation()`` in place of each layer of neurons."""
        activations: list[nn.Module] = []

        def node() -> nn.Module:
            activations.append(activation())
            return activations[-1]

        return AnalogNetwork(self.layers(input_shape, classes, Parts(node)), activations)
