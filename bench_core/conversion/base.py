"""The converter interface: an activation to train an ANN with, and the conversion to a spiking network."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from bench_core.knobs import Configurable
from bench_core.snn.network import AnalogNetwork, SpikingNetwork
from bench_core.snn.neurons import SpikingNeuron

__all__ = ["Converter", "replace_activations"]


class Converter(Configurable, ABC):
    """Base of every converter that ``bench_converters`` returns.

    Attributes:
        warmup_steps: timesteps that the converted network spends before its first output; they are charged.
    """

    warmup_steps: ClassVar[int] = 0

    @abstractmethod
    def activation(self) -> nn.Module:
        """Return a new activation for one layer of the ANN."""

    @abstractmethod
    def convert(self, ann: AnalogNetwork, inputs: torch.Tensor) -> SpikingNetwork:
        """Return the spiking network of a trained ANN.

        Args:
            ann: a trained twin built with ``activation``; its layers may be reused.
            inputs: encoded training or calibration inputs [B, C, H, W] for methods that examine activations.
        """


def replace_activations(
    ann: AnalogNetwork, neurons: Sequence[SpikingNeuron], *, constant_input: bool
) -> SpikingNetwork:
    """Return the spiking network with ``neurons``, in order, in place of the ANN's activations; reuse the layers."""
    place = {id(activation): neuron for activation, neuron in zip(ann.activations, neurons, strict=True)}
    for module in list(ann.modules()):
        for name, child in list(module.named_children()):
            if id(child) in place:
                setattr(module, name, place[id(child)])
    return SpikingNetwork(list(ann.layers), constant_input=constant_input)
