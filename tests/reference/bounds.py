"""Reference points of a workload from its correctness ``[N][T]``, by definition and by brute force."""

import itertools

Correctness = list[list[bool]]


def right_at(correct: Correctness, t: int) -> int:
    """c_t: how many samples are right at timestep t (1-based)."""
    return sum(row[t - 1] for row in correct)


def aet(correct: Correctness) -> float:
    """SEENN's Eq. 4: (1/N) [c_1 + sum_{t>=2} t (c_t - c_{t-1}) + T (N - c_T)]."""
    samples, last = len(correct), len(correct[0])
    total = right_at(correct, 1)
    for t in range(2, last + 1):
        total += t * (right_at(correct, t) - right_at(correct, t - 1))
    return (total + last * (samples - right_at(correct, last))) / samples


def first_right(row: list[bool]) -> int:
    """min{ t : right at t }, T where there is none."""
    for t, right in enumerate(row, start=1):
        if right:
            return t
    return len(row)


def settling(row: list[bool]) -> int:
    """min{ t : right at every t' >= t }, T where the last is wrong."""
    for t in range(1, len(row) + 1):
        if all(row[t - 1 :]):
            return t
    return len(row)


def empirical_aet(correct: Correctness) -> float:
    """Mean first right timestep."""
    return sum(first_right(row) for row in correct) / len(correct)


def oct_mean(correct: Correctness) -> float:
    """Mean optimal cutoff timestep."""
    return sum(settling(row) for row in correct) / len(correct)


def oct_accuracy(correct: Correctness) -> float:
    """Accuracy of stopping each sample at its optimal cutoff timestep."""
    return sum(row[settling(row) - 1] for row in correct) / len(correct)


def oracle_accuracy(correct: Correctness) -> float:
    """Share of samples right at some timestep."""
    return sum(any(row) for row in correct) / len(correct)


def oracle_timestep(correct: Correctness) -> float:
    """Mean exit of an oracle that stops at the first right timestep, and at 1 where there is none."""
    return sum(first_right(row) if any(row) else 1 for row in correct) / len(correct)


def lower_bound(correct: Correctness) -> float:
    """The least average over *every* assignment of exit timesteps that is as accurate as static T. T ** N of them."""
    samples, last = len(correct), len(correct[0])
    needed = right_at(correct, last)
    best = last * samples
    for exits in itertools.product(range(1, last + 1), repeat=samples):
        if sum(row[t - 1] for row, t in zip(correct, exits, strict=True)) >= needed:
            best = min(best, sum(exits))
    return best / samples


def best_mixture(static: list[float], allowance: float) -> float:
    """The best expected accuracy of any random mixture of two fixed timesteps whose mean is within the allowance."""
    best = 0.0
    for i, early in enumerate(static, start=1):
        if i > allowance:
            break
        best = max(best, early)
        for j, late in enumerate(static, start=1):
            if j > allowance:
                share = (allowance - i) / (j - i)
                best = max(best, (1 - share) * early + share * late)
    return best


def histogram_matched(exits: list[int], static: list[float]) -> float:
    """Expected accuracy when the same exit timesteps are handed to the samples at random."""
    return sum(static[t - 1] for t in exits) / len(exits)


def oracle_at(correct: Correctness, allowance: float) -> float:
    """The best accuracy of exits that know labels: cheapest gains first, the last sample run with a probability."""
    samples = len(correct)
    costs = sorted(first_right(row) - 1 for row in correct if any(row))
    left, right = (allowance - 1) * samples, 0.0
    for cost in costs:
        if cost > left:
            return (right + (left / cost if left > 0 else 0)) / samples
        left -= cost
        right += 1
    return right / samples


def area_share(curve: list[tuple[float, float]], correct: Correctness, steps: int = 4000) -> float | None:
    """Areas by the midpoint rule, every curve looked up point by point."""
    samples, last = len(correct), len(correct[0])
    if last == 1:
        return None
    static = [right_at(correct, t) / samples for t in range(1, last + 1)]
    points = [(1.0, static[0]), *curve, (float(last), static[-1])]
    over_hull = possible = 0.0
    width = (last - 1) / steps
    for k in range(steps):
        at = 1 + (k + 0.5) * width
        hull = best_mixture(static, at)
        over_hull += (on_line(points, at) - hull) * width
        possible += (oracle_at(correct, at) - hull) * width
    return None if possible < 1e-6 else over_hull / possible


def on_line(points: list[tuple[float, float]], at: float) -> float:
    """The height of the straight lines between points, by ascending place, at a place between two of them."""
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= at <= x1 and x1 > x0:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    raise ValueError(at)
