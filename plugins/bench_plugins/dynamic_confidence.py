"""Dynamic Confidence: stop when the largest softmax probability of S_t / alpha is above a threshold.

Source: Li, Jones and Furber, "Unleashing the Potential of Spiking Neural Networks with Dynamic Confidence", ICCV 2023.
alpha ("confidence smoothing") is constant over time, so confidence grows with the evidence at a rate it sets. The
authors' demo has alpha 30 at T = 27; here it is fitted by default: the alpha with the least negative
log-likelihood at T on calibration data. Negative log-likelihood is convex in 1 / alpha, so there is one.
"""

import math
import weakref
from collections.abc import Callable, Iterable
from functools import cache
from typing import ClassVar, Self

import torch
from scipy.optimize import brentq

from bench_core import Calibration, Evidence, ExitStrategy, Knob, Overhead, ScoreStrategy, Trace, hookimpl
from bench_core.logits import samples_in_cache
from bench_plugins._readout import below_top, largest_probability, readout, softmax_overhead

SMALLEST, LARGEST = 1e-3, 1e6  # range that alpha is fitted in
LARGE = 2**22  # values at T from which on a part of the samples says where to look first
SPARSE = 16  # every so many samples are that part
NEAR = 0.05  # how far from theirs, in log alpha, that of all samples is first looked for
HELD = 2**26  # values at T that are held in memory at most, 512 MiB


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
        return largest_probability(readout(evidence, "sum", self.parameters["alpha"]))

    def overhead(self, classes: int) -> Overhead:
        return softmax_overhead(classes, scaled=True)


def _fitted_alpha(calibration: Calibration) -> float:
    """Where negative log-likelihood at T has no slope in 1 / alpha, or the end of the range that lies beyond."""
    trace = calibration.trace
    low, high = math.log(SMALLEST), math.log(LARGEST)
    slope = _slope(trace)
    if len(trace) * trace.classes > LARGE:  # a part of the samples says where to look: few passes over all are needed
        part = _slope(trace.select(torch.arange(0, len(trace), SPARSE)))
        around = low if part(low) <= 0 else high if part(high) >= 0 else _root(part, low, high, NEAR / 100)
        ends, low, high = (low, high), max(low, around - NEAR), min(high, around + NEAR)
        while low > ends[0] and slope(low) <= 0:
            low, high = max(ends[0], around - 4 * (around - low)), low
        while high < ends[1] and slope(high) >= 0:
            low, high = high, min(ends[1], around + 4 * (high - around))
    if slope(low) <= 0:
        return SMALLEST
    if slope(high) >= 0:
        return LARGEST
    return math.exp(_root(slope, low, high, 1e-13))


def _root(slope: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    known = weakref.ref(slope)  # scipy's wrapper is a cycle of references, which would keep all that slope holds

    def called(log_alpha: float) -> float:
        found = known()
        assert found is not None
        return found(log_alpha)

    return float(brentq(called, low, high, xtol=tolerance))


def _slope(trace: Trace) -> Callable[[float], float]:
    """The slope of negative log-likelihood at T as a function of log alpha; it falls as alpha grows."""
    chunks = _below_top_at_end(trace)
    of_labels, start = torch.empty(len(trace), 1, dtype=torch.float64), 0
    for chunk in chunks():
        stop = start + len(chunk)
        of_labels[start:stop] = chunk.gather(1, trace.labels[start:stop, None])
        start = stop
    right = float(of_labels.mean())

    @cache  # a root finder asks for the ends of its range again
    def slope(log_alpha: float) -> float:
        expected = 0.0
        for chunk in chunks():
            weights = (chunk / math.exp(log_alpha)).exp_()
            whole = weights.sum(1)
            expected += float((weights.mul_(chunk).sum(1) / whole).sum())
        return expected / len(trace) - right

    return slope


def _below_top_at_end(trace: Trace) -> Callable[[], Iterable[torch.Tensor]]:
    """S_T less its largest, a few samples at a time, float64 [n, K]; computed each time anew where it is too large."""
    if len(trace) * trace.classes > HELD:
        return lambda: (below_top(totals[:, -1]) for _, totals in trace.totals())
    held = torch.empty(len(trace), trace.classes, dtype=torch.float64)
    for start, totals in trace.totals():
        held[start : start + len(totals)] = below_top(totals[:, -1])
    return lambda: held.split(samples_in_cache(trace.classes))


@hookimpl
def bench_exit_strategies() -> list[ExitStrategy]:
    return [DynamicConfidence()]
