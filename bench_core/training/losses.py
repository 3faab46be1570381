"""Training losses of spiking networks, on the logits of every timestep.

``smoothing`` is label smoothing: the share of the target that is spread evenly over all classes.
"""

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F

__all__ = ["LOSSES", "accumulated_prefix", "mean_cross_entropy", "temporal_efficient_training"]

TET_WEIGHT = 1e-3
TET_TARGET = 1.0


def mean_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Return the cross-entropy of the mean over time. ``logits``: o_t [T, B, K]; ``labels``: int64 [B]."""
    return F.cross_entropy(logits.mean(0), labels, label_smoothing=smoothing)


def temporal_efficient_training(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Return the TET loss, (1 - w) mean_t CE(o_t, y) + w MSE(o_t, 1), w = 1e-3.

    ``logits``: o_t [T, B, K]; ``labels``: int64 [B]. Source: Deng et al., ICLR 2022; weights as in SEENN's code.
    """
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), label_smoothing=smoothing)
    distance = F.mse_loss(logits, torch.full_like(logits, TET_TARGET))
    return (1.0 - TET_WEIGHT) * cross_entropy + TET_WEIGHT * distance


def accumulated_prefix(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Return the mean over t of the cross-entropy of m_t, the network's output if stopped at t (DT-SNN's loss).

    ``logits``: o_t [T, B, K]; ``labels``: int64 [B]. Source: Li et al., DAC 2023: deep supervision of every prefix.
    """
    steps = torch.arange(1, len(logits) + 1, dtype=logits.dtype, device=logits.device)
    means = logits.cumsum(0) / steps[:, None, None]
    return F.cross_entropy(means.flatten(0, 1), labels.repeat(len(logits)), label_smoothing=smoothing)


LOSSES: Final[dict[str, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]]] = {
    "mean-cross-entropy": mean_cross_entropy,
    "tet": temporal_efficient_training,
    "accumulated-prefix": accumulated_prefix,
}
