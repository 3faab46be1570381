"""Spike-element-wise residual networks: both branches end in neurons, and their spikes are added.

A sum of spikes is 0, 1, 2 ... and grows along the blocks of a stage; every spike in it counts as one. Figures as in
``bench_core.snn.models.resnet``: ``sew-resnet-34`` has the 21.80 M parameters and 3.664 G multiply-accumulates of
``resnet-34`` (published: 21.8 M).
"""

from typing import ClassVar

from torch import nn

from bench_core.snn.layers import Residual
from bench_core.snn.models.base import Parts
from bench_core.snn.models.resnet import ResNet34, convolution_1x1, convolution_3x3

__all__ = ["SewResNet34"]


class SewResNet34(ResNet34):
    """ResNet-34 with spike-element-wise blocks (addition); the stem's pool is an average, as in ``resnet-34``."""

    name: ClassVar[str] = "sew-resnet-34"
    reference: ClassVar[str] = "Fang et al., NeurIPS 2021"

    def block(self, inputs: int, outputs: int, stride: int, parts: Parts) -> list[nn.Module]:
        """Return one residual block with neurons at the end of both branches."""
        body = [
            *parts.synapse(convolution_3x3(inputs, outputs, stride)),
            parts.node(),
            *parts.synapse(convolution_3x3(outputs, outputs)),
            parts.node(),
        ]
        shortcut: list[nn.Module] = []
        if stride != 1 or inputs != outputs:
            shortcut = [*parts.synapse(convolution_1x1(inputs, outputs, stride)), parts.node()]
        return [Residual(body, shortcut)]
