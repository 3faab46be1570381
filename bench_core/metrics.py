"""Scores of a workload and of a policy on it: accuracy, exit timesteps, and the reference points that use labels.

All are plain functions of the correctness matrix [N, T] (is argmax S_t the label?) and of exit timesteps [N].
"""

from dataclasses import dataclass

import numpy as np
import torch

from bench_core.costs.operations import Array
from bench_core.trace import Trace

__all__ = [
    "ReferencePoints",
    "fixed_hull",
    "histogram_matched_accuracy",
    "reference_points",
    "static_accuracy",
]


@dataclass(frozen=True)
class ReferencePoints:
    """Label-using reference points of a workload. None but ``lower_bound`` bounds a policy: the others charge T
    timesteps for samples that are never right, and a policy may stop those at 1.

    Attributes:
        aet: SEENN's average exit timestep (Li et al., NeurIPS 2023, Eq. 4): T - sum of static accuracies before T.
        empirical_aet: mean first timestep that is right, T where none is (Eq. 13 of its appendix).
        oct: mean first timestep from which all later ones are right, T where the last is wrong (Wu et al., 2301.09522).
        oracle_accuracy: share right at some timestep (Li, Jones and Furber, ICCV 2023).
        oracle_timestep: mean exit timestep of that oracle with never-right samples stopped at 1; with T charged for
            them it is ``empirical_aet``.
        lower_bound: the fewest average timesteps that any rule needs for static accuracy at T, hopeless samples
            stopping at 1.
    """

    aet: float
    empirical_aet: float
    oct: float
    oracle_accuracy: float
    oracle_timestep: float
    lower_bound: float


def static_accuracy(trace: Trace) -> Array:
    """Accuracy of stopping every sample at t, float64 [T]."""
    accuracy: Array = trace.correct.numpy().sum(0) / len(trace)
    return accuracy


def reference_points(correct: torch.Tensor) -> ReferencePoints:
    """The reference points of a correctness matrix, bool [N, T]."""
    right = correct.numpy().astype(bool)
    samples, timesteps = right.shape
    per_step = right.sum(0)
    ever = right.any(1)
    first = np.where(ever, right.argmax(1) + 1, timesteps)
    # trailing run of right answers: OCT is where it begins
    trailing = np.logical_and.accumulate(right[:, ::-1], axis=1).sum(1)
    onset = np.where(trailing > 0, timesteps - trailing + 1, timesteps)
    cheapest = np.sort(np.where(ever, first - 1, timesteps))[: per_step[-1]]  # extra steps of the easiest samples
    return ReferencePoints(
        aet=timesteps - int(per_step[:-1].sum()) / samples,
        empirical_aet=int(first.sum()) / samples,
        oct=int(onset.sum()) / samples,
        oracle_accuracy=int(ever.sum()) / samples,
        oracle_timestep=int(np.where(ever, first, 1).sum()) / samples,
        lower_bound=1 + int(cheapest.sum()) / samples,
    )


def histogram_matched_accuracy(exit_timesteps: torch.Tensor, static: Array) -> float:
    """Accuracy of stopping at random with the same histogram of exit timesteps, exactly: sum of h_t acc_t."""
    shares = np.bincount(exit_timesteps.numpy() - 1, minlength=len(static)) / len(exit_timesteps)
    return float(shares @ static)


def fixed_hull(static: Array, average_exit_timestep: float) -> float:
    """The best accuracy that mixing fixed timesteps at random reaches at this average: the upper concave hull of
    (t, acc_t), made to never fall with t (a mixture may also stop earlier than its allowance)."""
    points: list[tuple[float, float]] = []
    for t, accuracy in enumerate(np.maximum.accumulate(static), start=1):
        while len(points) >= 2 and _turns_up(points[-2], points[-1], (t, accuracy)):
            points.pop()
        points.append((float(t), float(accuracy)))
    timesteps, accuracies = zip(*points, strict=True)
    return float(np.interp(average_exit_timestep, timesteps, accuracies))


def _turns_up(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])
