"""Counter-based hashing: pseudo-random numbers that depend on (sample, salt) alone.

It supplies the randomness that must not depend on order, batch size or engine (a split, a random exit). The mixer is
the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

from typing import Any

import numpy as np
import torch

__all__ = ["hash_order", "uniform"]

UInt64Array = np.ndarray[Any, np.dtype[np.uint64]]


def _mix(values: UInt64Array) -> UInt64Array:
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def hash_order(keys: torch.Tensor, salt: int) -> UInt64Array:
    """Return a 64-bit hash per key, to sort by. ``keys``: integers [B]; ``salt``: any integer, taken modulo 2**64."""
    counters = keys.detach().cpu().to(torch.int64).numpy().view(np.uint64)
    salts = np.full(1, salt % (1 << 64), dtype=np.uint64)
    return _mix(_mix(counters) ^ _mix(salts))


def uniform(keys: torch.Tensor, salt: int) -> torch.Tensor:
    """Return one number in [0, 1) per key, float64 [B], on the device of ``keys``."""
    fractions = (hash_order(keys, salt) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return torch.from_numpy(fractions).to(keys.device)
