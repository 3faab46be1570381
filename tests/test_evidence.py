"""One read of a trace for many: what is shared is to the bit what each computes alone, and nobody harms another.

The readouts are compared with plain torch to thirteen digits: torch's own last digits depend on the processor.
"""

import math
from typing import Any, ClassVar

import pytest
import torch
from bench_plugins.baselines import Margin
from bench_plugins.dt_snn import DtSnn
from bench_plugins.dynamic_confidence import DynamicConfidence
from bench_plugins.seenn_i import SeennI
from bench_plugins.spikecp import SpikeCP, label_log_probability
from bench_plugins.topk_cutoff import TopKCutoff, gap_at
from hypothesis import given, settings
from hypothesis import strategies as st

from bench_core import Evidence, ExitStrategy, Requirement, ScoreStrategy, Trace
from bench_core.errors import PluginError
from bench_core.exits import evidence as evidence_module
from bench_core.exits.strategy import Calibration, ScorePolicy, observe
from bench_core.replay.controller import ExitController, score_table, score_tables
from bench_core.run.evaluate import score_workload
from bench_core.run.plan import Competitor
from bench_core.scoring.operating_points import OperatingPoint
from bench_core.scoring.scores import Contest, Recorded, score_strategy, score_together
from bench_core.util.sample_rows import SampleRows
from tests.helpers.odd_score import Odd
from tests.reference import rules
from tests.traces import calibrations, make_trace, samples_of, trace_pairs, traces

pytestmark = pytest.mark.numerics

SHIPPED: dict[str, ExitStrategy] = {
    "seenn-i": SeennI(),
    "seenn-i mean": SeennI(accumulate="mean"),
    "seenn-i alpha": SeennI(alpha=8.0),
    "seenn-i mean alpha": SeennI(accumulate="mean", alpha=0.3),
    "dt-snn": DtSnn(),
    "dt-snn mean": DtSnn(accumulate="mean"),
    "margin": Margin(),
    "margin mean": Margin(accumulate="mean"),
    "dynamic-confidence": DynamicConfidence(),
    "topk-cutoff": TopKCutoff(),
    "topk-cutoff bins": TopKCutoff(search="bins", bins=7),
    "spikecp": SpikeCP(),
    "spikecp 2": SpikeCP(max_set=2),
}
POINTS = [OperatingPoint.parse(text) for text in ("iso-accuracy:0.5", "budget:0.5")]
quick = settings(max_examples=25, deadline=None)


def evidence_of(total: torch.Tensor, t: int = 1) -> Evidence:
    return Evidence(t, 9, torch.zeros_like(total), total, torch.arange(len(total)))


def bits(tensor: torch.Tensor) -> list[int]:
    """float64 as whole numbers, so that NaN equals NaN and 0.0 isn't -0.0."""
    return tensor.contiguous().view(torch.int64).tolist()


# Readouts, beside plain torch


def below_largest(total: torch.Tensor, t: int, accumulate: str) -> torch.Tensor:
    values = total / t if accumulate == "mean" else total
    return values - values.amax(1, keepdim=True)


def softmax_input(total: torch.Tensor, t: int, accumulate: str, alpha: float) -> torch.Tensor:
    if alpha < 1e-3:
        return below_largest(total, t, accumulate) / alpha
    return total / (alpha * t if accumulate == "mean" else alpha)


def plain_second(values: torch.Tensor) -> torch.Tensor:
    second = values.sort(1, descending=True).values[:, 1]
    return torch.where(values.isnan().any(1), torch.nan, second)


READOUTS = st.tuples(st.sampled_from(["sum", "mean"]), st.sampled_from([1.0, 1e-4, 0.01, 3.0, 8.0]))


@given(
    trace=traces(samples=20, timesteps=4, classes=30),
    readouts=st.lists(READOUTS, min_size=1, max_size=3),
    order=st.permutations(range(4)),
)
@pytest.mark.parametrize("few", [0, 1024])
@quick
def test_a_readout_is_what_plain_torch_computes_up_to_the_last_digits(few, trace, readouts, order):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence_module, "_FEW", few)
        as_plain_torch(trace, readouts, order)


