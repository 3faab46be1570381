"""How fast score strategies are swept over every distinct threshold, beside straightforward per-sample loops.

    python benchmarks/replay_speed.py [--samples 10000] [--loop-samples 200]

Both sides are timed in this one run on the same random logits (T = 16, K = 10). The loops stop each sample at each of
100 thresholds in plain Python; they are timed on a part of the samples and scaled up in proportion.
"""

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
import torch

from bench_core import Calibration, ScoreStrategy, Trace, load_registry
from bench_core.replay import score_table
from bench_core.sweep import distinct_thresholds, sort_scores

TIMESTEPS, CLASSES, THRESHOLDS = 16, 10, 100


def random_trace(samples: int) -> Trace:
    """Logits whose evidence for the label grows with t."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    logits = torch.randn(samples, TIMESTEPS, CLASSES, generator=generator)
    logits[torch.arange(samples), :, labels] += torch.linspace(0.2, 1.0, TIMESTEPS)
    return Trace(logits, labels, torch.arange(samples))


def sweep(strategy: ScoreStrategy, trace: Trace) -> int:
    """Average exit timestep and accuracy at every distinct threshold; how many there are."""
    scores = sort_scores(score_table(strategy.learn(Calibration(trace)), trace), trace)
    thresholds = distinct_thresholds(scores)
    scores.curve(thresholds)
    return len(thresholds)


def loop(
    logits: list[list[list[float]]], labels: list[int], score: Callable[[list[float]], float], thresholds: list[float]
) -> None:
    """The same by loops over thresholds, samples and timesteps."""
    for threshold in thresholds:
        exits = correct = 0
        for sample, label in zip(logits, labels, strict=True):
            total = [0.0] * CLASSES
            for t, step in enumerate(sample, start=1):
                total = [a + b for a, b in zip(total, step, strict=True)]
                if t == TIMESTEPS or score(total) > threshold:
                    break
            exits += t
            correct += total.index(max(total)) == label


def spread_thresholds(logits: list[list[list[float]]], score: Callable[[list[float]], float]) -> list[float]:
    """Thresholds spread evenly over the running maxima of the scores, as the distinct thresholds of the sweep are."""
    maxima = []
    for sample in logits:
        total, highest = [0.0] * CLASSES, -math.inf
        for step in sample[:-1]:
            total = [a + b for a, b in zip(total, step, strict=True)]
            highest = max(highest, score(total))
            maxima.append(highest)
    return np.quantile(maxima, np.linspace(0, 1, THRESHOLDS)).tolist()


def softmax(total: list[float]) -> list[float]:
    highest = max(total)
    powers = [math.exp(x - highest) for x in total]
    whole = sum(powers)
    return [p / whole for p in powers]


def entropy_score(total: list[float]) -> float:
    return sum(p * math.log(p) for p in softmax(total) if p > 0) / math.log(CLASSES)


def gap_score(total: list[float]) -> float:
    first, second = sorted(total)[-1:-3:-1]
    return first - second


def margin_score(total: list[float]) -> float:
    return gap_score(softmax(total))


LOOP_SCORES: dict[str, Callable[[list[float]], float]] = {
    "seenn-i": lambda total: max(softmax(total)),
    "dt-snn": entropy_score,
    "dynamic-confidence": lambda total: max(softmax([x / 4 for x in total])),
    "topk-cutoff": gap_score,
    "margin": margin_score,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--loop-samples", type=int, default=200)
    arguments = parser.parse_args()
    trace = random_trace(arguments.samples)
    strategies = load_registry().strategies
    print(f"{len(trace)} samples, T = {TIMESTEPS}, K = {CLASSES}, {torch.get_num_threads()} threads")
    sweep(strategies["seenn-i"], trace)  # warm up
    trace = random_trace(arguments.samples)
    fast_total = slow_total = 0.0
    few = trace.select(torch.arange(arguments.loop_samples))
    logits, labels = few.logits.tolist(), few.labels.tolist()
    start = time.perf_counter()
    _ = trace.correct
    shared = time.perf_counter() - start
    fast_total += shared
    print(f"{'correctness, once':20s} {shared:8.3f} s")
    for name, score in LOOP_SCORES.items():
        start = time.perf_counter()
        distinct = sweep(strategies[name], trace)
        fast = time.perf_counter() - start
        thresholds = spread_thresholds(logits, score)
        start = time.perf_counter()
        loop(logits, labels, score, thresholds)
        slow = (time.perf_counter() - start) * len(trace) / arguments.loop_samples
        fast_total, slow_total = fast_total + fast, slow_total + slow
        print(f"{name:20s} {fast:8.3f} s for {distinct} thresholds; loops {slow:8.1f} s for {THRESHOLDS}")
    print(f"{'all':20s} {fast_total:8.3f} s against {slow_total:8.1f} s: {slow_total / fast_total:.0f} times faster")


if __name__ == "__main__":
    main()
