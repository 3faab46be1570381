"""Dynamic Confidence: stop when the largest softmax probability of S_t / alpha is above a threshold.

Source: Li, Jones and Furber, "Unleashing the Potential of Spiking Neural Networks with Dynamic Confidence", ICCV 2023.
alpha ("confidence smoothing") is constant over time, so confidence grows with the evidence at a rate it sets. The
authors' demo has alpha 30 at T = 27; here it is fitted by default: the alpha with the least negative
log-likelihood at T on calibration data. Negative log-likelihood is convex in 1 / alpha, so there is one.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import ClassVar, Self

import torch
from scipy.optimize import brentq

from bench_core import Calibration, Evidence, ExitStrategy, Knob, Overhead, ScoreStrategy, Trace, hookimpl
from bench_core.logits import samples_in_cache
from bench_plugins._readout import readout, softmax_overhead

SMALLEST, LARGEST = 1e-3, 1e6  # range that alpha is fitted in
EXACT = 1e-13  # how exactly log alpha is found
LARGE = 2**22  # values at T from which on parts of the samples say where to look
HELD = 2**24  # values at T that are held in memory at most
PARTS = (256, 16)  # every so many samples are one
ROUGH = 1e-3  # how exactly log alpha of the first part is found
TRUSTED = 2e-5  # a step in log alpha after which the next would be smaller than ``EXACT``
MOST_STEPS = 8

Chunks = Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]]
"""A few samples at a time: S_T less its largest, float64 [n, K], and labels [n]."""


class DynamicConfidence(ScoreStrategy):
    """max softmax(S_t / alpha) > threshold."""

    name: ClassVar[str] = "dynamic-confidence"
    reference: ClassVar[str] = "Li, Jones and Furber, ICCV 2023"
    family_knob: ClassVar[Knob] = Knob(
        "threshold", low=0.0, high=1.0, help="stop when max softmax(S_t / alpha) exceeds it"
    )
    knobs: ClassVar[tuple[Knob, ...]] = (
        Knob("alpha", "float", None, low=0.0, open_low=True, help="fitted if not given"),
    )

    def learn(self, calibration: Calibration) -> Self:
        if self.parameters["alpha"] is not None:
            return self
        return self.with_parameters({"alpha": _fitted_alpha(calibration)})

    def score(self, evidence: Evidence) -> torch.Tensor:
        return readout(evidence, "sum", self.parameters["alpha"]).largest_probability

    def overhead(self, classes: int) -> Overhead:
        return softmax_overhead(classes, scaled=True)


def _fitted_alpha(calibration: Calibration) -> float:
    """Where negative log-likelihood at T has no slope in 1 / alpha, or the end of the range that lies beyond."""
    trace = calibration.trace
    log_alpha = _of_large(trace) if len(trace) * trace.classes > LARGE else None
    return math.exp(_root(trace, EXACT) if log_alpha is None else log_alpha)


def _of_large(trace: Trace) -> float | None:
    """log alpha from a part of the samples, then from more of them, then from all; None where all don't lead there."""
    log_alpha: float | None = None
    for every in PARTS:
        part = trace.select(torch.arange(0, len(trace), every))
        near = None if log_alpha is None else _polished(_chunks(part), log_alpha)
        log_alpha = _root(part, ROUGH) if near is None else near
    return _polished(_chunks(trace), log_alpha) if log_alpha is not None else None


def _polished(chunks: Chunks, near: float) -> float | None:
    """log alpha from a value near it by Halley's method, which takes two passes as a rule; None where it strays."""
    log_alpha = near
    for _ in range(MOST_STEPS):
        slope, first, second = _derivatives(chunks, log_alpha)
        if not first < 0.0:
            return None
        newton = slope / first
        bend = 1.0 - newton * second / (2.0 * first)
        if not bend > 0.1:
            return None
        step = newton / bend
        log_alpha -= step
        if not (abs(step) < 1.0 and math.log(SMALLEST) < log_alpha < math.log(LARGEST)):
            return None
        if abs(step) < TRUSTED:
            return log_alpha
    return None


def _derivatives(chunks: Chunks, log_alpha: float) -> tuple[float, float, float]:
    """The slope of negative log-likelihood in 1 / alpha and its two derivatives, as functions of log alpha."""
    scale, sums, samples = math.exp(-log_alpha), torch.zeros(3, dtype=torch.float64), 0
    for below, labels in chunks():
        of_labels = below.gather(1, labels[:, None]).squeeze(1)
        weights = torch.softmax(below * scale, 1)
        first, second, third = (weights.mul_(below).sum(1) for _ in range(3))  # moments
        variance = second - first * first
        skew = third - 3.0 * first * second + 2.0 * first**3
        sums += torch.stack([(first - of_labels).sum(), variance.sum(), skew.sum()])
        samples += len(labels)
    slope, spread, lean = (sums / samples).tolist()
    return slope, -scale * spread, scale * spread + scale * scale * lean


def _root(trace: Trace, tolerance: float) -> float:
    """log alpha where the slope is 0, or the end of the range that lies beyond."""
    low, high = math.log(SMALLEST), math.log(LARGEST)
    slope = _slope(trace)
    if slope(low) <= 0:
        return low
    if slope(high) >= 0:
        return high
    known = weakref.ref(slope)  # scipy's wrapper is a cycle of references, which would keep all that slope holds

    def called(log_alpha: float) -> float:
        found = known()
        assert found is not None
        return found(log_alpha)

    return float(brentq(called, low, high, xtol=tolerance))


def _slope(trace: Trace) -> Callable[[float], float]:
    """The slope of negative log-likelihood at T in 1 / alpha, as a function of log alpha; it falls as alpha grows."""
    chunks = _chunks(trace)
    right = float(torch.cat([below.gather(1, labels[:, None]) for below, labels in chunks()]).mean())

    @cache  # a root finder asks for the ends of its range again
    def slope(log_alpha: float) -> float:
        expected = 0.0
        for below, _ in chunks():
            weights = torch.softmax(below / math.exp(log_alpha), 1)
            expected += float(weights.mul_(below).sum(1).sum())
        return expected / len(trace) - right

    return slope


def _chunks(trace: Trace) -> Chunks:
    """``_ends``, held in memory where they aren't too large."""
    if len(trace) * trace.classes > HELD:
        return lambda: _ends(trace)
    held = list(_ends(trace))
    return lambda: held


def _ends(trace: Trace) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A few samples at a time: S_T less its largest, float64 [n, K], and labels [n]."""
    for start, logits in trace.rows.pieces(samples_in_cache(trace.classes)):
        steps = logits.to("cpu")
        total = steps[:, 0].to(torch.float64, copy=True)
        for t in range(1, trace.timesteps):
            total += steps[:, t]
        yield total.sub_(total.amax(1, keepdim=True)), trace.labels[start : start + len(total)]


@hookimpl
def bench_exit_strategies() -> list[ExitStrategy]:
    return [DynamicConfidence()]
