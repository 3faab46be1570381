"""The small convolutional networks of the default suite, as spiking networks and as their ANN twins."""

from typing import ClassVar

from bench_core.snn.models.chain import POOL, Chain

__all__ = ["SmallConv", "SmallConvDeep"]


class SmallConv(Chain):
    """16 - pool - 32 - pool - 64 - 64 - FC, 3 x 3 convolutions: about 92,000 parameters on 28 x 28 images."""

    name: ClassVar[str] = "small-conv"
    reference: ClassVar[str] = "exitbench"
    plan: ClassVar[tuple[int | str, ...]] = (16, POOL, 32, POOL, 64, 64)


class SmallConvDeep(SmallConv):
    """16 - pool - 32 - 48 - pool - 64 - 64 - FC: about 115,000 parameters on 28 x 28 images."""

    name: ClassVar[str] = "small-conv-deep"
    plan: ClassVar[tuple[int | str, ...]] = (16, POOL, 32, 48, POOL, 64, 64)
