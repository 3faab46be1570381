"""Layers between neurons. Each takes and gives [T, B, ...] and holds no state over time."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from bench_core.snn.normalization import ThresholdDependentBatchNorm

__all__ = ["AveragePool", "Flatten", "Synapse"]


class Synapse(nn.Module):
    """A convolution or a linear layer, with batch normalisation over the merged batch and time where asked.

    ``fuse`` folds the normalisation into the weights, after which the layer is one operation.
    """

    def __init__(self, operation: nn.Conv2d | nn.Linear, norm: nn.BatchNorm2d | None = None) -> None:
        super().__init__()
        self.operation = operation
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _fold_time(x, self._transmit)

    def _transmit(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.operation(x)
        return y if self.norm is None else self.norm(y)

    def fuse(self) -> None:
        """Fold the (evaluation-mode) normalisation into weight and bias."""
        if self.norm is not None and isinstance(self.operation, nn.Conv2d):
            norm = self.norm.plain() if isinstance(self.norm, ThresholdDependentBatchNorm) else self.norm
            self.operation = nn.utils.fuse_conv_bn_eval(self.operation.eval(), norm.eval())
            self.norm = None

    def fan_out(self, input_shape: torch.Size) -> torch.Tensor:
        """How many accumulations a spike at each input position causes, float64 of ``input_shape`` ([C, H, W] or [F]).

        Exact at borders: only weights that meet an output inside the image count.
        """
        operation = self.operation
        if isinstance(operation, nn.Linear):
            return torch.full(tuple(input_shape), float(operation.out_features), dtype=torch.float64)
        ones = torch.ones_like(operation.weight, dtype=torch.float64, device="cpu")
        probe = torch.zeros((1, *input_shape), dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            total = F.conv2d(
                probe, ones, None, operation.stride, operation.padding, operation.dilation, operation.groups
            ).sum()
            (gradient,) = torch.autograd.grad(total, probe)
        return gradient[0]


class AveragePool(nn.Module):
    """Average pooling over windows of ``size`` x ``size`` that don't overlap."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _fold_time(x, lambda y: F.avg_pool2d(y, self.size))


class Flatten(nn.Module):
    """[T, B, C, H, W] to [T, B, C * H * W]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2)


def _fold_time(x: torch.Tensor, operation: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Apply an operation on [N, ...] to [T, B, ...] by folding time into the batch."""
    y = operation(x.flatten(0, 1))
    return y.view(*x.shape[:2], *y.shape[1:])
