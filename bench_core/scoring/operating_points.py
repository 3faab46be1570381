"""Operating points: one rule for all strategies, applied to the ``select`` half of the calibration data.

- ``iso-accuracy d``: the smallest average exit timestep whose accuracy is at least that of static T minus d points.
- ``budget b``: the most accurate policy whose average exit timestep is at most b T.
- ``risk d, a``: the smallest average exit timestep among the policies of which the select half proves, at confidence
  1 - a, that they harm at most d points of the inputs: right at T, wrong at the exit.

Ties go to the higher accuracy, then to the policy that stops later. Where nothing qualifies, iso-accuracy and risk fall
back to static T, and a budget is infeasible.

Iso-accuracy keeps its word on the select half; on unseen data it is as likely as not to miss by a little, because the
cheapest of many policies is the luckiest. Risk is Learn then Test (Angelopoulos, Bates, Candès, Jordan and Lei,
arXiv 2110.01052, 2021) with fixed-sequence testing: the policies are a grid of at most 1,000, fixed on the ``fit``
half, tested from the one that stops last to the one that stops earliest, and the first that fails ends it. So the
level a is not divided among them. Harm is 0 or 1, so the p-value of "more than d are harmed" is exactly the binomial
tail P(Bin(n, d) <= observed). The proof is about inputs drawn like the calibration data and about one operating point
of one strategy: it fails with probability a at most over the draw of the select half.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from scipy.stats import binom

from bench_core.costs.operations import Array
from bench_core.errors import UsageError

__all__ = ["OperatingPoint", "certifiable_harm", "choose"]


@dataclass(frozen=True)
class OperatingPoint:
    """A stated rule for picking a policy from a family.

    Attributes:
        kind: ``iso-accuracy``, ``budget`` or ``risk``.
        value: points of accuracy that may be lost (0 .. 100), the share of T that may be spent, in (0, 1], or points of
            the inputs that may be harmed, in (0, 100).
        level: of risk only: the probability, in (0, 1), with which more may be harmed after all.
    """

    kind: Literal["iso-accuracy", "budget", "risk"]
    value: float
    level: float | None = None

    @classmethod
    def parse(cls, text: str) -> "OperatingPoint":
        """From text such as ``iso-accuracy:0.5``, ``budget:0.25`` or ``risk:1,0.05``. Raises UsageError."""
        kind, _, numbers = text.partition(":")
        if kind == "risk":
            return cls._risk(text, numbers)
        value = _number(numbers)
        if kind == "iso-accuracy" and 0 <= value <= 100:
            return cls("iso-accuracy", value)
        if kind == "budget" and 0 < value <= 1:
            return cls("budget", value)
        raise UsageError(
            f"operating point {text!r}: write iso-accuracy:POINTS with 0 <= POINTS <= 100, budget:SHARE with "
            "0 < SHARE <= 1, or risk:POINTS,LEVEL"
        )

    @classmethod
    def _risk(cls, text: str, numbers: str) -> "OperatingPoint":
        points, comma, level = numbers.partition(",")
        value, chance = _number(points), _number(level)
        if comma and value == 0 and 0 < chance < 1:
            raise UsageError(
                f"operating point {text!r}: no finite number of samples proves that nobody is harmed; "
                "take more than 0 points, such as risk:0.5,0.05"
            )
        if not (comma and 0 < value < 100 and 0 < chance < 1):
            raise UsageError(
                f"operating point {text!r}: write risk:POINTS,LEVEL with 0 < POINTS < 100 and 0 < LEVEL < 1, "
                "such as risk:1,0.05"
            )
        return cls("risk", value, chance)

    def __str__(self) -> str:
        level = "" if self.level is None else f",{self.level:.15g}"
        return f"{self.kind}:{self.value:.15g}{level}"

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


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def certifiable_harm(samples: int, points: float, level: float) -> int:
    """How many of n samples may be harmed for the proof that at most ``points`` of all inputs are, at ``level``.

    The largest x with P(Bin(n, points / 100) <= x) <= level; -1 where n is too small for any proof. At 2,500 samples
    one point and a level of 0.05 pass 16 harmed samples, 0.64 %.
    """
    return int(np.searchsorted(binom.cdf(np.arange(samples + 1), samples, points / 100), level, side="right")) - 1


def choose(
    point: OperatingPoint,
    exit_sums: Array,
    correct: Array,
    *,
    static_correct: int,
    samples: int,
    timesteps: int,
    harmed: Array | None = None,
) -> int | None:
    """Which policy of a family an operating point picks.

    Args:
        exit_sums: summed exit timesteps of each policy on the select half, int64 [P], in the family's order as the fit
            half fixed it, from the policy that stops earliest to the one that stops last.
        correct: right samples of each policy there, int64 [P].
        static_correct: right samples at T.
        samples: N of the select half.
        timesteps: T.
        harmed: samples right at T and wrong at the exit, int64 [P]; risk needs them.

    Returns:
        Index into the P policies, or None where none qualifies.
    """
    later_first = -np.arange(len(exit_sums))
    if point.kind == "budget":
        allowed = exit_sums <= point.allowance(samples, timesteps)
        preference = np.lexsort((later_first, -correct))
    else:
        preference = np.lexsort((later_first, -correct, exit_sums))
        if point.kind == "risk":
            assert harmed is not None and point.level is not None
            allowed = _certified(harmed, certifiable_harm(samples, point.value, point.level))
        else:
            allowed = correct >= point.minimum_correct(static_correct, samples)
    qualified = preference[allowed[preference]]
    return int(qualified[0]) if len(qualified) else None


def _certified(harmed: Array, most: int) -> Array:
    """Fixed-sequence testing from the policy that stops last: all before the first that fails, bool [P]."""
    passed: Array = np.logical_and.accumulate((harmed <= most)[::-1])[::-1]
    return passed
