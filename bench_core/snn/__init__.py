"""Spiking layers, neurons and networks."""

from bench_core.snn.layers import AveragePool, Flatten, Synapse
from bench_core.snn.network import AnalogNetwork, SpikingNetwork
from bench_core.snn.neurons import SpikingNeuron, if_neuron, lif_neuron

__all__ = [
    "AnalogNetwork",
    "AveragePool",
    "Flatten",
    "SpikingNetwork",
    "SpikingNeuron",
    "Synapse",
    "if_neuron",
    "lif_neuron",
]
