"""VGG networks: 3 x 3 convolutions and 2 x 2 average pools (conversion needs averages) in a chain.

====================  ========================  ==========  ====================  ===================================
network               input, classes            parameters  multiply-accumulates  published
====================  ========================  ==========  ====================  ===================================
``vgg-16``            3 x 32 x 32, 10           14,724,042             313.20 M   14.7 M and 313 M (one linear layer)
``vggsnn``            2 x 48 x 48, 10            9,268,746           1,361.65 M   none known
====================  ========================  ==========  ====================  ===================================

Convolutions have no bias, because the normalisation behind them has one (with it ``vgg-16`` would have 14,728,266
parameters). The figures count as in ``bench_core.snn.models.resnet``.
"""

from typing import ClassVar

from torch import nn

from bench_core.errors import UsageError
from bench_core.snn.layers import AveragePool, Flatten, Synapse
from bench_core.snn.models.base import Model, Parts

__all__ = ["Vgg16", "VggSnn"]


class Vgg16(Model):
    """Configuration D: thirteen convolutions, five pools and one linear layer."""

    name: ClassVar[str] = "vgg-16"
    reference: ClassVar[str] = "Simonyan and Zisserman, ICLR 2015"
    stages: ClassVar[tuple[tuple[int, ...], ...]] = (
        (64, 64),
        (128, 128),
        (256, 256, 256),
        (512, 512, 512),
        (512, 512, 512),
    )

    def layers(self, input_shape: tuple[int, int, int], classes: int, parts: Parts) -> list[nn.Module]:
        channels, height, width = input_shape
        shrink = 2 ** len(self.stages)
        if min(height, width) < shrink:
            raise UsageError(f"{self.name} needs frames of at least {shrink} x {shrink}, not {height} x {width}")
        layers: list[nn.Module] = []
        for stage in self.stages:
            for outputs in stage:
                layers += [*parts.synapse(nn.Conv2d(channels, outputs, 3, padding=1, bias=False)), parts.node()]
                channels = outputs
            layers.append(AveragePool(2))
        features = channels * (height // shrink) * (width // shrink)
        return [*layers, Flatten(), Synapse(nn.Linear(features, classes))]


class VggSnn(Vgg16):
    """64, 128, pool, 256, 256, pool, 512, 512, pool, 512, 512, pool and one linear layer, for 48 x 48 event frames."""

    name: ClassVar[str] = "vggsnn"
    reference: ClassVar[str] = "Deng et al., ICLR 2022 (TET)"
    stages: ClassVar[tuple[tuple[int, ...], ...]] = ((64, 128), (256, 256), (512, 512), (512, 512))
