"""A converted network in tensors and JSON: its weights, and every neuron's numbers in order.

That is all there is to a network whose activations were replaced by neurons (``replace_activations``). A converter may
do more; then what is rebuilt is another network.
"""

from collections.abc import Mapping
from typing import Any

import torch

from bench_core.conversion.base import replace_activations
from bench_core.snn.network import AnalogNetwork, SpikingNetwork
from bench_core.snn.neurons import SpikingNeuron

__all__ = ["converted_record", "rebuilt"]


def converted_record(network: SpikingNetwork) -> dict[str, Any]:
    """What a network is beside its weights: every neuron's numbers, input to output, and how it takes its input."""
    neurons = [
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
    return {"neurons": neurons, "constant_input": network.constant_input}


def rebuilt(ann: AnalogNetwork, record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> SpikingNetwork:
    """The network of such a record, with these weights; the layers of ``ann`` are taken over.

    Raises ValueError, TypeError, KeyError, AttributeError or RuntimeError where they don't fit the ANN.
    """
    neurons = [SpikingNeuron(**numbers) for numbers in record["neurons"]]
    network = replace_activations(ann, neurons, constant_input=record["constant_input"])
    network.load_state_dict(dict(tensors))
    return network.eval()
