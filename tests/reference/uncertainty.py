"""Tests of differences and their adjustment, in exact fractions and by counting every case."""

import itertools
from fractions import Fraction
from math import comb


def binomial_tail(samples: int, share: Fraction, most: int) -> Fraction:
    """P(Bin(n, share) <= most)."""
    return sum((comb(samples, k) * share**k * (1 - share) ** (samples - k) for k in range(most + 1)), Fraction(0))


def certifiable_harm(samples: int, points: str, level: str) -> int:
    """The largest harm whose tail is at most the level; -1 where none is."""
    most = -1
    while most < samples and binomial_tail(samples, Fraction(points) / 100, most + 1) <= Fraction(level):
        most += 1
    return most


def mcnemar(only_first: int, only_second: int) -> Fraction:
    """Share of all 2 ** n ways for n discordant samples to fall that are at least as lopsided, two-sided."""
    n = only_first + only_second
    observed = abs(only_first - only_second)
    return sum((Fraction(comb(n, k), 2**n) for k in range(n + 1) if abs(2 * k - n) >= observed), Fraction(0))


def sign_flips(differences: list[int]) -> Fraction:
    """Share of all 2 ** N sign patterns whose sum is at least as far from 0 as the observed one."""
    patterns = list(itertools.product((-1, 1), repeat=len(differences)))
    observed = abs(sum(differences))
    far = sum(abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= observed for signs in patterns)
    return Fraction(far, len(patterns))


def holm_rejects(p: list[float], level: float) -> set[int]:
    """Which hypotheses Holm's procedure rejects, step by step from the smallest p-value."""
    rejected: set[int] = set()
    for step, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[index] * (len(p) - step) > level:
            break
        rejected.add(index)
    return rejected
