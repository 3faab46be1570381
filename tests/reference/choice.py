"""Operating points by their words, in exact fractions of the numbers as people write them."""

from fractions import Fraction

from tests.reference.uncertainty import binomial_tail


def iso_accuracy(points: str, sums: list[int], correct: list[int], static_correct: int, samples: int) -> int | None:
    """The smallest summed exit whose accuracy is at least static T's less ``points``; then accuracy, then later."""
    least = Fraction(static_correct, samples) - Fraction(points) / 100
    best = None
    for i in range(len(sums)):
        if Fraction(correct[i], samples) < least:
            continue
        if best is None or sums[i] < sums[best]:
            best = i
        elif sums[i] == sums[best] and correct[i] >= correct[best]:
            best = i  # the later of equals
    return best


def budget(share: str, sums: list[int], correct: list[int], samples: int, timesteps: int) -> int | None:
    """The most accurate whose average exit is at most ``share`` of T; then later."""
    most = Fraction(share) * timesteps
    best = None
    for i in range(len(sums)):
        if Fraction(sums[i], samples) <= most and (best is None or correct[i] >= correct[best]):
            best = i
    return best


def risk(points: str, level: str, sums: list[int], correct: list[int], harmed: list[int], samples: int) -> int | None:
    """Test from the last policy to the first until one fails; the cheapest before that, then accuracy, then later."""
    best = None
    for i in reversed(range(len(sums))):
        if binomial_tail(samples, Fraction(points) / 100, harmed[i]) > Fraction(level):
            break
        if best is None or (sums[i], -correct[i]) < (sums[best], -correct[best]):
            best = i
    return best