def as_plain_torch(trace, readouts, order) -> None:
    (totals,) = [totals for _, totals in trace.totals()]
    for t in range(1, trace.timesteps + 1):
        total = totals[:, t - 1].contiguous()
        before = bits(total)
        evidence = evidence_of(total, t)
        for accumulate, alpha in readouts:
            plain = below_largest(total, t, accumulate)
            below = plain if alpha == 1.0 else plain / alpha
            softmax = torch.softmax(softmax_input(total, t, accumulate, alpha), 1)
            largest = softmax.amax(1)
            weighted = (softmax * plain).sum(1)
            found = evidence.readout(accumulate, alpha)
            expected = [
                ("runner_up", plain_second(below)),
                ("largest_probability", largest),
                ("mean_log_probability", (weighted if alpha == 1.0 else weighted / alpha) + largest.log()),
                ("log_largest_probability", largest.log()),
            ]
            for name, values in [expected[place] for place in order]:
                given = getattr(found, name)
                assert torch.allclose(given, values, rtol=1e-13, atol=1e-14, equal_nan=True), name
            labels = trace.labels
            assert bits(found.of(labels)) == bits(below.gather(1, labels[:, None]).squeeze(1))
        assert bits(total) == before


@pytest.mark.parametrize("few", [0, 1024])
@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.sampled_from([0.0, -1.0, 1.0, 2.5, math.nan, math.inf, -math.inf]), min_size=3, max_size=3),
        min_size=1,
    )
)
def test_logits_that_are_not_finite_make_nan_and_are_put_back(few, rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence_module, "_FEW", few)
        nan_where_not_finite(rows)


def nan_where_not_finite(rows) -> None:
    total = torch.tensor(rows, dtype=torch.float64)
    before = bits(total)
    readout = evidence_of(total).readout()
    for row, second, largest, log in zip(
        rows,
        *(v.tolist() for v in (readout.runner_up, readout.largest_probability, readout.log_largest_probability)),
        strict=True,
    ):
        if any(map(math.isnan, row)) or math.isinf(max(row)):
            assert math.isnan(second)
            assert math.isnan(largest)
            assert math.isnan(log)
        else:
            assert second == sorted(row)[-2] - max(row)
    assert bits(total) == before


@given(
    rows=st.integers(2, 6).flatmap(
        lambda classes: st.lists(
            st.lists(
                st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2**-52, -3.0, math.nan, math.inf, -math.inf]),
                min_size=classes,
                max_size=classes,
            ),
            min_size=1,
            max_size=5,
        )
    ),
    accumulate=st.sampled_from(["sum", "mean"]),
)
@quick
def test_few_values_and_many_have_the_same_runner_up(rows, accumulate):
    total, found = torch.tensor(rows, dtype=torch.float64), []
    for few in (0, 1024):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bench_core.exits.evidence._FEW", few)
            found.append(bits(evidence_of(total, 3).readout(accumulate).runner_up))
    assert found[0] == found[1]


@pytest.mark.parametrize(("accumulate", "alpha"), [("median", 1.0), ("sum", 0.0), ("sum", -1.0), ("mean", math.nan)])
def test_what_is_no_readout_is_refused(accumulate, alpha):
    with pytest.raises(ValueError, match="no readout"):
        evidence_of(torch.zeros(2, 3, dtype=torch.float64)).readout(accumulate, alpha)


