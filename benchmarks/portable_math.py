"""What it costs that decisions are the same on every processor: the largest softmax of single operations, and torch's.

    OMP_NUM_THREADS=1 python benchmarks/portable_math.py

Both compute max softmax(S) of float64 [B, K] from S less its largest; B is what a board works on at once, and 1 as in a
live run. Each is timed in turn, and the median of the ratios of neighbours counts.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from bench_core.exits.evidence import samples_together
from bench_core.util.arrays import FloatArray
from bench_core.util.portable_math import exponential, row_sums

PAIRS = 41


def seconds(call: Callable[[], object], repetitions: int) -> float:
    """Return how long a call takes, of so many in a row."""
    start = time.perf_counter()
    for _ in range(repetitions):
        call()
    return (time.perf_counter() - start) / repetitions


def portable(below: FloatArray, place: FloatArray) -> object:
    np.copyto(place, below)
    return 1.0 / row_sums(exponential(place))


def plain(below: torch.Tensor) -> object:
    return torch.softmax(below, 1).amax(1)


def main() -> None:
    print(f"{'K':>5} {'B':>5} {'torch':>12} {'portable':>12} {'ratio':>6}")
    for classes in (10, 100, 1000):
        for batch in (1, 64, samples_together(classes)):
            below = -np.random.default_rng(0).exponential(5.0, (batch, classes))
            calls = partial(plain, torch.from_numpy(below)), partial(portable, below, np.empty_like(below))
            repetitions = max(1, 100_000 // below.size)
            times = [[seconds(call, repetitions) for call in calls] for _ in range(PAIRS)]
            theirs, ours = (statistics.median(column) for column in zip(*times, strict=True))
            ratio = statistics.median(b / a for a, b in times)
            print(f"{classes:>5} {batch:>5} {1e6 * theirs:>9.1f} µs {1e6 * ours:>9.1f} µs {ratio:>6.2f}")


if __name__ == "__main__":
    main()
