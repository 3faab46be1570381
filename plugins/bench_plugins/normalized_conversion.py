"""Conversion of plain ReLU networks, with a threshold per layer measured from its activity.

All three use integrate-and-fire neurons with reset by subtraction whose spikes carry the threshold, which is equivalent
to normalised weights with threshold 1. They differ in the threshold of a layer:

``max-norm``             the largest activation of the ANN (Diehl et al., IJCNN 2015);
``percentile-norm``      a percentile of its activations, so that outliers don't slow all neurons down (Rueckauer et
                         al., Frontiers in Neuroscience 2017);
``threshold-balancing``  the largest weighted input current in any one timestep, with spikes from the layers below,
                         which are balanced first (Sengupta et al., Frontiers in Neuroscience 2019).

Thresholds are measured on calibration inputs, never on test.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from bench_core import AnalogNetwork, Converter, Knob, SpikingNetwork, SpikingNeuron, hookimpl, replace_activations

BATCH = 100
SMALLEST = 1e-6  # threshold of a layer without activity

INITIAL = Knob("initial", "float", 0.0, low=0.0, high=1.0, help="potential before the first step, in thresholds")
SAMPLES = Knob("samples", "int", 1000, low=1, help="calibration inputs that are looked at")


class ReLUConverter(Converter):
    """Base class: converts a ReLU network to integrate-and-fire neurons with a threshold per layer."""

    def activation(self) -> nn.Module:
        """Return a ReLU."""
        return nn.ReLU()

    @property
    def _samples(self) -> int:
        samples = self.parameters["samples"]
        assert isinstance(samples, int)
        return samples

    def _neuron(self, threshold: float) -> SpikingNeuron:
        initial = self.parameters["initial"]
        assert isinstance(initial, float)
        threshold = max(threshold, SMALLEST)
        return SpikingNeuron(
            decay=1.0, threshold=threshold, reset="soft", initial=initial * threshold, amplitude=threshold
        )


class MaxNorm(ReLUConverter):
    """Threshold: the layer's largest activation."""

    name: ClassVar[str] = "max-norm"
    reference: ClassVar[str] = "Diehl et al., IJCNN 2015"
    knobs: ClassVar[tuple[Knob, ...]] = (INITIAL, SAMPLES)

    def convert(self, ann: AnalogNetwork, inputs: torch.Tensor) -> SpikingNetwork:
        """Return the network with thresholds from the activations on ``inputs`` [B, C, H, W]."""
        neurons = [self._neuron(value) for value in _measure(ann, inputs[: self._samples], self._threshold)]
        return replace_activations(ann, neurons, constant_input=True)

    def _threshold(self, activations: torch.Tensor) -> float:
        return float(activations.max())


class PercentileNorm(MaxNorm):
    """Threshold: a percentile of the layer's activations."""

    name: ClassVar[str] = "percentile-norm"
    reference: ClassVar[str] = "Rueckauer et al., Frontiers in Neuroscience 2017"
    knobs: ClassVar[tuple[Knob, ...]] = (
        Knob("percentile", "float", 99.9, low=0.0, open_low=True, high=100.0, help="of all activations of a layer"),
        INITIAL,
        SAMPLES,
    )

    def _threshold(self, activations: torch.Tensor) -> float:
        percentile = self.parameters["percentile"]
        assert isinstance(percentile, float)
        return float(np.percentile(activations.numpy(), percentile))


class ThresholdBalancing(ReLUConverter):
    """Threshold: the largest input current in a timestep, layer by layer, with spikes from the layers below."""

    name: ClassVar[str] = "threshold-balancing"
    reference: ClassVar[str] = "Sengupta et al., Frontiers in Neuroscience 2019"
    knobs: ClassVar[tuple[Knob, ...]] = (
        Knob("timesteps", "int", 64, low=1, help="timesteps that each layer is watched for"),
        INITIAL,
        SAMPLES,
    )

    def convert(self, ann: AnalogNetwork, inputs: torch.Tensor) -> SpikingNetwork:
        """Return the network with thresholds balanced layer by layer on ``inputs`` [B, C, H, W]."""
        timesteps = self.parameters["timesteps"]
        assert isinstance(timesteps, int)
        neurons = [self._neuron(0.0) for _ in ann.activations]
        network = replace_activations(ann, neurons, constant_input=True).eval()
        for place in range(len(neurons)):
            threshold = _largest_current(network, neurons[place], inputs[: self._samples], timesteps)
            _become(neurons[place], self._neuron(threshold))
        network.reset()
        return network


def _measure(ann: AnalogNetwork, inputs: torch.Tensor, summary: Callable[[torch.Tensor], float]) -> list[float]:
    """Return ``summary`` of all activations of each layer, with one layer in memory at a time."""
    return [summary(torch.cat(list(_outputs(ann, layer, inputs)))) for layer in ann.activations]


def _outputs(ann: AnalogNetwork, layer: nn.Module, inputs: torch.Tensor) -> Iterator[torch.Tensor]:
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.flatten()))
    try:
        with torch.inference_mode():
            for batch in torch.split(inputs, BATCH):
                ann(batch)
                yield seen.pop()
    finally:
        hook.remove()


def _largest_current(network: SpikingNetwork, neuron: SpikingNeuron, inputs: torch.Tensor, timesteps: int) -> float:
    largest = 0.0

    def look(_module: nn.Module, arguments: Sequence[torch.Tensor]) -> None:
        nonlocal largest
        largest = max(largest, float(arguments[0].max()))

    hook = neuron.register_forward_pre_hook(look)
    try:
        with torch.inference_mode():
            for batch in torch.split(inputs, BATCH):
                network.run(batch, timesteps, fold=1)
    finally:
        hook.remove()
    return largest


def _become(neuron: SpikingNeuron, other: SpikingNeuron) -> None:
    neuron.threshold, neuron.initial, neuron.amplitude = other.threshold, other.initial, other.amplitude


@hookimpl
def bench_converters() -> list[Converter]:
    """Return the three converters."""
    return [MaxNorm(), PercentileNorm(), ThresholdBalancing()]
