"""Dynamic Confidence: stop when the largest softmax probability of S_t / alpha is above a threshold.

Source: Li, Jones and Furber, "Unleashing the Potential of Spiking Neural Networks with Dynamic Confidence", ICCV 2023.
alpha ("confidence smoothing") is constant over time, so confidence grows with the evidence at a rate it sets. The
authors' demo uses alpha = 30 at T = 27; by default alpha is fitted here, minimising the negative log-likelihood at T
on calibration data. Negative log-likelihood is convex in 1 / alpha, so the minimum is unique.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np
import scipy
import torch

from bench_core import (
    Calibration,
    Evidence,
    ExitStrategy,
    FloatArray,
    Knob,
    Overhead,
    ScoreStrategy,
    Trace,
    exact_sum,
    exponential,
    hookimpl,
    logarithm,
    row_sums,
    samples_in_cache,
)
from bench_plugins._readout import readout, softmax_overhead

SMALLEST, LARGEST = 1e-3, 1e6  # range in which alpha is fitted
EXACT = 1e-13  # tolerance of log alpha
LARGE = 2**22  # number of values at T from which a part of the samples gives a first estimate
HELD = 2**24  # most values at T to keep in memory
PARTS = (256, 16)  # every how many samples to take one
ROUGH = 1e-3  # tolerance of log alpha for the first part
TRUSTED = 2e-5  # a step in log alpha after which the next is smaller than ``EXACT``
MOST_STEPS = 8

Labels = np.ndarray[Any, np.dtype[np.int64]]
Chunks = Callable[[], Iterable[tuple[FloatArray, Labels]]]
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
        """Return a copy with alpha fitted, or this strategy if alpha is given."""
        if self.parameters["alpha"] is not None:
            return self
        return self.with_parameters({"alpha": _fitted_alpha(calibration)})

    def score(self, evidence: Evidence) -> torch.Tensor:
        """Return max softmax(S_t / alpha), float64 [B]."""
        return readout(evidence, "sum", self.parameters["alpha"]).largest_probability

    def overhead(self, classes: int) -> Overhead:
        """Return the cost of a scaled softmax."""
        return softmax_overhead(classes, scaled=True)


def _fitted_alpha(calibration: Calibration) -> float:
    """Return the alpha at which negative log-likelihood at T has zero slope in 1 / alpha, clamped to the range."""
    trace = calibration.trace
    log_alpha = _of_large(trace) if len(trace) * trace.classes > LARGE else None
    return _exp(_root(trace, EXACT) if log_alpha is None else log_alpha)


def _of_large(trace: Trace) -> float | None:
    """Return log alpha, estimated from a part of the samples, then more, then all; None if the last step fails."""
    log_alpha: float | None = None
    for every in PARTS:
        part = trace.select(torch.arange(0, len(trace), every))
        near = None if log_alpha is None else _polished(_chunks(part), log_alpha)
        log_alpha = _root(part, ROUGH) if near is None else near
    return _polished(_chunks(trace), log_alpha) if log_alpha is not None else None


def _polished(chunks: Chunks, near: float) -> float | None:
    """Refine log alpha with Halley's method, which usually takes two passes; return None if it diverges."""
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
        if not (abs(step) < 1.0 and _log(SMALLEST) < log_alpha < _log(LARGEST)):
            return None
        if abs(step) < TRUSTED:
            return log_alpha
    return None


def _derivatives(chunks: Chunks, log_alpha: float) -> tuple[float, float, float]:
    """Return the slope of negative log-likelihood in 1 / alpha and its two derivatives, as functions of log alpha."""
    scale, samples = _exp(-log_alpha), 0
    terms: tuple[list[float], list[float], list[float]] = ([], [], [])
    for below, labels in chunks():
        powers = exponential(below * scale)
        total = row_sums(powers.copy())
        moments = []
        for _ in range(3):
            powers *= below
            moments.append(row_sums(powers.copy()) / total)
        first, second, third = moments
        variance = second - first * first
        skew = third - 3.0 * first * second + 2.0 * first * first * first
        for known, new in zip(terms, (first - _of_labels(below, labels), variance, skew), strict=True):
            known.append(exact_sum(new.tolist()))
        samples += len(labels)
    slope, spread, lean = (exact_sum(known) / samples for known in terms)
    return slope, -scale * spread, scale * spread + scale * scale * lean


def _root(trace: Trace, tolerance: float) -> float:
    """Return the log alpha with zero slope, clamped to the range."""
    low, high = _log(SMALLEST), _log(LARGEST)
    slope = _slope(trace)
    if slope(low) <= 0:
        return low
    if slope(high) >= 0:
        return high
    known = weakref.ref(slope)  # scipy's wrapper is a reference cycle, which would keep everything in slope alive

    def called(log_alpha: float) -> float:
        found = known()
        assert found is not None
        return found(log_alpha)

    return float(scipy.optimize.brentq(called, low, high, xtol=tolerance))


def _slope(trace: Trace) -> Callable[[float], float]:
    """Return the slope of negative log-likelihood at T in 1 / alpha, as a decreasing function of log alpha."""
    chunks = _chunks(trace)
    right = exact_sum(exact_sum(_of_labels(below, labels).tolist()) for below, labels in chunks()) / len(trace)

    @cache  # the root finder evaluates the ends of its range again
    def slope(log_alpha: float) -> float:
        alpha, sums = _exp(log_alpha), []
        for below, _ in chunks():
            powers = exponential(below / alpha)
            weighted = row_sums(powers * below)
            sums.append(exact_sum((weighted / row_sums(powers)).tolist()))
        return exact_sum(sums) / len(trace) - right

    return slope


def _chunks(trace: Trace) -> Chunks:
    """Return ``_ends`` as a function, cached in memory if not too large."""
    if len(trace) * trace.classes > HELD:
        return lambda: _ends(trace)
    held = list(_ends(trace))
    return lambda: held


def _ends(trace: Trace) -> Iterator[tuple[FloatArray, Labels]]:
    """Yield S_T minus its largest value, float64 [n, K], and labels [n], for a few samples at a time."""
    for start, logits in trace.rows.pieces(samples_in_cache(trace.classes)):
        steps = logits.to("cpu")
        total = steps[:, 0].to(torch.float64, copy=True)
        for t in range(1, trace.timesteps):
            total += steps[:, t]
        total -= total.amax(1, keepdim=True)
        yield total.numpy(), trace.labels[start : start + len(total)].numpy()


def _of_labels(below: FloatArray, labels: Labels) -> FloatArray:
    found: FloatArray = np.take_along_axis(below, labels[:, None], 1)[:, 0]
    return found


def _exp(value: float) -> float:
    return float(exponential(np.array([value]))[0])


def _log(value: float) -> float:
    return float(logarithm(np.array([value]))[0])


@hookimpl
def bench_exit_strategies() -> list[ExitStrategy]:
    """Return Dynamic Confidence."""
    return [DynamicConfidence()]
