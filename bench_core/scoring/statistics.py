"""Uncertainty: a paired bootstrap over samples, and paired tests of two policies.

All rows of a workload are scored on the same samples, so one seeded matrix of resample counts serves them all and
every difference is paired by construction (Efron and Tibshirani, 1993). The same holds for one seeded matrix of signs.
Values are integers (correct or wrong, exit timesteps), whose sums are exact, so no result depends on threads or order.

- accuracy: McNemar's exact test (McNemar, Psychometrika 12, 1947) on the samples that only one of the two gets right.
- exit timesteps: the paired sign-flip permutation test of the mean difference (Fisher, 1935), p = (1 + flips at least
  as far from 0) / (1 + flips), which is never 0 and never too small (Phipson and Smyth, 2010).
- families of tests: Holm's step-down adjustment (Scandinavian Journal of Statistics 6, 1979).

The tests concern these fitted policies on this network; they do not generalize to other training seeds.
"""

import numpy as np
from scipy.stats import binom

from bench_core.util.arrays import Array
from bench_core.util.progress import Advance

__all__ = [
    "bootstrap_means",
    "holm",
    "interval",
    "mcnemar",
    "sign_flip_p",
    "sign_flip_sums",
    "significantly_less",
    "significantly_more",
]

_CHUNK = 250  # resamples drawn at once, fewer for many samples; no result depends on it
_NUMBERS = 2**24  # upper limit of numbers drawn at once
_SIGNS = 0x5349474E  # random stream of the signs, separate from that of the resamples


def _untold(units: int = 1, remark: str = "") -> None:
    """Ignore the progress."""


def bootstrap_means(values: Array, *, resamples: int, seed: int, advance: Advance = _untold) -> Array:
    """Return the means of every integer column over resampled rows.

    Args:
        values: int64 [N, M], one column per quantity; their sums must stay below 2**53.
        resamples: R.
        seed: of the resample counts; the same counts serve all columns.
        advance: called with the number of resamples completed.

    Returns:
        float64 [R, M].
    """
    samples = len(values)
    columns = _exact(values)
    generator = np.random.Generator(np.random.PCG64(seed))
    sums = np.empty((resamples, values.shape[1]))
    step = max(1, min(_CHUNK, _NUMBERS // samples))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = generator.integers(0, samples, size=(count, samples), dtype=np.int32)
        places = drawn + np.arange(count)[:, None] * samples  # resample r counts in the r-th block
        counts = np.bincount(places.reshape(-1), minlength=count * samples).reshape(count, samples)
        sums[start : start + count] = counts.astype(columns.dtype) @ columns
        advance(count)
    return sums / samples


def _exact(values: Array) -> Array:
    """Convert integers [N, M] to the narrowest float type in which sums of N of them are exact."""
    narrow = len(values) * int(np.abs(values).max(initial=1)) < 2**24
    return values.astype(np.float32 if narrow else np.float64)


def interval(means: Array, confidence: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap means [R]."""
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(means, [tail, 1.0 - tail], method="inverted_cdf")
    return float(low), float(high)


def significantly_less(a: Array, b: Array) -> bool:
    """Return whether the 95 % interval of the paired difference a - b is below 0. ``a``, ``b``: bootstrap means [R]."""
    return interval(a - b)[1] < 0


def significantly_more(a: Array, b: Array) -> bool:
    """Return whether the 95 % interval of the paired difference a - b is above 0."""
    return interval(a - b)[0] > 0


def sign_flip_sums(values: Array, *, flips: int, seed: int, advance: Advance = _untold) -> Array:
    """Return the sums of every integer column, with the sign of each row flipped at random.

    The sum of a flipped difference is the difference of two flipped sums, so one matrix of signs serves every pair.

    Args:
        values: int64 [N, M], one column per policy; their sums must stay below 2**53.
        flips: F.
        seed: of the signs; the same signs serve all columns.
        advance: called with the number of flips completed.

    Returns:
        float64 [F, M], integers.
    """
    samples = len(values)
    columns = _exact(values)
    width = -(-samples // 8)
    generator = np.random.Generator(np.random.PCG64([seed, _SIGNS]))
    sums = np.empty((flips, values.shape[1]))
    step = max(1, min(_CHUNK, _NUMBERS // samples))
    for start in range(0, flips, _CHUNK):
        count = min(_CHUNK, flips - start)
        drawn = np.frombuffer(generator.bytes(count * width), dtype=np.uint8).reshape(count, width)
        for first in range(0, count, step):
            kept = np.unpackbits(drawn[first : first + step], axis=1, count=samples)  # 1: sign unchanged
            sums[start + first : start + first + len(kept)] = kept.astype(columns.dtype) @ columns
            advance(len(kept))
    flipped: Array = 2 * sums - values.sum(0)
    return flipped


def sign_flip_p(observed: int, flipped: Array) -> float:
    """Return the two-sided p-value of a summed difference against the same differences with flipped signs [F]."""
    return (1 + int((np.abs(flipped) >= abs(observed)).sum())) / (1 + len(flipped))


def mcnemar(only_first: Array, only_second: Array) -> Array:
    """Return exact two-sided p-values, float64 [...], from how many samples only the first or second gets right."""
    smaller = np.minimum(only_first, only_second)
    p: Array = np.minimum(1.0, 2 * binom.cdf(smaller, only_first + only_second, 0.5))
    return p


def holm(p: Array) -> Array:
    """Return p-values [M] adjusted for their family: below a, the chance of any false rejection is at most a."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted
