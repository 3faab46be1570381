"""Metrics of a workload and its policies: accuracy, exit timesteps, and reference points that use labels.

All except ``reliability`` are plain functions of the correctness matrix [N, T] (is argmax S_t the label?) and of exit
timesteps [N].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bench_core.trace.trace import Trace
from bench_core.util.arrays import Array
from bench_core.util.portable_math import exponential, row_sums

__all__ = [
    "BINS",
    "ReferencePoints",
    "Reliability",
    "area_share",
    "fixed_hull",
    "flips",
    "histogram_matched_accuracy",
    "hull_points",
    "oracle_points",
    "reference_points",
    "reliability",
    "saving_realised",
    "static_accuracy",
]

BINS = 15
_NOTHING = 1e-6  # smaller denominators are treated as zero


@dataclass(frozen=True)
class ReferencePoints:
    """Label-using reference points of a workload.

    Only ``lower_bound`` bounds a policy: the others charge T timesteps for samples that are never correct, and a policy
    may stop those at 1.

    Attributes:
        aet: SEENN's average exit timestep (Li et al., NeurIPS 2023, Eq. 4): T - sum of static accuracies before T.
        empirical_aet: mean first correct timestep, T if there is none (Eq. 13 of its appendix).
        oct: mean first timestep from which all later ones are correct, T if the last is wrong (Wu et al., 2301.09522).
        oracle_accuracy: share of samples correct at some timestep (Li, Jones and Furber, ICCV 2023).
        oracle_timestep: mean exit timestep of that oracle, with never-correct samples stopped at 1; charging T for them
            gives ``empirical_aet``.
        lower_bound: the lowest average timestep at which any rule can reach static accuracy at T, with never-correct
            samples stopped at 1.
    """

    aet: float
    empirical_aet: float
    oct: float
    oracle_accuracy: float
    oracle_timestep: float
    lower_bound: float


def static_accuracy(trace: Trace) -> Array:
    """Return the accuracy of stopping every sample at t, float64 [T]."""
    accuracy: Array = trace.correct.numpy().sum(0) / len(trace)
    return accuracy


def reference_points(correct: torch.Tensor) -> ReferencePoints:
    """Return the reference points of a correctness matrix, bool [N, T]."""
    right = correct.numpy().astype(bool)
    samples, timesteps = right.shape
    per_step = right.sum(0)
    ever = right.any(1)
    first = np.where(ever, right.argmax(1) + 1, timesteps)
    # trailing run of correct answers; OCT is its start
    trailing = np.logical_and.accumulate(right[:, ::-1], axis=1).sum(1)
    onset = np.where(trailing > 0, timesteps - trailing + 1, timesteps)
    cheapest = np.sort(np.where(ever, first - 1, timesteps))[: per_step[-1]]  # extra timesteps of the easiest samples
    return ReferencePoints(
        aet=timesteps - int(per_step[:-1].sum()) / samples,
        empirical_aet=int(first.sum()) / samples,
        oct=int(onset.sum()) / samples,
        oracle_accuracy=int(ever.sum()) / samples,
        oracle_timestep=int(np.where(ever, first, 1).sum()) / samples,
        lower_bound=1 + int(cheapest.sum()) / samples,
    )


def histogram_matched_accuracy(exit_timesteps: torch.Tensor, static: Array) -> float:
    """Return the exact expected accuracy of random exits with the same exit histogram: sum of h_t acc_t."""
    stopped = np.bincount(exit_timesteps.numpy() - 1, minlength=len(static))
    return math.fsum(stopped * static) / len(exit_timesteps)  # rounded once: identical on every machine


def fixed_hull(static: Array, average_exit_timestep: float) -> float:
    """Return the best accuracy that randomly mixed fixed timesteps reach at this average: on ``hull_points``."""
    return float(np.interp(average_exit_timestep, *hull_points(static)))


def hull_points(static: Array) -> tuple[Array, Array]:
    """Return corners (timestep, accuracy) of the upper concave hull of (t, acc_t), float64 [H] each.

    The hull never decreases with t: a mixture may also stop earlier than allowed.
    """
    points: list[tuple[float, float]] = []
    for t, accuracy in enumerate(np.maximum.accumulate(static), start=1):
        while len(points) >= 2 and _turns_up(points[-2], points[-1], (t, accuracy)):
            points.pop()
        points.append((float(t), float(accuracy)))
    timesteps, accuracies = zip(*points, strict=True)
    return np.array(timesteps), np.array(accuracies)


def _turns_up(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


def oracle_points(correct: torch.Tensor) -> tuple[Array, Array]:
    """Return corners (average exit timestep, accuracy) of the best curve of label-knowing exits, float64 [T + 1] each.

    Starting with all samples stopped at 1, samples run to their first correct timestep, those that reach it soonest
    first; all others stay at 1. The last corner is T itself. No policy on these logits is above the curve.
    """
    right = correct.numpy().astype(bool)
    samples, timesteps = right.shape
    first = right.argmax(1)[right.any(1)]  # extra timesteps until the first correct one
    gained = np.bincount(first, minlength=timesteps)
    spent = 1 + np.cumsum(gained * np.arange(timesteps)) / samples
    accuracy = np.cumsum(gained) / samples
    return np.append(spent, float(timesteps)), np.append(accuracy, accuracy[-1])


def area_share(curve: Sequence[tuple[float, float]], correct: torch.Tensor) -> float | None:
    """Return the area between curve and fixed-t hull as a share of the area between oracle and hull, on [1, T].

    1 is the oracle, 0 is mixing fixed timesteps, and a curve below the hull is negative.

    Args:
        curve: (average exit timestep, accuracy) of a strategy's policies, by ascending timestep; connected by straight
            lines, with the ends (1, acc_1) and (T, acc_T), where all samples stop at once or none stops early.
        correct: bool [N, T].

    Returns:
        The share, or None if oracle and hull enclose no area.
    """
    static: Array = correct.numpy().sum(0) / len(correct)
    ends = (1.0, float(static[0])), (float(len(static)), float(static[-1]))
    timesteps, accuracies = np.array([ends[0], *curve, ends[1]]).T
    hull = _area(*hull_points(static))
    possible = _area(*oracle_points(correct)) - hull
    return None if possible < _NOTHING else (_area(timesteps, accuracies) - hull) / possible


def _area(timesteps: Array, accuracies: Array) -> float:
    """Return the area under straight lines between the points, by ascending timestep."""
    return float((np.diff(timesteps) * (accuracies[1:] + accuracies[:-1])).sum() / 2)


def saving_realised(average_exit_timestep: float, lower_bound: float, timesteps: int) -> float | None:
    """Return the share of the possible saving: (T - average) / (T - lower bound), or None if nothing can be saved."""
    possible = timesteps - lower_bound
    return None if possible < _NOTHING else (timesteps - average_exit_timestep) / possible


def flips(correct: torch.Tensor) -> tuple[Array, Array]:
    """Return how many samples turn wrong, and how many turn correct, between t and t + 1, int64 [T - 1] each."""
    right = correct.numpy().astype(bool)
    before, after = right[:, :-1], right[:, 1:]
    return (before & ~after).sum(0), (~before & after).sum(0)


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy at each timestep, in bins of equal width: bin b is (b / B, (b + 1) / B].

    Attributes:
        samples: number in each bin, int64 [T, B].
        confidence: their mean confidence, float64 [T, B], NaN for an empty bin.
        accuracy: the share of them that is correct, likewise.
    """

    samples: Array
    confidence: Array
    accuracy: Array

    @property
    def calibration_error(self) -> Array:
        """ECE at each t, float64 [T]: sum over bins of n_b / N |accuracy_b - confidence_b|.

        Sources: Naeini, Cooper and Hauskrecht, AAAI 2015; Guo et al., ICML 2017, Eq. 3.
        """
        gaps = np.where(self.samples > 0, np.abs(self.accuracy - self.confidence), 0.0)
        error: Array = (self.samples * gaps).sum(1) / self.samples.sum(1)
        return error


def reliability(trace: Trace, *, bins: int = BINS, alpha: float = 1.0) -> Reliability:
    """Return confidence against accuracy, for the largest softmax of the mean readout, max_k softmax(m_t / alpha).

    Args:
        trace: recorded logits.
        bins: B, of equal width on [0, 1].
        alpha: a temperature, > 0.
    """
    timesteps = trace.timesteps
    samples = np.zeros((timesteps, bins), dtype=np.int64)
    right = np.zeros((timesteps, bins), dtype=np.int64)
    summed = np.zeros((timesteps, bins))
    steps = torch.arange(1, timesteps + 1, dtype=torch.float64)[:, None]
    for start, totals in trace.totals():
        below = totals.sub_(totals.amax(2, keepdim=True)).div_(steps * alpha)
        powers = exponential(below.numpy())
        confidence = (1.0 / row_sums(powers.reshape(-1, trace.classes))).reshape(powers.shape[:2])
        places = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
        correct = trace.correct[start : start + len(totals)].numpy()
        for t in range(timesteps):
            samples[t] += np.bincount(places[:, t], minlength=bins)
            right[t] += np.bincount(places[correct[:, t], t], minlength=bins)
            summed[t] += np.bincount(places[:, t], weights=confidence[:, t], minlength=bins)
    held = np.where(samples > 0, samples, np.nan)
    return Reliability(samples, summed / held, right / held)