@given(trace=traces(samples=15, timesteps=4, classes=9))
@quick
def test_what_a_fit_observes_is_what_the_equations_say(trace):
    found = observe(trace, [gap_at, label_log_probability])
    for row, (sample, label) in enumerate(zip(samples_of(trace), trace.labels.tolist(), strict=True)):
        for t, total in enumerate(rules.totals(sample)):
            first, second = sorted(total)[-1:-3:-1]
            assert float(found[gap_at][row, t]) == first - second
            log_whole = math.log(sum(math.exp(x - first) for x in total))
            assert math.isclose(
                float(found[label_log_probability][row, t]),
                total[label] - first - log_whole,
                rel_tol=1e-12,
                abs_tol=1e-12,
            )


# Many in one read


def fitted(trace: Trace) -> dict[str, ScoreStrategy]:
    return {name: strategy.fit(calibrations(trace)).strategy for name, strategy in SHIPPED.items()}


@given(
    pair=trace_pairs(samples=25, timesteps=5, classes=12),
    batch=st.integers(1, 9),
    rng=st.randoms(use_true_random=False),
)
@quick
def test_tables_of_one_read_are_to_the_bit_those_of_a_read_each(pair, batch, rng):
    calibration, test = pair
    strategies = list(fitted(calibration).values())
    rng.shuffle(strategies)
    together = score_tables(strategies, test, batch=batch)
    for strategy, table in zip(strategies, together, strict=True):
        assert bits(table) == bits(score_table(strategy, test)), strategy.label


@given(pair=trace_pairs(samples=25, timesteps=5, classes=12, least_timesteps=2))
@quick
def test_the_scores_of_one_read_are_those_that_should_exit_sees(pair):
    calibration, test = pair
    strategies = fitted(calibration)
    tables = dict(zip(strategies, score_tables(list(strategies.values()), test), strict=True))
    for name, strategy in strategies.items():
        seen: list[torch.Tensor] = []
        spy = Odd(lambda evidence, strategy=strategy, seen=seen: seen.append(strategy.score(evidence)) or seen[-1])
        policy = ScorePolicy(spy, math.inf)
        controller = ExitController(policy, test.sample_ids, test.timesteps, test.classes)
        for t in range(test.timesteps):
            controller.observe(test.logits[:, t])
        assert bits(torch.stack(seen, 1)) == bits(tables[name]), name


# Each on its own


def writes_into_evidence(evidence: Evidence) -> torch.Tensor:
    for tensor in (evidence.step_logits, evidence.total, evidence.mean):
        tensor.fill_(math.nan)
    return torch.zeros(evidence.batch, dtype=torch.float64)


def writes_into_readouts(evidence: Evidence) -> torch.Tensor:
    for accumulate in ("sum", "mean"):
        readout = evidence.readout(accumulate)
        names = ("runner_up", "largest_probability", "mean_log_probability", "log_largest_probability")
        for tensor in (
            *(getattr(readout, name) for name in names),
            readout.of(torch.zeros(evidence.batch, dtype=torch.int64)),
        ):
            tensor.numpy().fill(7.0)
    return torch.zeros(evidence.batch, dtype=torch.float64)


def test_what_a_readout_gave_can_be_written_to_and_asked_for_again():
    step = torch.tensor([[0.3, -1.0, 2.0], [5.0, 5.0, 0.0]], dtype=torch.float64)
    evidence = Evidence(1, 4, step, step, torch.arange(2))
    readout = evidence.readout()
    names = ("largest_probability", "mean_log_probability", "log_largest_probability", "runner_up")
    first = {name: getattr(readout, name).clone() for name in names}
    for name in (*names, *reversed(names)):
        given = getattr(readout, name)
        assert torch.equal(given, first[name]), name
        given.numpy().fill(7.0)
    assert torch.equal(evidence.step_logits, step)


def raises_at_two(evidence: Evidence) -> torch.Tensor:
    if evidence.t == 2:
        raise RuntimeError("no more")
    return evidence.readout().largest_probability


