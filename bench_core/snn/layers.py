"""Layers between neurons. Each takes and returns [T, B, ...] and holds no state over time."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from bench_core.snn.normalization import ThresholdDependentBatchNorm

__all__ = ["AveragePool", "Flatten", "GlobalAveragePool", "Residual", "Synapse"]


class Synapse(nn.Module):
    """A convolution or linear layer, with optional batch normalisation over the merged batch and time.

    ``fuse`` folds the normalisation into the weights, after which the layer is one operation.
    """

    def __init__(self, operation: nn.Conv2d | nn.Linear, norm: nn.BatchNorm2d | None = None) -> None:
        """Create a synapse from a convolution or linear layer and its normalisation, None for no normalisation."""
        super().__init__()
        self.operation = operation
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the current [T, B, ...] that the input [T, B, ...] causes."""
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

    def fan_out(self, input_shape: torch.Size, reached: torch.Tensor | None = None) -> torch.Tensor:
        """Return the accumulations that a spike at each input position causes, float64 of ``input_shape``.

        Exact at borders: only weights that meet an output inside the image count.

        Args:
            input_shape: [C, H, W] or [F].
            reached: 1 at outputs that are used, 0 at others; float64 of the output's shape. Default: all are used.
        """
        operation = self.operation
        if isinstance(operation, nn.Linear):
            used = operation.out_features if reached is None else float(reached.sum())
            return torch.full(tuple(input_shape), float(used), dtype=torch.float64)
        # Channels of a group behave alike, so one input and one output channel represent all of them.
        groups, outputs = operation.groups, operation.out_channels
        probe = torch.zeros((1, groups, *input_shape[1:]), dtype=torch.float64, requires_grad=True)
        ones = torch.ones((groups, 1, *operation.kernel_size), dtype=torch.float64)
        with torch.enable_grad():
            met = F.conv2d(probe, ones, None, operation.stride, operation.padding, operation.dilation, groups)[0]
            if reached is None:
                weights = torch.full_like(met, outputs // groups)
            else:
                weights = reached.unflatten(0, (groups, outputs // groups)).sum(1)
            (gradient,) = torch.autograd.grad(met, probe, weights)
        return gradient[0].repeat_interleave(input_shape[0] // groups, 0)


class AveragePool(nn.Module):
    """Average pooling over non-overlapping windows of ``size`` x ``size``."""

    def __init__(self, size: int) -> None:
        """Create a pool with windows of ``size`` x ``size``."""
        super().__init__()
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool [T, B, C, H, W] to [T, B, C, H // size, W // size]."""
        return _fold_time(x, lambda y: F.avg_pool2d(y, self.size))


class GlobalAveragePool(nn.Module):
    """The mean over each channel: [T, B, C, H, W] to [T, B, C]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean over each channel, [T, B, C]."""
        return _fold_time(x, lambda y: F.avg_pool2d(y, y.shape[2:]).flatten(1))


class Residual(nn.Module):
    """Two branches from the same input, added.

    If a branch ends in a synapse or is empty, and neurons follow the sum, currents are added. If both carry spikes
    (SEW), the sum is a whole number of spikes.

    Args:
        body: the layers of one branch, in order.
        shortcut: those of the other; an empty one passes the input on unchanged.
    """

    def __init__(self, body: Sequence[nn.Module], shortcut: Sequence[nn.Module] = ()) -> None:
        """Create the two branches; see the class."""
        super().__init__()
        self.body = nn.Sequential(*body)
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of both branches, [T, B, ...]."""
        y: torch.Tensor = self.body(x) + self.shortcut(x)
        return y


class Flatten(nn.Module):
    """Flattening of [T, B, C, H, W] to [T, B, C * H * W]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Flatten all dimensions after time and batch."""
        return x.flatten(2)


def _fold_time(x: torch.Tensor, operation: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Apply an operation on [N, ...] to [T, B, ...] by folding time into the batch."""
    y = operation(x.flatten(0, 1))
    return y.view(*x.shape[:2], *y.shape[1:])
