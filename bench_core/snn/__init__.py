"""Spiking layers, neurons and networks."""

from bench_core.snn.layers import AveragePool, Flatten, GlobalAveragePool, Residual, Synapse
from bench_core.snn.network import AnalogNetwork, SpikingNetwork
from bench_core.snn.neurons import SpikingNeuron, if_neuron, lif_neuron

__all__ = [
    "AnalogNetwork",
    "AveragePool",
    "Flatten",
    "GlobalAveragePool",
    "Residual",
    "SpikingNetwork",
    "SpikingNeuron",
    "Synapse",
    "if_neuron",
    "lif_neuron",
]
