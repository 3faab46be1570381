"""Normalisation between synapses and neurons: plain, threshold-dependent, and temporal effective batch normalisation.

All three take their statistics over the merged batch and time, so that folded and stepwise execution agree once the
running statistics are fixed.
"""

import math

import torch
from torch import nn

__all__ = ["NORMALIZATIONS", "TemporalScale", "ThresholdDependentBatchNorm", "batch_norm"]

NORMALIZATIONS = ("bn", "tdbn", "tebn")


class ThresholdDependentBatchNorm(nn.BatchNorm2d):
    """tdBN: gamma * factor * (x - mu) / sqrt(var + eps) + beta, with factor = alpha * V_th.

    Source: Zheng et al., AAAI 2021. alpha is 1 in a chain and 1 / sqrt(n) where n branches are added before the neuron.
    In a chain with V_th = 1 it is plain batch normalisation.
    """

    def __init__(self, channels: int, *, threshold: float = 1.0, branches: int = 1) -> None:
        super().__init__(channels)
        self.factor = threshold / math.sqrt(branches)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # torch's own name
        scaled: torch.Tensor = super().forward(input)
        return scaled if self.factor == 1.0 else (scaled - self._shift()) * self.factor + self._shift()

    def plain(self) -> nn.BatchNorm2d:
        """Plain batch normalisation that gives the same."""
        norm = nn.BatchNorm2d(self.num_features, self.eps)
        norm.load_state_dict(self.state_dict())
        norm.weight.data.mul_(self.factor)
        return norm.train(self.training)

    def _shift(self) -> torch.Tensor:
        return self.bias[:, None, None]


class TemporalScale(nn.Module):
    """TEBN's learnt scale per timestep, p_t (initially 1), applied to what a batch normalisation gave.

    Source: Duan et al., NeurIPS 2022. It counts the timesteps itself, so it works step by step as well; a network with
    it can't run longer than the T it was trained with. Cost: hardware folds the scale into the neuron update.

    Args:
        timesteps: T.

    Raises:
        ValueError: at a timestep after T.
    """

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(timesteps))
        self._done = 0

    def reset(self) -> None:
        """The next call starts at the first timestep."""
        self._done = 0

    def keep(self, index: torch.Tensor) -> None:
        """Nothing is held per sample."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, self._done = self._done, self._done + len(x)
        if self._done > len(self.scale):
            raise ValueError(f"timestep {self._done} of a network whose normalisation (tebn) knows {len(self.scale)}")
        return x * self.scale[first : self._done].view(-1, *[1] * (x.dim() - 1))


def batch_norm(kind: str, channels: int, *, branches: int = 1) -> nn.BatchNorm2d:
    """The batch normalisation of a convolution's output, of a kind in ``NORMALIZATIONS``.

    Args:
        kind: which.
        channels: of the convolution's output.
        branches: how many outputs are added before the neuron.
    """
    return ThresholdDependentBatchNorm(channels, branches=branches) if kind == "tdbn" else nn.BatchNorm2d(channels)
