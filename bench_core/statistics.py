"""Uncertainty: a paired bootstrap over samples, and ranks that differ only where the difference is significant.

All rows of a workload are scored on the same samples, so one seeded matrix of resample counts serves them all and
every difference is paired by construction (Efron and Tibshirani, 1993). Values are whole numbers (right or wrong, exit
timesteps), whose sums are exact, so intervals don't depend on threads or order.

The tests are about these fitted policies on this network: they say nothing about another training seed.
"""

from typing import Any

import numpy as np

from bench_core.costs.operations import Array

__all__ = ["bootstrap_means", "interval", "significantly_less", "significantly_more"]

_CHUNK = 250  # resamples drawn at once


def bootstrap_means(values: Array, *, resamples: int, seed: int) -> Array:
    """Means of every column of whole numbers over resampled rows.

    Args:
        values: int64 [N, M], one column per quantity; their sums must stay below 2**53.
        resamples: R.
        seed: of the resample counts; the same counts serve all columns.

    Returns:
        float64 [R, M].
    """
    samples = len(values)
    exact: type[np.floating[Any]] = np.float32 if samples * int(np.abs(values).max(initial=1)) < 2**24 else np.float64
    columns: Array = values.astype(exact)
    generator = np.random.Generator(np.random.PCG64(seed))
    sums = np.empty((resamples, values.shape[1]))
    for start in range(0, resamples, _CHUNK):
        count = min(_CHUNK, resamples - start)
        drawn = generator.integers(0, samples, size=(count, samples), dtype=np.int32)
        places = drawn + np.arange(count)[:, None] * samples  # resample r counts in the r-th block
        counts = np.bincount(places.reshape(-1), minlength=count * samples).reshape(count, samples)
        sums[start : start + count] = counts.astype(exact) @ columns
    return sums / samples


def interval(means: Array, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap means [R]."""
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(means, [tail, 1.0 - tail], method="inverted_cdf")
    return float(low), float(high)


def significantly_less(a: Array, b: Array) -> bool:
    """Whether the 95 % interval of the paired difference a - b lies below 0. ``a``, ``b``: bootstrap means [R]."""
    return interval(a - b)[1] < 0


def significantly_more(a: Array, b: Array) -> bool:
    """Whether the 95 % interval of the paired difference a - b lies above 0."""
    return interval(a - b)[0] > 0
