"""The learning-rate schedule of a training run."""

import math
from typing import Literal

__all__ = ["rate_factor"]


def rate_factor(share: float, *, schedule: Literal["cosine", "linear"] = "cosine", warmup: float = 0.0) -> float:
    """Return the factor of the learning rate after a share of the training: up to 1 linearly, then down to 0.

    Args:
        share: finished share of the training, from 0; 1 and above give 0.
        schedule: how the rate falls: along half a cosine or linearly.
        warmup: share of the training during which the rate rises, below 1.
    """
    if share < warmup:
        return share / warmup
    fallen = min((share - warmup) / (1.0 - warmup), 1.0)
    return 1.0 - fallen if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * fallen))
