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
