"""Operating points: one rule for all strategies, applied to the ``select`` half of the calibration data.

- ``iso-accuracy d``: the smallest average exit timestep whose accuracy is at least that of static T minus d points.
- ``budget b``: the most accurate policy whose average exit timestep is at most b T.

Ties go to the higher accuracy, then to the policy that stops later. Where nothing qualifies, iso-accuracy falls back to
static T, and a budget is infeasible.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from bench_core.costs.operations import Array
from bench_core.errors import UsageError

__all__ = ["OperatingPoint", "choose"]


@dataclass(frozen=True)
class OperatingPoint:
    """A stated rule for picking a policy from a family.

    Attributes:
        kind: ``iso-accuracy`` or ``budget``.
        value: points of accuracy that may be lost (0 .. 100), or the share of T that may be spent, in (0, 1].
    """

    kind: Literal["iso-accuracy", "budget"]
    value: float

    @classmethod
    def parse(cls, text: str) -> "OperatingPoint":
        """From text such as ``iso-accuracy:0.5`` or ``budget:0.25``. Raises UsageError."""
        kind, _, number = text.partition(":")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if kind == "iso-accuracy" and 0 <= value <= 100:
            return cls("iso-accuracy", value)
        if kind == "budget" and 0 < value <= 1:
            return cls("budget", value)
        raise UsageError(
            f"operating point {text!r}: write iso-accuracy:POINTS with 0 <= POINTS <= 100, or budget:SHARE with "
            "0 < SHARE <= 1"
        )

    def __str__(self) -> str:
        return f"{self.kind}:{self.value:.15g}"

    def minimum_correct(self, static_correct: int, samples: int) -> int:
        """The fewest right samples that iso-accuracy accepts, in whole samples so that rounding can't decide."""
        return max(0, math.ceil(static_correct - self._exact / 100 * samples))

    def allowance(self, samples: int, timesteps: int) -> int:
        """The largest sum of exit timesteps that a budget allows."""
        return math.floor(self._exact * timesteps * samples)

    @property
    def _exact(self) -> Fraction:
        """The value as it is written: 0.29 is 29/100 and not the nearest binary fraction."""
        return Fraction(repr(self.value))


def choose(
    point: OperatingPoint, exit_sums: Array, correct: Array, *, static_correct: int, samples: int, timesteps: int
) -> int | None:
    """Which policy of a family an operating point picks.

    Args:
        exit_sums: summed exit timesteps of each policy on the select half, int64 [P], in the family's order, from
            the policy that stops earliest to the one that stops last.
        correct: right samples of each policy there, int64 [P].
        static_correct: right samples at T.
        samples: N of the select half.
        timesteps: T.

    Returns:
        Index into the P policies, or None where none qualifies.
    """
    later_first = -np.arange(len(exit_sums))
    if point.kind == "iso-accuracy":
        allowed = correct >= point.minimum_correct(static_correct, samples)
        preference = np.lexsort((later_first, -correct, exit_sums))
    else:
        allowed = exit_sums <= point.allowance(samples, timesteps)
        preference = np.lexsort((later_first, -correct))
    qualified = preference[allowed[preference]]
    return int(qualified[0]) if len(qualified) else None
