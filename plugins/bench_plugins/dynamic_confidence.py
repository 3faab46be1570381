"""Dynamic Confidence: stop when the largest softmax probability of S_t / alpha is above a threshold.

Source: Li, Jones and Furber, "Unleashing the Potential of Spiking Neural Networks with Dynamic Confidence", ICCV 2023.
alpha ("confidence smoothing") is constant over time, so confidence grows with the evidence at a rate it sets. The
authors' demo has alpha 30 at T = 27; here it is fitted by default: the alpha with the least negative
log-likelihood at T on calibration data. Negative log-likelihood is convex in 1 / alpha, so there is one.
"""

import math
from typing import ClassVar, Self

import torch
from scipy.optimize import brentq

from bench_core import Calibration, Evidence, ExitStrategy, Knob, Overhead, ScoreStrategy, hookimpl
from bench_plugins._readout import largest_probability, readout, softmax_overhead

SMALLEST, LARGEST = 1e-3, 1e6  # range that alpha is fitted in
CHUNK = 2**18  # values looked at together: what stays in a core's cache


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
    total = torch.cat([chunk[:, -1].clone() for _, chunk in trace.totals()])  # a view would keep every timestep
    below_top = total.sub_(total.amax(1, keepdim=True))  # a softmax doesn't see the shift
    right = float(below_top.gather(1, trace.labels[:, None]).mean())
    chunks = below_top.split(max(1, CHUNK // trace.classes))

    def slope(log_alpha: float) -> float:
        expected = 0.0
        for chunk in chunks:
            weights = torch.exp(chunk / math.exp(log_alpha))
            expected += float(((weights * chunk).sum(1) / weights.sum(1)).sum())
        return expected / len(trace) - right  # falls as alpha grows

    low, high = math.log(SMALLEST), math.log(LARGEST)
    if slope(low) <= 0:
        return SMALLEST
    if slope(high) >= 0:
        return LARGEST
    return math.exp(brentq(slope, low, high, xtol=1e-13))


@hookimpl
def bench_exit_strategies() -> list[ExitStrategy]:
    return [DynamicConfidence()]
