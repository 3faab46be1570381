"""SpikeCP: stop when the conformal prediction set holds at most a few labels.

Source: Chen, Park and Simeone, "SpikeCP: Delay-Adaptive Reliable Spiking Neural Networks via Conformal Prediction",
arXiv 2305.11322. At every timestep each label c gets a conformal p-value from held-out calibration samples,

    p_t(c) = (1 + #{i : s_t(x_i, y_i) >= s_t(x, c)}) / (n + 1),     s_t(x, c) = -log softmax(S_t)[c],

and the set keeps the labels whose p-value, corrected for T tests, exceeds alpha. On exchangeable data the set at the
exit contains the label with probability at least 1 - alpha:

- ``correction=bonferroni``: T p_t(c). Valid for any dependence between timesteps.
- ``correction=simes``: min over r of T p_(r)(c) / r, p_(1) <= p_(2) <= … the p-values so far. Never larger sets; valid
  under positive dependence, which is plausible here but not proven.
"""

from typing import ClassVar

import numpy as np
import torch

from bench_core import (
    Array,
    Calibration,
    Evidence,
    ExitPolicy,
    ExitStrategy,
    Knob,
    ListedPolicies,
    Observation,
    Operations,
    Overhead,
    PolicyFamily,
    ScoreFamily,
    ScoreStrategy,
    State,
    hookimpl,
)
from bench_plugins._readout import softmax_overhead

# Levels compared if no exact sweep is possible; rounded, since processors differ in the last digits of powers.
GRID = tuple(round(float(x), 6) for x in np.geomspace(1e-3, 0.9, 30))


def label_log_probability(evidence: Evidence, labels: torch.Tensor) -> torch.Tensor:
    """Return log softmax(S_t)[y], float64 [B]."""
    softmax = evidence.readout()
    return softmax.of(labels) + softmax.log_largest_probability


def log_probabilities(evidence: Evidence) -> torch.Tensor:
    """Return log softmax(S_t), float64 [B, K], rounded as in ``label_log_probability``, since ties count."""
    total = evidence.total
    return total - total.amax(1, keepdim=True) + evidence.readout().log_largest_probability[:, None]


class ConformalPValues:
    """p-values of every label at every timestep, relative to the calibration samples' scores.

    Args:
        calibration: held-out data, exchangeable with the test data.
    """

    def __init__(self, calibration: Calibration) -> None:
        """Sort the calibration samples' scores at each timestep."""
        scores = -calibration.observed(label_log_probability)
        self._scores = scores.T.contiguous().sort(1).values  # [T, n], ascending

    def __call__(self, evidence: Evidence) -> torch.Tensor:
        """Return p_t(c), float64 [B, K]."""
        return self._of(evidence.t, log_probabilities(evidence))

    def ranked(self, evidence: Evidence, rank: int) -> torch.Tensor:
        """Return the largest p_t(c) after skipping the ``rank`` < K largest, float64 [B]."""
        if rank == 1:  # p-values never decrease as probabilities grow
            softmax = evidence.readout()
            return self._of(evidence.t, softmax.runner_up + softmax.log_largest_probability)
        return self._of(evidence.t, log_probabilities(evidence).topk(rank + 1, 1).values[:, rank])

    def _of(self, t: int, logs: torch.Tensor) -> torch.Tensor:
        known = self._scores[t - 1]
        below = torch.searchsorted(known, -logs)  # scores strictly below
        p_values = (1 + len(known) - below).to(torch.float64) / (len(known) + 1)
        return torch.where(logs.isnan(), torch.nan, p_values)  # the search would treat NaN as a number


