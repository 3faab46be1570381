"""The sweep by sorting says what replaying every distinct threshold says, ties, infinities and neighbours included.

Where a score is the sum of exponentials, its last bits may be others in a replay, which computes it among the samples
that are left. Of such a score, samples that aren't settled may stop elsewhere.
"""

import itertools
import math
import sys
from typing import ClassVar

import numpy as np
import pytest
import torch
from bench_plugins.baselines import Margin
from bench_plugins.dt_snn import DtSnn
from bench_plugins.dynamic_confidence import DynamicConfidence
from bench_plugins.seenn_i import SeennI
from bench_plugins.spikecp import SpikeCP
from bench_plugins.topk_cutoff import TopKCutoff
from hypothesis import given, settings
from hypothesis import strategies as st

from bench_core import Evidence, Trace
from bench_core.exits.strategy import ScorePolicy, ScoreStrategy
from bench_core.replay.controller import Outcome, outcome_at, replay_policy, score_table
from bench_core.replay.family import FamilyOnTrace
from bench_core.replay.sweep import distinct_thresholds, exit_timesteps_at, sort_scores
from tests.helpers.ties import assert_same_exits
from tests.reference import rules
from tests.traces import calibrations, make_trace, samples_of, traces

pytestmark = pytest.mark.numerics

quick = settings(max_examples=15, deadline=None)
STRATEGIES = {
    "seenn-i sum": SeennI(),
    "seenn-i mean": SeennI(accumulate="mean", alpha=0.5),
    "dt-snn sum": DtSnn(),
    "dt-snn mean": DtSnn(accumulate="mean"),
    "dynamic-confidence fitted": DynamicConfidence(),
    "dynamic-confidence given": DynamicConfidence(alpha=3),
    "topk-cutoff exact": TopKCutoff(),
    "topk-cutoff bins": TopKCutoff(search="bins", bins=9),
    "margin sum": Margin(),
    "margin mean": Margin(accumulate="mean"),
    "spikecp": SpikeCP(),
}
every_strategy = pytest.mark.parametrize("name", STRATEGIES)


class FirstLogit(ScoreStrategy):
    """The score is o_t of class 0; class 1 says -1 for a score of -inf and 1 for one of +inf."""

    name: ClassVar[str] = "first-logit"
    reference: ClassVar[str] = "a test"

    def score(self, evidence: Evidence) -> torch.Tensor:
        value, sign = evidence.step_logits[:, 0], evidence.step_logits[:, 1]
        return torch.where(sign == 0, value, sign * math.inf)


def scored(scores: list[list[float]]) -> Trace:
    """A trace on which FirstLogit gives these scores [N][T-1]; the last timestep's doesn't count."""
    logits = [
        [[0.0, math.copysign(1.0, s)] if math.isinf(s) else [s, 0.0] for s in row] + [[0.0, 0.0]] for row in scores
    ]
    labels = torch.arange(len(scores)) % 2
    return Trace(torch.tensor(logits, dtype=torch.float64), labels, torch.arange(len(scores)))


def check_sweep(strategy: ScoreStrategy, trace: Trace, *, batch: int = 4096, exact: bool = False) -> list[list[int]]:
    """Compare sweep and replay at every distinct threshold; the exit timesteps at each, thresholds ascending.

    Args:
        exact: the score has the same bits in every batch.
    """
    table = score_table(strategy, trace)
    swept = sort_scores(table, trace)
    thresholds = distinct_thresholds(swept)
    sums, correct = swept.curve(thresholds)
    exits = []
    for threshold, exit_sum, right in zip(thresholds.tolist(), sums.tolist(), correct.tolist(), strict=True):
        expected = outcome_at(trace, exit_timesteps_at(table, threshold))
        assert int(expected.exit_timesteps.sum()) == exit_sum
        assert int((expected.predictions == trace.labels).sum()) == right
        policy = ScorePolicy(strategy, threshold)
        outcome = replay_policy(policy, trace, batch=batch)
        if exact:
            assert outcome.exit_timesteps.tolist() == expected.exit_timesteps.tolist()
        assert_same_exits(policy, trace, outcome.exit_timesteps, expected.exit_timesteps)
        assert_outcome(outcome, outcome_at(trace, outcome.exit_timesteps))
        exits.append(expected.exit_timesteps.tolist())
    return exits


