"""Residual networks: currents of both branches are added before the neurons.

A block is convolution, neurons, convolution, plus the shortcut, then neurons. If a block changes size, its shortcut is
a 1 x 1 convolution with the block's stride; otherwise the spikes themselves are the shortcut's current. Pooling is
average pooling throughout, since conversion needs it: the stem of the ImageNet networks is a 7 x 7 convolution of
stride 2 and a 2 x 2 average pool; He et al. use a 3 x 3 maximum pool of stride 2.

Figures with K = 10 at 32 x 32 (K = 1000 at 224 x 224 for ``resnet-34``); multiply-accumulates are per image and
timestep, weights that reach outside the image included, as papers count:

===================  ==========  ====================  ==============================================================
network              parameters  multiply-accumulates  published
===================  ==========  ====================  ==============================================================
``resnet-8``             78,042              12.50 M   12.5 M (SEENN, appendix: the policy network)
``resnet-20``           272,474              40.81 M   0.27 M (He et al.), 41 M (usual)
``resnet-20-seenn``     175,258              26.66 M   none: Table 6 lists two blocks a stage, which make 14 layers
``resnet-19``        12,569,226             2.2852 G   2.285 G (SEENN, appendix)
``resnet-18``        11,173,962              0.555 G   0.56 G (usual at 32 x 32, without the 7 x 7 stem)
``resnet-34``        21,797,672              3.664 G   21.8 M and 3.6 G (He et al.)
===================  ==========  ====================  ==============================================================

Parameters are those of the network with plain or threshold-dependent batch normalisation. ``resnet-19`` has one fully
connected layer, 512 to K; the variant of Zheng et al. (AAAI 2021) has 256 units in between, 0.13 M more.
"""

from typing import ClassVar

from torch import nn

from bench_core.snn.layers import AveragePool, GlobalAveragePool, Residual, Synapse
from bench_core.snn.models.base import Model, Parts

__all__ = ["ResNet", "ResNet8", "ResNet18", "ResNet19", "ResNet20", "ResNet20Seenn", "ResNet34"]


class ResNet(Model):
    """Base of the residual networks.

    Attributes:
        widths: channels of each stage; from the second on, a stage's first block halves height and width.
        blocks: blocks of each stage.
        large_images: whether the stem reduces height and width by a factor of four.
    """

    widths: ClassVar[tuple[int, ...]]
    blocks: ClassVar[tuple[int, ...]]
    large_images: ClassVar[bool] = False

    def layers(self, input_shape: tuple[int, int, int], classes: int, parts: Parts) -> list[nn.Module]:
        """Return the stem, the blocks of all stages, global average pooling and a linear layer."""
        channels = self.widths[0]
        layers = self.stem(input_shape[0], channels, parts)
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for block in range(blocks):
                layers += self.block(channels, width, 2 if stage and not block else 1, parts)
                channels = width
        return [*layers, GlobalAveragePool(), Synapse(nn.Linear(channels, classes))]

    def stem(self, inputs: int, outputs: int, parts: Parts) -> list[nn.Module]:
        """Return the layers from the frame to the first block's input."""
        if self.large_images:
            convolution = nn.Conv2d(inputs, outputs, 7, stride=2, padding=3, bias=False)
            return [*parts.synapse(convolution), parts.node(), AveragePool(2)]
        return [*parts.synapse(convolution_3x3(inputs, outputs)), parts.node()]

    def block(self, inputs: int, outputs: int, stride: int, parts: Parts) -> list[nn.Module]:
        """Return one residual block and the neurons after its sum."""
        body = [
            *parts.synapse(convolution_3x3(inputs, outputs, stride)),
            parts.node(),
            *parts.synapse(convolution_3x3(outputs, outputs), branches=2),
        ]
        shortcut: list[nn.Module] = []
        if stride != 1 or inputs != outputs:
            shortcut = parts.synapse(convolution_1x1(inputs, outputs, stride), branches=2)
        return [Residual(body, shortcut), parts.node()]


def convolution_3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return the convolution inside a block."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def convolution_1x1(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    """Return the convolution of a shortcut that changes size."""
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


class ResNet8(ResNet):
    """16 - 32 - 64, one block each: the architecture of SEENN-II's policy network."""

    name: ClassVar[str] = "resnet-8"
    reference: ClassVar[str] = "He et al., CVPR 2016; Li et al., NeurIPS 2023"
    widths: ClassVar[tuple[int, ...]] = (16, 32, 64)
    blocks: ClassVar[tuple[int, ...]] = (1, 1, 1)


class ResNet20(ResNet8):
    """16 - 32 - 64, three blocks each."""

    name: ClassVar[str] = "resnet-20"
    reference: ClassVar[str] = "He et al., CVPR 2016"
    blocks: ClassVar[tuple[int, ...]] = (3, 3, 3)


class ResNet20Seenn(ResNet8):
    """16 - 32 - 64, two blocks each: what SEENN's appendix lists as ResNet-20."""

    name: ClassVar[str] = "resnet-20-seenn"
    reference: ClassVar[str] = "Li et al., NeurIPS 2023"
    blocks: ClassVar[tuple[int, ...]] = (2, 2, 2)


class ResNet19(ResNet):
    """128 - 256 - 512, three, three and two blocks."""

    name: ClassVar[str] = "resnet-19"
    reference: ClassVar[str] = "Zheng et al., AAAI 2021; Li et al., NeurIPS 2023"
    widths: ClassVar[tuple[int, ...]] = (128, 256, 512)
    blocks: ClassVar[tuple[int, ...]] = (3, 3, 2)


class ResNet18(ResNet):
    """64 - 128 - 256 - 512, two blocks each, for images of about 32 x 32."""

    name: ClassVar[str] = "resnet-18"
    reference: ClassVar[str] = "He et al., CVPR 2016"
    widths: ClassVar[tuple[int, ...]] = (64, 128, 256, 512)
    blocks: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)


class ResNet34(ResNet18):
    """64 - 128 - 256 - 512, three, four, six and three blocks, for images of 224 x 224."""

    name: ClassVar[str] = "resnet-34"
    blocks: ClassVar[tuple[int, ...]] = (3, 4, 6, 3)
    large_images: ClassVar[bool] = True
