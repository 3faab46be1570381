"""The small convolutional networks of the default suite, as spiking networks and as their ANN twins."""

from typing import ClassVar

from torch import nn

from bench_core.snn.layers import AveragePool, Flatten, Synapse
from bench_core.snn.models.base import Model, Parts

__all__ = ["SmallConv", "SmallConvDeep"]


class SmallConv(Model):
    """16 - pool - 32 - pool - 64 - 64 - FC, 3 x 3 convolutions: about 92,000 parameters on 28 x 28 images."""

    name: ClassVar[str] = "small-conv"
    reference: ClassVar[str] = "exitbench"
    plan: ClassVar[tuple[int | str, ...]] = (16, "pool", 32, "pool", 64, 64)

    def layers(self, input_shape: tuple[int, int, int], classes: int, parts: Parts) -> list[nn.Module]:
        channels, height, width = input_shape
        layers: list[nn.Module] = []
        for entry in self.plan:
            if isinstance(entry, str):
                layers.append(AveragePool(2))
                height, width = height // 2, width // 2
                continue
            layers += [*parts.synapse(nn.Conv2d(channels, entry, 3, padding=1, bias=False)), parts.node()]
            channels = entry
        return [*layers, Flatten(), Synapse(nn.Linear(channels * height * width, classes))]


class SmallConvDeep(SmallConv):
    """16 - pool - 32 - 48 - pool - 64 - 64 - FC: about 115,000 parameters on 28 x 28 images."""

    name: ClassVar[str] = "small-conv-deep"
    plan: ClassVar[tuple[int | str, ...]] = (16, "pool", 32, 48, "pool", 64, 64)
