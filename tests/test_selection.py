"""Operating points against their words in exact fractions: ties, boundaries, fallback, proofs, the thinned grid."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from bench_plugins.baselines import Fixed
from bench_plugins.seenn_i import SeennI
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from bench_core import Calibration, Evidence, ExitPolicy, ExitStrategy, Knob, ListedPolicies, State, Trace, UsageError
from bench_core.exits.strategy import NeverExit
from bench_core.replay.controller import replay_policy
from bench_core.replay.family import FamilyOnTrace, candidates, thin
from bench_core.scoring.operating_points import OperatingPoint, certifiable_harm, choose
from bench_core.scoring.scores import Contest, Recorded, score_strategy
from benchmarks.selection_guarantees import harm_table, population, simulate
from tests.reference import choice, uncertainty
from tests.traces import calibrations, make_trace

pytestmark = pytest.mark.numerics

ROOT = Path(__file__).parent.parent
thorough = settings(max_examples=150, deadline=None)
POINTS = st.sampled_from(("0", "0.1", "0.5", "1", "2.5", "10", "33.3", "100"))
SHARES = st.sampled_from(("0.05", "0.1", "0.25", "0.29", "0.3", "0.5", "0.57", "0.7", "0.999", "1"))


@st.composite
def families(draw: st.DrawFn) -> tuple[list[int], list[int], int, int]:
    """Summed exits and right samples of each policy, from the earliest to the latest; N and T. Ties are frequent."""
    samples, timesteps = draw(st.sampled_from((1, 7, 200, 1000, 50_000))), draw(st.integers(1, 64))
    shares = st.sampled_from((0.0, 0.1, 0.25, 0.29, 0.5, 0.995, 1.0)).map(lambda x: round(x * samples))
    count = draw(st.integers(1, 12))
    correct = draw(st.lists(st.one_of(shares, st.integers(0, samples)), min_size=count, max_size=count))
    averages = st.sampled_from((0.05, 0.1, 0.25, 0.29, 0.3, 0.5, 0.57, 0.7, 1.0))
    sums = averages.map(lambda x: min(max(samples, round(x * timesteps * samples)), timesteps * samples))
    return sorted(draw(st.lists(sums, min_size=count, max_size=count))), correct, samples, timesteps


def chosen(text: str, sums: list[int], correct: list[int], static: int, samples: int, timesteps: int) -> int | None:
    point = OperatingPoint.parse(text)
    kinds = {"static_correct": static, "samples": samples, "timesteps": timesteps}
    return choose(point, np.array(sums), np.array(correct), **kinds)


@given(family=families(), points=POINTS, data=st.data())
@thorough
def test_iso_accuracy_picks_the_fewest_timesteps_that_keep_the_accuracy(family, points, data):
    sums, correct, samples, timesteps = family
    lost = round(float(points) / 100 * samples)
    near = st.sampled_from(correct).map(lambda c: min(samples, c + lost))
    static = data.draw(st.one_of(near, st.integers(0, samples)))
    expected = choice.iso_accuracy(points, sums, correct, static, samples)
    assert chosen(f"iso-accuracy:{points}", sums, correct, static, samples, timesteps) == expected


@given(family=families(), share=SHARES)
@thorough
def test_budget_picks_the_most_accurate_within_the_share(family, share):
    sums, correct, samples, timesteps = family
    expected = choice.budget(share, sums, correct, samples, timesteps)
    assert chosen(f"budget:{share}", sums, correct, correct[-1], samples, timesteps) == expected


def test_iso_accuracy_accepts_exactly_the_points_that_may_be_lost():
    # Half a point of 200 samples is one sample.
    assert chosen("iso-accuracy:0.5", [200, 400], [149, 150], 150, 200, 4) == 0
    assert chosen("iso-accuracy:0.5", [200, 400], [148, 150], 150, 200, 4) == 1
    assert chosen("iso-accuracy:0", [200, 400], [149, 150], 150, 200, 4) == 1


@pytest.mark.parametrize(
    ("points", "samples", "lost"), [(0.1, 1000, 1), (0.7, 1000, 7), (2.3, 3000, 69), (29, 100, 29)]
)
def test_points_that_are_whole_samples_are_not_lost_to_rounding(points, samples, lost):
    assert OperatingPoint("iso-accuracy", points).minimum_correct(samples, samples) == samples - lost


def test_a_fraction_of_a_sample_is_not_given_away():
    assert OperatingPoint("iso-accuracy", 0.5).minimum_correct(150, 199) == 150  # 149.005 is more than 149
    assert OperatingPoint("iso-accuracy", 0.5).minimum_correct(150, 201) == 149


def test_losing_everything_still_asks_for_no_fewer_than_none_right():
    assert OperatingPoint("iso-accuracy", 100).minimum_correct(30, 200) == 0


@pytest.mark.parametrize(("share", "timesteps"), [("0.1", 30), ("0.3", 10), ("0.7", 10), ("0.29", 100), ("0.57", 100)])
def test_a_budget_admits_an_average_that_meets_it_exactly(share, timesteps):
    allowed = round(float(share) * timesteps)
    assert chosen(f"budget:{share}", [allowed * 1000], [5], 5, 1000, timesteps) == 0
    assert chosen(f"budget:{share}", [allowed * 1000 + 1], [5], 5, 1000, timesteps) is None


def test_a_budget_is_met_exactly_with_a_million_samples_too():
    assert chosen("budget:0.29", [29_000_000], [5], 5, 1_000_000, 100) == 0


def test_iso_accuracy_breaks_ties_by_accuracy_then_takes_the_later_policy():
    assert chosen("iso-accuracy:1", [300, 300, 300, 400], [99, 100, 100, 100], 100, 100, 4) == 2
    assert chosen("iso-accuracy:1", [300, 300, 300, 400], [100, 99, 99, 100], 100, 100, 4) == 0


def test_a_budget_breaks_ties_by_the_later_policy():
    assert chosen("budget:0.9", [100, 200, 300, 400], [80, 90, 90, 99], 99, 100, 4) == 2


def test_nothing_is_chosen_where_nothing_qualifies():
    assert chosen("iso-accuracy:0", [100, 200], [80, 90], 91, 100, 4) is None
    assert chosen("budget:0.25", [101, 200], [80, 90], 91, 100, 4) is None


@pytest.mark.parametrize(
    "text",
    [
        "iso-accuracy:0",
        "iso-accuracy:0.5",
        "iso-accuracy:100",
        "budget:0.25",
        "budget:1",
        "risk:1,0.05",
        "risk:0.5,0.1",
    ],
)
def test_an_operating_point_is_written_as_it_is_read(text):
    assert str(OperatingPoint.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("iso-accuracy:-0.1", "iso-accuracy:101", "iso-accuracy:nan", "iso-accuracy"),
        *("budget:0", "budget:1.01", "budget:nan", "budget:inf", "budget:", "speed:1", ""),
        *("risk", "risk:1", "risk:1,", "risk:,0.05", "risk:100,0.05", "risk:-1,0.05", "risk:1,0", "risk:1,1"),
        *("risk:nan,0.05", "risk:1,nan", "risk:1,0.05,1", "risk:0,0", "risk:0"),
    ],
)
def test_an_operating_point_out_of_range_is_refused(text):
    wanted = "write risk:POINTS,LEVEL" if text.startswith("risk") else "write iso-accuracy:POINTS"
    with pytest.raises(UsageError, match=wanted):
        OperatingPoint.parse(text)


class StopAt(ExitPolicy):
    """Stop every sample at t."""

    def __init__(self, t: int) -> None:
        self.t = t

    def should_exit(self, evidence: Evidence, state: State) -> tuple[torch.Tensor, State]:
        return torch.full((len(evidence.total),), evidence.t >= self.t), state


class Hasty(ExitStrategy):
    """A family without a policy that waits for the last timestep."""

    name: ClassVar[str] = "hasty"
    reference: ClassVar[str] = "a test"
    family_knob: ClassVar[Knob] = Knob("t", "int", low=1)

    def fit(self, calibration: Calibration) -> ListedPolicies:
        return ListedPolicies(range(1, calibration.trace.timesteps), StopAt)


def late_bloomers(samples: int = 40) -> Trace:
    """Right at T = 4 only."""
    logits = torch.zeros(samples, 4, 2)
    logits[:, 0, 0], logits[:, 3, 1] = 1.0, 2.0
    return Trace(logits, torch.ones(samples, dtype=torch.int64), torch.arange(samples))


def contest(*traces: Trace) -> Contest:
    return Contest(*(Recorded(trace) for trace in traces))


def scored(strategy: ExitStrategy, contest: Contest, text: str):
    return score_strategy(strategy, contest, [OperatingPoint.parse(text)]).policies[0]


def test_iso_accuracy_falls_back_to_the_last_timestep_where_no_policy_keeps_the_accuracy():
    found = scored(Hasty(), contest(*[late_bloomers()] * 3), "iso-accuracy:0.5")
    assert (found.status, found.value, type(found.policy)) == ("fallback", None, NeverExit)
    assert (found.select_accuracy, found.select_timestep) == (1.0, 4.0)
    assert found.outcome.exit_timesteps.tolist() == [4] * 40
    assert found.outcome.predictions.tolist() == [1] * 40


def test_a_budget_below_one_timestep_is_infeasible():
    found = scored(Hasty(), contest(*[late_bloomers()] * 3), "budget:0.2")
    assert (found.status, found.value, found.policy, found.outcome) == ("infeasible", None, None, None)


def test_the_choice_looks_at_the_select_half_and_at_nothing_else():
    early = make_trace("strong", 1, 60, 4, 2)
    early = Trace(early.logits, early.predictions[:, 0], early.sample_ids)  # stopping at 1 is always right here
    for fit, select, test, expected in (
        (late_bloomers(), early, late_bloomers(), 1),
        (early, late_bloomers(), early, 4),
    ):
        found = scored(Fixed(), contest(fit, select, test), "iso-accuracy:0")
        assert (found.status, found.value) == ("ok", expected)
        assert torch.equal(found.outcome.exit_timesteps, torch.full((len(test),), expected))


@given(
    point=st.sampled_from(("iso-accuracy:0", "iso-accuracy:5", "budget:0.4", "budget:0.8")), seed=st.integers(0, 999)
)
@settings(max_examples=5, deadline=None)
def test_a_chosen_policy_meets_its_operating_point_on_the_select_half(point, seed):
    fit, select, test = (make_trace("normal", seed + i, 40, 5, 4) for i in range(3))
    found = scored(SeennI(), contest(fit, select, test), point)
    assert found.status == "ok"
    outcome = replay_policy(found.policy, select)
    right = int((outcome.predictions == select.labels).sum())
    kind, number = point.split(":")
    assert found.select_timestep == int(outcome.exit_timesteps.sum()) / 40
    assert found.select_accuracy == right / 40
    if kind == "budget":
        assert found.select_timestep <= float(number) * 5 + 1e-12
    else:
        assert right >= int(select.correct[:, -1].sum()) - float(number) / 100 * 40 - 1e-9


@given(st.lists(st.integers(0, 500), min_size=1, max_size=300), st.integers(2, 60))
@thorough
def test_thinning_keeps_both_ends_and_one_of_each_kept_value(values, limit):
    ascending = np.array(sorted(values))
    kept = ascending[thin(ascending, limit)].tolist()
    distinct = sorted(set(values))
    assert len(kept) <= limit
    assert kept == sorted(set(kept))
    assert (kept[0], kept[-1]) == (distinct[0], distinct[-1])
    assert len(distinct) > limit or kept == distinct


@given(st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_thinning_leaves_no_gap_wider_than_the_grid_and_the_data_ask_for(seed):
    generator = np.random.default_rng(seed)
    ascending = np.sort(generator.integers(0, 100_000, size=5_000))
    kept = ascending[thin(ascending, 100)]
    spacing = (ascending[-1] - ascending[0]) / 99
    assert np.diff(kept).max() <= spacing + 2 * np.diff(np.unique(ascending)).max()


def test_a_family_competes_with_at_most_the_limit_of_policies_ordered_by_average_exit():
    trace = make_trace("normal", 2, 300, 8, 5)
    swept = FamilyOnTrace(SeennI().fit(calibrations(trace)), trace)
    values = candidates(swept, limit=50)
    sums, _ = swept.curve(values)
    assert 25 < len(values) <= 50
    assert (np.diff(sums) > 0).all()
    assert (sums[0], sums[-1]) == (300, 8 * 300)


# --- risk ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", ["0.5", "1", "2", "5", "50", "97"])
@pytest.mark.parametrize("level", ["0.01", "0.05", "0.5"])
@pytest.mark.parametrize("samples", [1, 2, 59, 200, 300])
def test_the_harm_that_a_proof_allows_is_that_of_exact_binomial_tails(samples, points, level):
    expected = uncertainty.certifiable_harm(samples, points, level)
    assert certifiable_harm(samples, float(points), float(level)) == expected


def test_one_point_takes_299_samples_without_harm_and_16_in_2500():
    assert [certifiable_harm(n, 1, 0.05) for n in (1, 298, 299, 2500)] == [-1, -1, 0, 16]


def test_the_table_of_the_documents_is_the_one_that_the_script_prints():
    assert harm_table() in (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")


@st.composite
def harms(draw: st.DrawFn, most: int) -> list[int]:
    """Harmed samples of each policy, mostly falling from the earliest to the latest, near what can be proved."""
    count = draw(st.integers(1, 12))
    return [draw(st.integers(0, most)) for _ in range(count)]


@given(
    samples=st.sampled_from((1, 40, 150)),
    points=st.sampled_from(("1", "5", "20")),
    level=st.sampled_from(("0.05", "0.3")),
    data=st.data(),
)
@thorough
def test_risk_tests_in_fixed_sequence_and_takes_the_cheapest_that_it_proved(samples, points, level, data):
    most = uncertainty.certifiable_harm(samples, points, level)
    harmed = data.draw(harms(min(samples, most + 2)))
    sums = data.draw(st.lists(st.integers(samples, 4 * samples), min_size=len(harmed), max_size=len(harmed)))
    correct = data.draw(st.lists(st.integers(0, samples), min_size=len(harmed), max_size=len(harmed)))
    found = choose(
        OperatingPoint.parse(f"risk:{points},{level}"),
        np.array(sums),
        np.array(correct),
        static_correct=samples,
        samples=samples,
        timesteps=4,
        harmed=np.array(harmed),
    )
    assert found == choice.risk(points, level, sums, correct, harmed, samples)


def test_the_first_failure_ends_the_sequence():
    point = OperatingPoint.parse("risk:1,0.05")
    rest = {"static_correct": 2500, "samples": 2500, "timesteps": 4}
    sums, correct = np.array([2500, 5000, 7500, 10_000]), np.full(4, 2400)
    assert choose(point, sums, correct, harmed=np.array([0, 17, 16, 0]), **rest) == 2
    assert choose(point, sums, correct, harmed=np.array([16, 16, 16, 0]), **rest) == 0
    assert choose(point, sums, correct, harmed=np.array([0, 0, 0, 17]), **rest) is None


def test_no_harm_at_all_cannot_be_proved():
    with pytest.raises(UsageError, match="no finite number of samples proves") as refused:
        OperatingPoint.parse("risk:0,0.05")
    assert "\n" not in str(refused.value)


def test_a_family_of_which_nothing_is_proved_falls_back_to_the_last_timestep():
    found = scored(Hasty(), contest(*[late_bloomers()] * 3), "risk:5,0.05")  # every policy harms all
    assert (found.status, found.value, type(found.policy)) == ("fallback", None, NeverExit)
    assert found.outcome.exit_timesteps.tolist() == [4] * 40
    few = scored(Fixed(), contest(*[late_bloomers(10)] * 3), "risk:5,0.05")  # too few samples for any proof
    assert few.status == "fallback"


def test_a_family_that_harms_nobody_stops_as_early_as_it_can():
    logits = torch.zeros(100, 4, 2)
    logits[:, 0, 1] = 1.0  # right from the first timestep on
    trace = Trace(logits, torch.ones(100, dtype=torch.int64), torch.arange(100))
    found = scored(Fixed(), contest(trace, trace, trace), "risk:5,0.05")
    assert (found.status, found.value) == ("ok", 1)


def test_over_many_draws_risk_keeps_its_promise_and_iso_accuracy_does_not():
    """The chosen policy harms more than d in at most a share a of the draws, with binomial slack (1 in 10,000)."""
    draws, rules = 200, ("risk:4,0.1", "risk:4,0.3", "iso-accuracy:0.5")
    points = [OperatingPoint.parse(rule) for rule in rules]
    whole = population(20_000, seed=3)
    strict, loose, plain = simulate(SeennI(), whole, points, draws=draws, samples=400, seed=4)
    for kept, level in ((strict, 0.1), (loose, 0.3)):
        slack = binom.isf(1e-4, draws, level) / draws
        assert kept.broken <= slack
    assert loose.broken > 0  # the level is used, not wasted
    assert strict.average_exit_timestep > loose.average_exit_timestep
    assert strict.average_exit_timestep < whole.timesteps - 0.5
    assert plain.broken > 0.3


def test_a_promise_broken_always_would_be_seen_in_the_simulation():
    """Proof by counter-example: a level that the proof does not have breaks the bound of a smaller one."""
    whole = population(20_000, seed=3)
    (careless,) = simulate(SeennI(), whole, [OperatingPoint("risk", 4, 0.9)], draws=100, samples=400, seed=4)
    assert careless.broken > binom.isf(1e-4, 100, 0.1) / 100
