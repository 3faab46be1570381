"""VGG networks: 3 x 3 convolutions and 2 x 2 average pools (conversion needs averages) in a chain.

====================  ========================  ==========  ====================  ===================================
network               input, classes            parameters  multiply-accumulates  published
====================  ========================  ==========  ====================  ===================================
``vgg-16``            3 x 32 x 32, 10           14,724,042             313.20 M   14.7 M and 313 M (one linear layer)
``vggsnn``            2 x 48 x 48, 10            9,268,746           1,361.65 M   none known
====================  ========================  ==========  ====================  ===================================

Convolutions have no bias, because the normalisation after them has one (with it ``vgg-16`` would have 14,728,266
parameters). The figures count as in ``bench_core.snn.models.resnet``.
"""

from typing import ClassVar

from bench_core.snn.models.chain import POOL, Chain

__all__ = ["Vgg16", "VggSnn"]


class Vgg16(Chain):
    """Configuration D: thirteen convolutions, five pools and one linear layer."""

    name: ClassVar[str] = "vgg-16"
    reference: ClassVar[str] = "Simonyan and Zisserman, ICLR 2015"
    plan: ClassVar[tuple[int | str, ...]] = (
        *(64, 64, POOL),
        *(128, 128, POOL),
        *(256, 256, 256, POOL),
        *(512, 512, 512, POOL),
        *(512, 512, 512, POOL),
    )


class VggSnn(Vgg16):
    """64, 128, pool, 256, 256, pool, 512, 512, pool, 512, 512, pool and one linear layer, for 48 x 48 event frames."""

    name: ClassVar[str] = "vggsnn"
    reference: ClassVar[str] = "Deng et al., ICLR 2022 (TET)"
    plan: ClassVar[tuple[int | str, ...]] = (64, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL)
