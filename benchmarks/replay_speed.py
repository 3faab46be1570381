"""How fast score strategies are swept over every distinct threshold, beside straightforward per-sample loops.

    python benchmarks/replay_speed.py [--samples 10000] [--loop-samples 200]

All are timed in this one run on the same random logits (T = 16, K = 10). Sweeps include fits, loops don't: they stop
each sample at each of 100 thresholds; they are timed on a part of the samples and scaled up in proportion. ``arrays``
are loops with one small array per sample, as papers' code has them; ``lists`` are the same in plain Python numbers, the
fastest loops there are.
"""

import argparse
import bisect
import math
import time
from collections.abc import Callable

import numpy as np
import torch

from bench_core import Calibration, ExitStrategy, Trace, load_registry
from bench_core.exits.strategy import ScoreFamily
from bench_core.replay.controller import score_table
from bench_core.replay.sweep import distinct_thresholds, sort_scores
from bench_core.util.arrays import Array

TIMESTEPS, CLASSES, THRESHOLDS = 16, 10, 100

ListScore = Callable[[list[float], int], float]  # (S_t, t) -> score
ArrayScore = Callable[[Array, int], float]


def random_trace(samples: int) -> Trace:
    """Logits whose evidence for the label grows with t."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    logits = torch.randn(samples, TIMESTEPS, CLASSES, generator=generator)
    logits[torch.arange(samples), :, labels] += torch.linspace(0.2, 1.0, TIMESTEPS)
    return Trace(logits, labels, torch.arange(samples))


def sweep(strategy: ExitStrategy, trace: Trace) -> int:
    """Fit, then average exit timestep and accuracy at every distinct threshold; how many there are."""
    family = strategy.fit(Calibration(trace))
    assert isinstance(family, ScoreFamily)
    scores = sort_scores(score_table(family.strategy, trace), trace)
    thresholds = distinct_thresholds(scores)
    scores.curve(thresholds)
    return len(thresholds)


def loop_lists(logits: list[list[list[float]]], labels: list[int], score: ListScore, thresholds: list[float]) -> None:
    """The same by loops over thresholds, samples and timesteps, in plain Python numbers."""
    for threshold in thresholds:
        exits = correct = 0
        for sample, label in zip(logits, labels, strict=True):
            total = [0.0] * CLASSES
            for t, step in enumerate(sample, start=1):
                total = [a + b for a, b in zip(total, step, strict=True)]
                if t == TIMESTEPS or score(total, t) > threshold:
                    break
            exits += t
            correct += total.index(max(total)) == label


def loop_arrays(logits: Array, labels: Array, score: ArrayScore, thresholds: list[float]) -> None:
    """The same by loops over thresholds, samples and timesteps, on an array [K] each."""
    for threshold in thresholds:
        exits = correct = 0
        for sample, label in zip(logits, labels, strict=True):
            total = np.zeros(CLASSES)
            for t, step in enumerate(sample, start=1):
                total += step
                if t == TIMESTEPS or score(total, t) > threshold:
                    break
            exits += t
            correct += total.argmax() == label


def spread_thresholds(logits: list[list[list[float]]], score: ListScore) -> list[float]:
    """Thresholds spread evenly over the running maxima of the scores, as the distinct thresholds of the sweep are."""
    maxima = []
    for sample in logits:
        total, highest = [0.0] * CLASSES, -math.inf
        for t, step in enumerate(sample[:-1], start=1):
            total = [a + b for a, b in zip(total, step, strict=True)]
            highest = max(highest, score(total, t))
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


def list_scores(known: list[list[float]]) -> dict[str, ListScore]:
    """The scores in plain Python numbers; ``known`` is what conformal p-values are counted in, ascending at each t."""

    def conformal_score(total: list[float], t: int) -> float:
        highest = max(total)
        surprise = math.log(sum(math.exp(x - highest) for x in total)) + highest - sorted(total)[-2]
        samples = len(known[t - 1])
        return -TIMESTEPS * (1 + samples - bisect.bisect_left(known[t - 1], surprise)) / (samples + 1)

    return {
        "seenn-i": lambda total, _t: max(softmax(total)),
        "dt-snn": lambda total, _t: entropy_score(total),
        "dynamic-confidence": lambda total, _t: max(softmax([x / 4 for x in total])),
        "topk-cutoff": lambda total, _t: gap_score(total),
        "margin": lambda total, _t: gap_score(softmax(total)),
        "spikecp": conformal_score,
    }


def array_softmax(total: Array) -> Array:
    powers = np.exp(total - total.max())
    return powers / powers.sum()


def array_entropy_score(total: Array) -> float:
    p = array_softmax(total)
    return (p * np.log(p + 1e-300)).sum() / math.log(CLASSES)


def array_gap_score(total: Array) -> float:
    second, first = np.sort(total)[-2:]
    return first - second


def array_scores(known: Array) -> dict[str, ArrayScore]:
    """The same on arrays."""

    def conformal_score(total: Array, t: int) -> float:
        surprise = np.log(np.exp(total - total.max()).sum()) + total.max() - np.sort(total)[-2]
        samples = len(known[t - 1])
        score: float = -TIMESTEPS * (1 + samples - np.searchsorted(known[t - 1], surprise)) / (samples + 1)
        return score

    return {
        "seenn-i": lambda total, _t: array_softmax(total).max(),
        "dt-snn": lambda total, _t: array_entropy_score(total),
        "dynamic-confidence": lambda total, _t: array_softmax(total / 4).max(),
        "topk-cutoff": lambda total, _t: array_gap_score(total),
        "margin": lambda total, _t: array_gap_score(array_softmax(total)),
        "spikecp": conformal_score,
    }


def label_surprise(trace: Trace) -> Array:
    """-log softmax(S_t)[label] of every sample, ascending at each t, float64 [T, N]."""
    logs = trace.logits.to(torch.float64).cumsum(1).log_softmax(2)
    surprise: Array = -logs.gather(2, trace.labels[:, None, None].expand(-1, TIMESTEPS, 1)).squeeze(2).numpy()
    return np.sort(surprise.T, axis=1)


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
    few = trace.select(torch.arange(arguments.loop_samples))
    logits, labels = few.logits.to(torch.float64), few.labels
    scale = len(trace) / arguments.loop_samples
    known = label_surprise(trace)
    in_lists, on_arrays = list_scores(known.tolist()), array_scores(known)
    start = time.perf_counter()
    _ = trace.correct
    totals = [time.perf_counter() - start, 0.0, 0.0]
    print(f"{'correctness, once':20s} {totals[0]:8.3f} s")
    for name, score in in_lists.items():
        start = time.perf_counter()
        distinct = sweep(strategies[name], trace)
        swept = time.perf_counter()
        thresholds = spread_thresholds(logits.tolist(), score)
        lists = time.perf_counter()
        loop_lists(logits.tolist(), labels.tolist(), score, thresholds)
        arrays = time.perf_counter()
        loop_arrays(logits.numpy(), labels.numpy(), on_arrays[name], thresholds)
        end = time.perf_counter()
        times = [swept - start, (arrays - lists) * scale, (end - arrays) * scale]
        totals = [total + seconds for total, seconds in zip(totals, times, strict=True)]
        print(
            f"{name:20s} {times[0]:8.3f} s for {distinct} thresholds; loops for {THRESHOLDS}: "
            f"arrays {times[2]:7.1f} s, lists {times[1]:7.1f} s"
        )
    fast, lists, arrays = totals
    print(
        f"{'all':20s} {fast:8.3f} s: {arrays / fast:.0f} times faster than loops on arrays ({arrays:.0f} s), "
        f"{lists / fast:.0f} times faster than on lists ({lists:.0f} s)"
    )


if __name__ == "__main__":
    main()
