"""Operating points: one rule for all strategies, applied to the ``select`` half of the calibration data.

- ``iso-accuracy d``: the smallest average exit timestep whose accuracy is at least that of static T minus d points.
- ``budget b``: the most accurate policy whose average exit timestep is at most b T.
- ``risk d, a``: the smallest average exit timestep among the policies for which the select half proves, at confidence
  1 - a, that they harm at most d points of the inputs: correct at T, wrong at the exit.

Ties go to the higher accuracy, then to the policy that stops later. If nothing qualifies, iso-accuracy and risk fall
back to static T, and a budget is infeasible.

Iso-accuracy holds on the select half; on unseen data it is as likely as not to be missed slightly, because the
cheapest of many policies is the luckiest. Risk is Learn then Test (Angelopoulos, Bates, Candès, Jordan and Lei,
arXiv 2110.01052, 2021) with fixed-sequence testing: the policies are a grid of at most 1,000, fixed on the ``fit``
half and tested from the one that stops last to the one that stops earliest, up to the first failure. The level a is
therefore not divided among them. Harm is 0 or 1, so the p-value of "more than d are harmed" is exactly the binomial
tail P(Bin(n, d) <= observed). The proof concerns inputs drawn like the calibration data and one operating point of one
strategy: it fails with probability at most a over the draw of the select half.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from scipy.stats import binom

from bench_core.errors import UsageError
from bench_core.util.arrays import Array

__all__ = ["OperatingPoint", "certifiable_harm", "choose"]


@dataclass(frozen=True)
class OperatingPoint:
    """A rule for choosing a policy from a family.

    Attributes:
        kind: ``iso-accuracy``, ``budget`` or ``risk``.
        value: points of accuracy that may be lost (0 .. 100), the share of T that may be spent, in (0, 1], or points of
            the inputs that may be harmed, in (0, 100).
        level: for risk only: the probability, in (0, 1), that more are harmed nevertheless.
    """

    kind: Literal["iso-accuracy", "budget", "risk"]
    value: float
    level: float | None = None

    @classmethod
    def parse(cls, text: str) -> "OperatingPoint":
        """Parse text such as ``iso-accuracy:0.5``, ``budget:0.25`` or ``risk:1,0.05``; raise UsageError if invalid."""
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
        """Return the text that ``parse`` reads."""
        level = "" if self.level is None else f",{self.level:.15g}"
        return f"{self.kind}:{self.value:.15g}{level}"

    def minimum_correct(self, static_correct: int, samples: int) -> int:
        """Return the fewest correct samples that iso-accuracy accepts: an integer, so rounding cannot decide."""
        return max(0, math.ceil(static_correct - self._exact / 100 * samples))

    def allowance(self, samples: int, timesteps: int) -> int:
        """Return the largest sum of exit timesteps that a budget allows."""
        return math.floor(self._exact * timesteps * samples)

    @property
    def _exact(self) -> Fraction:
        """Value as written: 0.29 is 29/100, not the nearest binary fraction."""
        return Fraction(repr(self.value))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def certifiable_harm(samples: int, points: float, level: float) -> int:
    """Return how many of n samples may be harmed to still prove harm of at most ``points`` of inputs at ``level``.

    This is the largest x with P(Bin(n, points / 100) <= x) <= level, or -1 if n is too small for any proof. With 2,500
    samples, one point and a level of 0.05 allow 16 harmed samples, 0.64 %.
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
    """Return the policy of a family that an operating point selects.

    Args:
        point: the operating point.
        exit_sums: summed exit timesteps of each policy on the select half, int64 [P], in the family's order as fixed on
            the fit half, from the policy that stops earliest to the one that stops last.
        correct: correct samples of each policy there, int64 [P].
        static_correct: correct samples at T.
        samples: N of the select half.
        timesteps: T.
        harmed: samples correct at T and wrong at the exit, int64 [P]; required for risk.

    Returns:
        Index into the P policies, or None if none qualifies.
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
    """Test in fixed sequence from the policy that stops last; return those before the first failure, bool [P]."""
    passed: Array = np.logical_and.accumulate((harmed <= most)[::-1])[::-1]
    return passed