class _BonferroniScore(ScoreStrategy):
    """Minus the smallest alpha at which the set is small enough."""

    name: ClassVar[str] = "spikecp"
    reference: ClassVar[str] = "Chen, Park and Simeone, arXiv 2305.11322"
    family_knob: ClassVar[Knob] = Knob(
        "alpha", low=0.0, high=1.0, open_low=True, open_high=True, help="share of sets that may miss the label"
    )
    knobs: ClassVar[tuple[Knob, ...]] = (
        Knob("max_set", "int", 1, low=1, help="stop when the set has at most so many labels"),
        Knob("correction", "choice", "bonferroni", choices=("bonferroni", "simes"), help="for looking T times"),
    )
    p_values: ConformalPValues

    def score(self, evidence: Evidence) -> torch.Tensor:
        max_set = self.parameters["max_set"]
        assert isinstance(max_set, int)
        if max_set >= evidence.classes:
            return torch.zeros(evidence.batch, dtype=torch.float64)
        return -(evidence.T * self.p_values.ranked(evidence, max_set))

    def threshold_of(self, knob: Array) -> Array:
        return np.nextafter(-knob, -np.inf)  # alpha* <= alpha stops, but the comparison is strict

    def knob_of(self, threshold: Array) -> Array:
        return np.nextafter(-threshold, -np.inf)

    def overhead(self, classes: int) -> Overhead:
        return conformal_overhead(classes)


class SpikeCP(ExitStrategy):
    """Conformal prediction sets at every timestep; stop when the set has at most ``max_set`` labels."""

    name: ClassVar[str] = "spikecp"
    reference: ClassVar[str] = _BonferroniScore.reference
    family_knob: ClassVar[Knob] = _BonferroniScore.family_knob
    knobs: ClassVar[tuple[Knob, ...]] = _BonferroniScore.knobs
    observes: ClassVar[tuple[Observation, ...]] = (label_log_probability,)
    nested: ClassVar[bool] = True

    def fit(self, calibration: Calibration) -> PolicyFamily:
        """Return the family for the chosen correction, with p-values from the calibration data."""
        p_values = ConformalPValues(calibration)
        if self.parameters["correction"] == "bonferroni":
            inner = _BonferroniScore(**self.parameters)
            inner.p_values = p_values
            return ScoreFamily(inner)
        max_set = self.parameters["max_set"]
        return ListedPolicies(GRID, lambda alpha: SimesPolicy(p_values, alpha, max_set))


class SimesPolicy(ExitPolicy):
    """Stop on Simes-corrected sets; the p-values so far are the state."""

    def __init__(self, p_values: ConformalPValues, alpha: float, max_set: object) -> None:
        """Use these p-values with level ``alpha`` and sets of at most ``max_set`` labels."""
        self._p_values, self._alpha, self._max_set = p_values, alpha, max_set

    def overhead(self, classes: int) -> Overhead:
        """Return the cost of conformal p-values."""
        return conformal_overhead(classes)

    def start(self, evidence: Evidence) -> State:
        """Start without p-values."""
        return {"seen": torch.ones(evidence.batch, evidence.classes, 0, dtype=torch.float64)}

    def should_exit(self, evidence: Evidence, state: State) -> tuple[torch.Tensor, State]:
        """Stop the samples whose corrected set is small enough."""
        newest = self._p_values(evidence)
        seen = torch.cat([state["seen"], newest[:, :, None]], dim=2).sort(2).values
        ranks = torch.arange(1, seen.shape[2] + 1, dtype=torch.float64)
        combined = (evidence.T * seen / ranks).amin(2)
        return smallest_level(combined, self._max_set) <= self._alpha, {"seen": seen}


def smallest_level(corrected: torch.Tensor, max_set: object) -> torch.Tensor:
    """Return the smallest alpha at which at most ``max_set`` labels have a larger corrected p-value, float64 [B]."""
    assert isinstance(max_set, int)
    classes = corrected.shape[1]
    if max_set >= classes:
        return torch.zeros(len(corrected), dtype=torch.float64)
    return corrected.sort(1, descending=True).values[:, max_set]


def conformal_overhead(classes: int) -> Overhead:
    """Return the cost of a log softmax, a binary search per label (charged as ten comparisons), and counting labels."""
    return softmax_overhead(classes, scaled=False, more=Operations(logarithms=1, comparisons=11 * classes))


@hookimpl
def bench_exit_strategies() -> list[ExitStrategy]:
    """Return SpikeCP."""
    return [SpikeCP()]