MISBEHAVING = {
    "writes into evidence": (writes_into_evidence, None),
    "writes into readouts": (writes_into_readouts, None),
    "raises": (raises_at_two, "no more"),
    "raises on a readout": (lambda e: e.readout("median").runner_up, "no readout"),
    "a shape": (lambda e: e.total, "score must be a tensor"),
    "NaN": (lambda e: e.total[:, 0] * math.nan, "score is NaN"),
    "no tensor": (lambda e: None, "score must be a tensor"),
    "looks at inputs": (lambda e: e.inputs.flatten(1).sum(1), "without declaring"),
}


@pytest.mark.parametrize("kind", MISBEHAVING)
@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_one_does_no_other_notices(kind, place, dtype):
    trace = make_trace("strong", 3, 30, 5, 6, dtype)
    before = trace.digest
    strategies = list(fitted(make_trace("strong", 4, 30, 5, 6)).values())
    expected = score_tables(strategies, trace, batch=7)
    make, message = MISBEHAVING[kind]
    found = score_tables([Odd(make), *strategies] if place == "first" else [*strategies, Odd(make)], trace, batch=7)
    odd = found.pop(0 if place == "first" else -1)
    for mine, theirs in zip(expected, found, strict=True):
        assert bits(mine) == bits(theirs)
    assert Trace(trace.logits, trace.labels, trace.sample_ids).digest == before
    if message is None:
        assert isinstance(odd, torch.Tensor)
    else:
        assert isinstance(odd, Exception)
        assert message in str(odd)
        with pytest.raises(type(odd), match=message):
            score_table(Odd(make), trace)


def test_one_that_raised_is_not_asked_again():
    asked = []
    score_tables([Odd(lambda e: asked.append(e.t) or raises_at_two(e))], make_trace("normal", 1, 10, 4, 3), batch=4)
    assert asked == [1, 2]


def test_a_later_timestep_can_not_be_seen_through_evidence_that_was_kept():
    kept: list[Evidence] = []
    trace = make_trace("normal", 5, 12, 4, 3)

    def score(evidence: Evidence) -> torch.Tensor:
        for earlier in kept:
            with pytest.raises(PluginError, match="when that is over"):
                _ = earlier.total
            with pytest.raises(PluginError, match="when that is over"):
                _ = earlier.readout().largest_probability
        kept.append(evidence)
        return torch.zeros(evidence.batch, dtype=torch.float64)

    score_table(Odd(score), trace, batch=5)
    assert len(kept) == 9


@given(trace=traces(samples=12, timesteps=5, classes=4, least_timesteps=2), t=st.integers(1, 4))
@quick
def test_what_comes_later_changes_no_score(trace, t):
    strategies = list(fitted(make_trace("strong", 6, 30, 5, trace.classes)).values())
    if trace.timesteps != 5:
        strategies = [s for s in strategies if s.name not in ("topk-cutoff", "spikecp")]  # fitted for another T
    future = trace.logits.clone()
    future[:, t:] = -3.0 * future[:, t:] + 1.0
    changed = Trace(future, trace.labels, trace.sample_ids)
    for mine, theirs in zip(score_tables(strategies, trace), score_tables(strategies, changed), strict=True):
        assert bits(mine[:, :t]) == bits(theirs[:, :t])


class LooksAtInputs(ScoreStrategy):
    """The score is what the first sample's frames hold."""

    name: ClassVar[str] = "looks"
    reference: ClassVar[str] = "a test"
    requires: ClassVar[frozenset[Requirement]] = frozenset({Requirement.INPUTS})

    def score(self, evidence: Evidence) -> torch.Tensor:
        return evidence.inputs.flatten(1).sum(1).to(torch.float64)


def frames(positions: torch.Tensor, count: int) -> torch.Tensor:
    return (positions[:, None] * torch.ones(count)).reshape(len(positions), count, 1, 1, 1)


def test_inputs_are_those_of_the_samples_and_go_only_to_whom_they_are_given():
    trace = make_trace("normal", 7, 10, 4, 3)
    looks, blind = score_tables([LooksAtInputs(), LooksAtInputs()], trace, [frames, None], batch=4)
    assert looks.tolist() == [[float(row * t) for t in (1, 2, 3)] for row in range(10)]
    assert "without declaring" in str(blind)