def assert_outcome(found: Outcome, expected: Outcome) -> None:
    assert torch.equal(found.exit_timesteps, expected.exit_timesteps)
    assert torch.equal(found.predictions, expected.predictions)
    assert torch.equal(found.forced, expected.forced)


@every_strategy
@given(trace=traces(samples=10, timesteps=6, classes=12), batch=st.sampled_from((1, 3, 4096)))
@quick
def test_the_sweep_equals_replay_at_every_distinct_threshold(name, trace, batch):
    check_sweep(STRATEGIES[name].fit(calibrations(trace)).strategy, trace, batch=batch)


@every_strategy
@given(trace=traces(samples=10, timesteps=6, classes=12))
@quick
def test_the_knob_values_of_a_family_do_on_the_sweep_what_their_policies_do_on_replay(name, trace):
    family = STRATEGIES[name].fit(calibrations(trace))
    swept = FamilyOnTrace(family, trace)
    values = swept.values()
    correctness = rules.correctness(samples_of(trace), trace.labels.tolist())
    columns = [column.tolist() for column in (*swept.curve(values), swept.harmed(values))]
    for value, exit_sum, right, harmed in zip(values, *columns, strict=True):
        by_sweep = swept.outcome(value)
        assert int(by_sweep.exit_timesteps.sum()) == exit_sum
        assert int((by_sweep.predictions == trace.labels).sum()) == right
        rows = zip(correctness, by_sweep.exit_timesteps.tolist(), strict=True)
        assert sum(right[-1] and not right[t - 1] for right, t in rows) == harmed
        outcome = replay_policy(family.policy(value), trace)
        assert_same_exits(family.policy(value), trace, outcome.exit_timesteps, by_sweep.exit_timesteps)
        for found in (outcome, by_sweep):
            assert_outcome(found, outcome_at(trace, found.exit_timesteps))


@every_strategy
def test_a_family_tries_every_threshold_that_its_knob_can_express(name):
    trace = make_trace("coarse", 3, 30, 5, 4)
    strategy = STRATEGIES[name].fit(calibrations(trace)).strategy
    swept = FamilyOnTrace(STRATEGIES[name].fit(calibrations(trace)), trace)
    scores = np.unique(np.maximum.accumulate(score_table(strategy, trace).numpy(), axis=1))
    tried = {tuple(swept.outcome(value).exit_timesteps.tolist()) for value in swept.values()}
    knob = strategy.family_knob
    at_scores = strategy.knob_of(scores[np.isfinite(scores)])
    inside = [v for v in at_scores.tolist() if knob.low <= v < knob.high or (v == knob.high and not knob.open_high)]
    assert len(inside) >= 5
    for value in inside:
        assert tuple(replay_policy(swept.family.policy(value), trace).exit_timesteps.tolist()) in tried


@every_strategy
@given(threshold=st.floats(-0.999, -1e-6))
@quick
def test_a_threshold_survives_its_translation_to_the_knob_and_back_to_the_last_bit(name, threshold):
    strategy = STRATEGIES[name].fit(calibrations(make_trace("normal", 1, 5, 2, 3))).strategy
    assert strategy.threshold_of(strategy.knob_of(np.array([threshold]))).tolist() == [threshold]


@every_strategy
@given(trace=traces(samples=15, timesteps=6, classes=6))
@quick
def test_a_lower_threshold_never_stops_a_sample_later(name, trace):
    exits = check_sweep(STRATEGIES[name].fit(calibrations(trace)).strategy, trace)
    for lower, higher in itertools.pairwise(exits):
        assert all(a <= b for a, b in zip(lower, higher, strict=True))


