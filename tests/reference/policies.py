"""SEENN-II by loops, from its equations: the objective, and where a preferred action stops a sample. No torch."""

import math


def softmax(scores):
    highest = max(scores)
    powers = [math.exp(x - highest) for x in scores]
    return [p / sum(powers) for p in powers]


def objective(scores, correct, beta, largest_weight):
    """mean_x w(x) sum_k v_k(x) [beta (1 - c_k) - 2^-k c_k]. ``scores``: of each action [N][T]; ``correct``: [N][T]."""
    rho = sum(row[0] for row in correct) / len(correct)
    ratio = largest_weight if rho == 1 else min(rho / (1 - rho), largest_weight)
    total = 0.0
    for row, values in zip(correct, scores, strict=True):
        weight = 1.0 if row[0] else ratio
        for k, (chance, right) in enumerate(zip(softmax(values), row, strict=True)):
            total += weight * chance * (beta * (1 - right) - 2.0**-k * right)
    return total / len(correct)


def planned_exit(scores):
    """The action with the largest score, the first of equals, as a timestep."""
    best = 0
    for k, value in enumerate(scores):
        if value > scores[best]:
            best = k
    return best + 1