# The board


def contest() -> Contest:
    made = {name: make_trace("strong", seed, 40, 5, 4) for seed, name in enumerate(("fit", "select", "test"))}
    return Contest(*(Recorded(made[name]) for name in ("fit", "select", "test")))


def summary(scores: Any) -> Any:
    policies = [
        (
            p.status,
            p.value,
            p.select_accuracy,
            p.select_timestep,
            None if p.outcome is None else p.outcome.exit_timesteps.tolist(),
        )
        for p in scores.policies
    ]
    return scores.parameters, scores.curve, policies


def test_a_board_reads_every_trace_once_for_all_score_strategies(monkeypatch):
    given = contest()
    alone = [summary(score_strategy(strategy, given, POINTS)) for strategy in SHIPPED.values()]
    reads: list[int] = []

    def counting(plain):
        return lambda rows, *args: reads.append(id(rows)) or plain(rows, *args)

    for way in ("read", "pieces"):
        monkeypatch.setattr(SampleRows, way, counting(getattr(SampleRows, way)))
    together = [summary(scores()) for scores in score_together(list(SHIPPED.values()), given, POINTS)]
    assert together == alone
    assert reads.count(id(given.test.trace.rows)) == 1
    assert reads.count(id(given.select.trace.rows)) == 1
    assert reads.count(id(given.fit.trace.rows)) == 2  # what fits observe, scores; a fit that reads more has a copy


class CanNotLearn(SeennI):
    name: ClassVar[str] = "can-not-learn"

    def learn(self, calibration: Calibration) -> "CanNotLearn":
        raise RuntimeError("nothing to learn here")


class ObservesWrongly(SeennI):
    name: ClassVar[str] = "observes-wrongly"
    observes = (lambda evidence, labels: labels.fill_(0)[:1],)

    def learn(self, calibration: Calibration) -> "ObservesWrongly":
        calibration.observed(self.observes[0])
        return self


class NamesNothing(SeennI):
    name: ClassVar[str] = "names-nothing"
    observes = "gap"


class FailsOnTest(SeennI):
    name: ClassVar[str] = "fails-on-test"

    def score(self, evidence: Evidence) -> torch.Tensor:
        if evidence.batch == 41:
            raise RuntimeError("not these")
        return super().score(evidence)


def test_a_strategy_that_fails_is_a_row_and_the_others_score_as_ever(capsys):
    made = [make_trace("strong", seed, samples, 5, 4) for seed, samples in ((1, 40), (2, 40), (3, 41))]
    given = Contest(*map(Recorded, made))
    failing = [CanNotLearn(), ObservesWrongly(), FailsOnTest()]
    strategies = [failing[0], NamesNothing(), failing[1], *SHIPPED.values(), failing[2]]
    entrants = [Competitor(f"{place} {strategy.label}", strategy) for place, strategy in enumerate(strategies)]
    entries = score_workload("w", entrants, POINTS, given, {}).entries
    problems = [entry.problem for entry in entries if entry.problem]
    assert problems[0] == "failed: RuntimeError: nothing to learn here"
    assert problems[1].startswith("failed: plugin <lambda>: ")
    assert problems[2] == "failed: RuntimeError: not these"
    assert len(problems) == 3
    assert "nothing to learn here" in capsys.readouterr().err
    for entrant, entry in zip(entrants, entries, strict=True):
        if not entry.problem:
            assert summary(entry.scores) == summary(score_strategy(entrant.strategy, given, POINTS)), entrant.label


def test_what_is_observed_is_a_copy_for_everyone():
    trace = make_trace("normal", 8, 9, 3, 4)
    calibration = Calibration(trace, _observed=observe(trace, [gap_at]))
    calibration.observed(gap_at).fill_(math.nan)
    assert bits(calibration.observed(gap_at)) == bits(Calibration(trace).observed(gap_at))