SCORES = st.one_of(
    st.sampled_from((-math.inf, math.inf, 0.0, -0.0, 1.0, 5e-324, -5e-324, sys.float_info.max / 2)),
    st.floats(-1e300, 1e300),
    st.integers(0, 3).map(lambda i: 1.0 + i * sys.float_info.epsilon),
)


@st.composite
def score_rows(draw: st.DrawFn) -> list[list[float]]:
    width = draw(st.integers(0, 4))
    return draw(st.lists(st.lists(SCORES, min_size=width, max_size=width), min_size=1, max_size=8))


@given(score_rows())
@settings(max_examples=100, deadline=None)
def test_the_sweep_equals_replay_on_arbitrary_scores(rows):
    check_sweep(FirstLogit(), scored(rows), exact=True)


@given(score_rows())
@settings(max_examples=100, deadline=None)
def test_no_threshold_gives_an_outcome_that_the_distinct_ones_do_not(rows):
    table = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), -1)
    thresholds = distinct_thresholds(sort_scores(table, scored(rows)))
    found = [tuple(exit_timesteps_at(table, threshold).tolist()) for threshold in thresholds.tolist()]
    for threshold in {-math.inf, math.inf, *(score for row in rows for score in row)}:
        assert tuple(exit_timesteps_at(table, threshold).tolist()) in found
    inner = found[1:-1]
    assert len(set(inner)) == len(inner)


@pytest.mark.parametrize("low", [1.0, 0.1, 0.0, -1.0, 5e-324, -5e-324, 2.0**-1022, 1e300, -1e300])
def test_thresholds_separate_adjacent_doubles(low):
    values = [low, math.nextafter(low, math.inf), math.nextafter(math.nextafter(low, math.inf), math.inf)]
    exits = check_sweep(FirstLogit(), scored([[value] for value in values]), exact=True)
    assert exits == [[1, 1, 1], [2, 1, 1], [2, 2, 1], [2, 2, 2]]


def test_thresholds_between_the_largest_doubles_do_not_overflow():
    largest = sys.float_info.max
    both = torch.tensor([[-largest], [largest]], dtype=torch.float64)
    assert distinct_thresholds(sort_scores(both, scored([[0], [0]]))).tolist() == [-math.inf, 0.0, math.inf]
    high = torch.tensor([[largest / 2], [largest]], dtype=torch.float64)
    assert distinct_thresholds(sort_scores(high, scored([[0], [0]]))).tolist() == [-math.inf, largest * 0.75, math.inf]


def test_infinite_scores_stop_never_or_as_soon_as_anything_does():
    exits = check_sweep(FirstLogit(), scored([[-math.inf], [2.0], [math.inf]]), exact=True)
    assert exits == [[2, 1, 1], [2, 2, 1], [2, 2, 2]]


def test_only_infinite_scores_leave_two_thresholds():
    assert check_sweep(FirstLogit(), scored([[-math.inf], [math.inf]]), exact=True) == [[2, 1], [2, 2]]
    assert check_sweep(FirstLogit(), scored([[-math.inf], [-math.inf]]), exact=True) == [[2, 2], [2, 2]]


def test_a_score_that_falls_again_does_not_hold_a_sample_back():
    assert check_sweep(FirstLogit(), scored([[3.0, 1.0, 2.0]]), exact=True) == [[1], [4]]


@every_strategy
def test_with_one_timestep_every_threshold_stops_everything_at_it(name):
    trace = make_trace("normal", 8, 9, 1, 4)
    strategy = STRATEGIES[name].fit(calibrations(trace)).strategy
    assert tuple(score_table(strategy, trace).shape) == (9, 0)
    assert check_sweep(strategy, trace) == [[1] * 9, [1] * 9]
