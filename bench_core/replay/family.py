"""Average exit timestep and accuracy of each policy of a family on a trace."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from bench_core.exits.strategy import ListedPolicies, PolicyFamily, ScoreFamily
from bench_core.knobs import KnobValue, plain_value
from bench_core.replay.controller import InputFrames, Outcome, outcome_at, replay_policy, score_table
from bench_core.replay.sweep import SortedScores, distinct_thresholds, exit_timesteps_at, sort_scores
from bench_core.trace.trace import Trace
from bench_core.util.arrays import Array

__all__ = ["FamilyOnTrace", "candidates", "thin"]


@dataclass
class FamilyOnTrace:
    """A fitted family's policies on one trace. Replays and score tables are computed once and cached.

    Attributes:
        family: the fitted family.
        trace: recorded logits.
        inputs: network input by position in the trace, for policies that use it.
        table: precomputed scores of a score strategy, float64 [N, T-1].
    """

    family: PolicyFamily
    trace: Trace
    inputs: InputFrames | None = None
    table: torch.Tensor | None = None

    def values(self) -> list[KnobValue]:
        """Return every knob value that makes a difference on this trace; exact for score strategies."""
        if isinstance(self.family, ScoreFamily):
            strategy = self.family.strategy
            knob = strategy.family_knob
            low = np.nextafter(knob.low, np.inf) if knob.open_low else knob.low
            high = np.nextafter(knob.high, -np.inf) if knob.open_high else knob.high
            knobs = np.clip(strategy.knob_of(distinct_thresholds(self._sorted)), low, high)
            return [plain_value(float(v)) for v in knobs]
        assert isinstance(self.family, ListedPolicies)
        return list(map(plain_value, self.family.values))

    def curve(self, values: Sequence[KnobValue]) -> tuple[Array, Array]:
        """Return summed exit timesteps and number of correct samples per knob value, int64 [P] each."""
        if isinstance(self.family, ScoreFamily):
            return self._sorted.curve(self.family.strategy.threshold_of(np.array(values, dtype=np.float64)))
        outcomes = [self.outcome(value) for value in values]
        sums = np.array([int(outcome.exit_timesteps.sum()) for outcome in outcomes])
        correct = np.array([int((outcome.predictions == self.trace.labels).sum()) for outcome in outcomes])
        return sums, correct

    def harmed(self, values: Sequence[KnobValue]) -> Array:
        """Return the number of samples correct at T but wrong at their exit, per knob value, int64 [P]."""
        if isinstance(self.family, ScoreFamily):
            return self._sorted.harmed(self.family.strategy.threshold_of(np.array(values, dtype=np.float64)))
        right_at_end = self.trace.correct[:, -1]
        wrong = (self.outcome(value).predictions != self.trace.labels for value in values)
        return np.array([int((right_at_end & w).sum()) for w in wrong], dtype=np.int64)

    def outcome(self, value: KnobValue) -> Outcome:
        """Return where the policy of one knob value stops each sample."""
        if value not in self._outcomes:
            if isinstance(self.family, ScoreFamily):
                threshold = self.family.policy(value).threshold
                self._outcomes[value] = outcome_at(self.trace, exit_timesteps_at(self._table, threshold))
            else:
                self._outcomes[value] = replay_policy(self.family.policy(value), self.trace, self.inputs)
        return self._outcomes[value]

    @cached_property
    def _outcomes(self) -> dict[KnobValue, Outcome]:
        return {}

    @cached_property
    def _table(self) -> torch.Tensor:
        if self.table is not None:
            return self.table
        assert isinstance(self.family, ScoreFamily)
        return score_table(self.family.strategy, self.trace, self.inputs)

    @cached_property
    def _sorted(self) -> SortedScores:
        return sort_scores(self._table, self.trace)


def candidates(family: FamilyOnTrace, limit: int = 1000) -> list[KnobValue]:
    """Return at most ``limit`` knob values, evenly spread over the average exit timestep on the trace, ascending in it.

    Every strategy gets the same number of candidates, regardless of how many thresholds it distinguishes.
    """
    values = family.values()
    sums, _ = family.curve(values)
    order = np.argsort(sums, kind="stable")
    return [values[i] for i in order[thin(sums[order], limit)]]


def thin(ascending: Array, limit: int) -> Array:
    """Return indices of at most ``limit`` entries of an ascending array, one per value, evenly over its range."""
    _, first = np.unique(ascending, return_index=True)
    if len(first) <= limit:
        return first
    kept = ascending[first]
    targets = np.linspace(kept[0], kept[-1], limit)
    right = np.clip(np.searchsorted(kept, targets), 1, len(kept) - 1)
    nearest = np.where(targets - kept[right - 1] <= kept[right] - targets, right - 1, right)
    spread: Array = first[np.unique(nearest)]
    return spread
