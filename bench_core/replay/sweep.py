"""Exact threshold sweeps: every distinct threshold of a score strategy, by sorting instead of replaying.

A sample stops at the first t whose score exceeds the threshold, which is the first t whose *running maximum* does. So
a sample's exit timestep is 1 + the number of its running maxima (t < T) that are at or below the threshold, and
lowering the threshold past the running maximum of (sample, t) moves that sample's exit from t + 1 to t. Sorting all
N (T - 1) running maxima once gives average exit timestep and accuracy at every threshold: O(N T log N T).
"""

from dataclasses import dataclass

import numpy as np
import torch

from bench_core.trace.trace import Trace
from bench_core.util.arrays import Array

__all__ = ["SortedScores", "distinct_thresholds", "exit_timesteps_at", "sort_scores"]


@dataclass(frozen=True)
class SortedScores:
    """Running maxima of a score table in ascending order, with the effect of passing each.

    A maximum that persists for several timesteps of a sample is one entry.

    Attributes:
        maxima: float64 [M], ascending.
        later_below: int64 [M + 1]; entry i is the total number of timesteps after the first, over all samples, if
            exactly the maxima before i do not stop.
        correct_above: int64 [M + 1]; entry i is the number of correct samples if exactly the maxima from i on exceed
            the threshold.
        harmed_above: int64 [M + 1]; likewise for samples correct at T but wrong at their exit.
        samples: N.
    """

    maxima: Array
    later_below: Array
    correct_above: Array
    harmed_above: Array
    samples: int

    def curve(self, thresholds: Array) -> tuple[Array, Array]:
        """Return summed exit timesteps and number of correct samples at each threshold, int64 [P] each."""
        below = np.searchsorted(self.maxima, thresholds, side="right")  # maxima <= threshold do not stop
        return self.samples + self.later_below[below], self.correct_above[below]

    def harmed(self, thresholds: Array) -> Array:
        """Return the number of samples correct at T but wrong at their exit, per threshold, int64 [P]."""
        harmed: Array = self.harmed_above[np.searchsorted(self.maxima, thresholds, side="right")]
        return harmed


def sort_scores(table: torch.Tensor, trace: Trace) -> SortedScores:
    """Sort a score table [N, T-1] of ``trace`` for sweeping."""
    correct = trace.correct.numpy()
    maxima = _running_maxima(table)
    rises = np.ones(maxima.shape, dtype=bool)
    rises[:, 1:] = maxima[:, 1:] > maxima[:, :-1]
    starts = np.flatnonzero(rises)
    lasts = np.diff(starts, append=maxima.size)  # timesteps; never spans samples: each one's first maximum is a rise
    values = maxima.reshape(-1)[starts]
    order = np.argsort(values)  # the order of equal values does not matter
    later_below = np.concatenate(([0], np.cumsum(lasts[order])))

    def above(marked: Array) -> Array:
        """Return how many samples are marked at their exit, given bool [N, T]."""
        gain = marked[:, :-1].astype(np.int64) - marked[:, 1:]  # gain of stopping at t instead of t + 1
        worth = np.add.reduceat(gain.reshape(-1), starts) if len(starts) else starts
        remaining: Array = marked[:, 0].sum() - np.concatenate(([0], np.cumsum(worth[order])))
        return remaining

    harmed = correct[:, -1:] & ~correct
    return SortedScores(values[order], later_below, above(correct), above(harmed), len(trace))


def distinct_thresholds(scores: SortedScores) -> Array:
    """Return every threshold that makes a difference: -inf, the midpoints of adjacent distinct values, +inf; ascending.

    A midpoint that rounds up to the higher value is replaced by the lower one, so that it still separates the two.
    """
    maxima = scores.maxima
    values = maxima[np.append(maxima[1:] != maxima[:-1], True)] if len(maxima) else maxima
    low, high = values[:-1], values[1:]
    low, high = low[np.isfinite(low)], high[np.isfinite(low)]
    middle = low / 2 + np.where(np.isinf(high), low, high) / 2
    middle = np.where((middle >= low) & (middle < high), middle, low)
    return np.concatenate(([-np.inf], middle, [np.inf]))


def exit_timesteps_at(table: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return t-hat of every sample at one threshold, int64 [N]."""
    return torch.from_numpy(1 + (_running_maxima(table) <= threshold).sum(1).astype(np.int64))


def _running_maxima(table: torch.Tensor) -> Array:
    return np.maximum.accumulate(table.numpy(), axis=1)
