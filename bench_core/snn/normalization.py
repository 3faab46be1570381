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

    Source: Zheng et al., AAAI 2021. alpha is 1 in a chain and 1 / sqrt(n) if n branches are added before the neuron. In
    a chain with V_th = 1 it is plain batch normalisation.
    """

    def __init__(self, channels: int, *, threshold: float = 1.0, branches: int = 1) -> None:
        """Create a normalisation of ``channels``, for neurons with ``threshold`` after a sum of ``branches``."""
        super().__init__(channels)
        self.factor = threshold / math.sqrt(branches)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # torch's own name
        """Normalise [N, C, H, W] over N, H and W, then scale by the factor."""
        scaled: torch.Tensor = super().forward(input)
        return scaled if self.factor == 1.0 else (scaled - self._shift()) * self.factor + self._shift()

    def plain(self) -> nn.BatchNorm2d:
        """Return plain batch normalisation with the same output."""
        norm = nn.BatchNorm2d(self.num_features, self.eps, dtype=self.weight.dtype)
        norm.load_state_dict(self.state_dict())
        norm.weight.data.mul_(self.factor)
        return norm.train(self.training)

    def _shift(self) -> torch.Tensor:
        return self.bias[:, None, None]


class TemporalScale(nn.Module):
    """TEBN's learnt scale per timestep, p_t (initially 1), applied to the output of a batch normalisation.

    Source: Duan et al., NeurIPS 2022. It counts the timesteps itself, so it works step by step as well; a network with
    it can't run longer than the T it was trained with. Cost: hardware folds the scale into the neuron update.

    Args:
        timesteps: T.

    Raises:
        ValueError: at a timestep after T.
    """

    def __init__(self, timesteps: int) -> None:
        """Create scales of 1 for ``timesteps`` steps."""
        super().__init__()
        self.scale = nn.Parameter(torch.ones(timesteps))
        self._done = 0  # timesteps since the last reset
        self._batch = 0
        self._late: torch.Tensor | None = None  # timesteps at which each sample started, int64 [B]; None: all at 0

    def reset(self) -> None:
        """Reset the count: the next call starts at the first timestep."""
        self._done, self._batch, self._late = 0, 0, None

    def keep(self, index: torch.Tensor) -> None:
        """Continue with the samples at ``index`` [B'] only."""
        self._batch = len(index)
        if self._late is not None:
            self._late = self._late[index]

    def renew(self, index: torch.Tensor) -> None:
        """Start new samples at ``index`` [R]: their next timestep is the first."""
        if self._late is None:
            self._late = torch.zeros(self._batch, dtype=torch.int64, device=index.device)
        self._late[index] = self._done

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale the next T timesteps of [T, B, ...]. Raises ValueError beyond the last known timestep."""
        first, self._done, self._batch = self._done, self._done + len(x), x.shape[1]
        longest = self._done - (0 if self._late is None else int(self._late.min()))
        if longest > len(self.scale):
            raise ValueError(f"timestep {longest} of a network whose normalisation (tebn) knows {len(self.scale)}")
        if self._late is None:
            return x * self.scale[first : self._done].view(-1, *[1] * (x.dim() - 1))
        steps = torch.arange(first, self._done, device=x.device)[:, None] - self._late  # [T, B]
        return x * self.scale[steps].view(*steps.shape, *[1] * (x.dim() - 2))


def batch_norm(kind: str, channels: int, *, branches: int = 1) -> nn.BatchNorm2d:
    """Return the batch normalisation of a convolution's output, of a kind in ``NORMALIZATIONS``.

    Args:
        kind: ``tdbn`` for the threshold-dependent one, otherwise plain.
        channels: of the convolution's output.
        branches: number of outputs that are added before the neuron.
    """
    return ThresholdDependentBatchNorm(channels, branches=branches) if kind == "tdbn" else nn.BatchNorm2d(channels)
