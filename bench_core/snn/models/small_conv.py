"""The small convolutional networks of the default suite, as spiking networks and as their ANN twins."""

from collections.abc import Callable
from typing import ClassVar

from torch import nn

from bench_core.snn.layers import AveragePool, Flatten, Synapse
from bench_core.snn.models.base import Model
from bench_core.snn.network import AnalogNetwork, SpikingNetwork
from bench_core.snn.neurons import lif_neuron

__all__ = ["SmallConv", "SmallConvDeep"]


class SmallConv(Model):
    """16 - pool - 32 - pool - 64 - 64 - FC, 3 x 3 convolutions: about 92,000 parameters on 28 x 28 images."""

    name: ClassVar[str] = "small-conv"
    reference: ClassVar[str] = "exitbench"
    plan: ClassVar[tuple[int | str, ...]] = (16, "pool", 32, "pool", 64, 64)

    def spiking(self, input_shape: tuple[int, int, int], classes: int, *, constant_input: bool) -> SpikingNetwork:
        return SpikingNetwork(_layers(self.plan, input_shape, classes, lif_neuron), constant_input=constant_input)

    def analog(
        self, input_shape: tuple[int, int, int], classes: int, activation: Callable[[], nn.Module]
    ) -> AnalogNetwork:
        return AnalogNetwork(_layers(self.plan, input_shape, classes, activation))


class SmallConvDeep(SmallConv):
    """16 - pool - 32 - 48 - pool - 64 - 64 - FC: about 115,000 parameters on 28 x 28 images."""

    name: ClassVar[str] = "small-conv-deep"
    plan: ClassVar[tuple[int | str, ...]] = (16, "pool", 32, 48, "pool", 64, 64)


def _layers(
    plan: tuple[int | str, ...],
    input_shape: tuple[int, int, int],
    classes: int,
    node: Callable[[], nn.Module],
) -> list[nn.Module]:
    channels, height, width = input_shape
    layers: list[nn.Module] = []
    for entry in plan:
        if isinstance(entry, str):
            layers.append(AveragePool(2))
            height, width = height // 2, width // 2
            continue
        convolution = nn.Conv2d(channels, entry, 3, padding=1, bias=False)
        layers += [Synapse(convolution, nn.BatchNorm2d(entry)), node()]
        channels = entry
    return [*layers, Flatten(), Synapse(nn.Linear(channels * height * width, classes))]
