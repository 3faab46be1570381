"""Storage of a converted network as tensors and JSON: its weights, and every neuron's parameters in order.

This is complete for a network whose activations were replaced by neurons (``replace_activations``). A converter may do
more; the rebuilt network then differs.
"""

from collections.abc import Mapping
from typing import Any

import torch

from bench_core.conversion.base import replace_activations
from bench_core.snn.network import AnalogNetwork, SpikingNetwork
from bench_core.snn.neurons import SpikingNeuron

__all__ = ["converted_record", "rebuilt"]


def converted_record(network: SpikingNetwork) -> dict[str, Any]:
    """Return what defines a network apart from its weights: every neuron's parameters, and ``constant_input``."""
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
    """Return the network of such a record, with these weights; it reuses the layers of ``ann``.

    Raises ValueError, TypeError, KeyError, AttributeError or RuntimeError if they don't fit the ANN.
    """
    neurons = [SpikingNeuron(**numbers) for numbers in record["neurons"]]
    network = replace_activations(ann, neurons, constant_input=record["constant_input"])
    network.load_state_dict(dict(tensors))
    return network.eval()
