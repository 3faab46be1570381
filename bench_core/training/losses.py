"""Training losses of spiking networks, on the logits of every timestep."""

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F

__all__ = ["LOSSES", "mean_cross_entropy", "temporal_efficient_training"]

TET_WEIGHT = 1e-3
TET_TARGET = 1.0


def mean_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the mean over time. ``logits``: o_t [T, B, K]; ``labels``: int64 [B]."""
    return F.cross_entropy(logits.mean(0), labels)


def temporal_efficient_training(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """TET: (1 - w) mean_t CE(o_t, y) + w MSE(o_t, 1), w = 1e-3 (Deng et al., ICLR 2022; weights as in SEENN's code).

    ``logits``: o_t [T, B, K]; ``labels``: int64 [B].
    """
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)))
    distance = F.mse_loss(logits, torch.full_like(logits, TET_TARGET))
    return (1.0 - TET_WEIGHT) * cross_entropy + TET_WEIGHT * distance


LOSSES: Final[dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "mean-cross-entropy": mean_cross_entropy,
    "tet": temporal_efficient_training,
}
