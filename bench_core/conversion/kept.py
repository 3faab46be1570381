"""A converted network in tensors and JSON: its weights, and every neuron's numbers in order.

That is all there is to a network whose activations were replaced by neurons (``replace_activations``). A converter may
do more; then its network is no such network, and isn't kept.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bench_core.conversion.base import replace_activations
from bench_core.snn.network import AnalogNetwork, SpikingNetwork
from bench_core.snn.neurons import SpikingNeuron

__all__ = ["neuron_numbers", "rebuilt"]


def neuron_numbers(network: SpikingNetwork) -> list[dict[str, Any]]:
    """What each neuron of a network was made with, input to output."""
    return [
        {
            "decay": neuron.decay,
            "threshold": neuron.threshold,
            "reset": neuron.reset_mode,
            "initial": neuron.initial,
            "amplitude": neuron.amplitude,
            "surrogate": neuron.surrogate,
        }
        for neuron in network.neurons()
    ]


def rebuilt(
    ann: AnalogNetwork, neurons: Sequence[Mapping[str, Any]], tensors: Mapping[str, torch.Tensor], constant_input: bool
) -> SpikingNetwork:
    """The network with these neurons and weights; the layers of ``ann`` are taken over.

    Raises ValueError, TypeError or RuntimeError where they don't fit the ANN.
    """
    made = [SpikingNeuron(**numbers) for numbers in neurons]
    network = replace_activations(ann, made, constant_input=constant_input)
    network.load_state_dict(dict(tensors))
    return network.eval()
