"""Tables of small boards against loops over samples: ranks, pairs, classes, summary; one sample, one timestep, ties."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from bench_plugins.baselines import Fixed, Stability
from bench_plugins.seenn_i import SeennI
from hypothesis import given, settings
from hypothesis import strategies as st

from bench_core import Trace
from bench_core.board import schema as columns
from bench_core.board.tables import board_tables, summary_table
from bench_core.scoring.comparisons import _batches, compare_workloads
from bench_core.scoring.metrics import reliability
from bench_core.scoring.operating_points import OperatingPoint
from bench_core.scoring.scores import Contest, Entry, Recorded, WorkloadScores, halve, score_strategy
from bench_core.scoring.statistics import bootstrap_means, interval
from tests.reference import uncertainty
from tests.traces import make_trace

RULES = ("iso-accuracy:1", "budget:0.5", "risk:30,0.2")
STRATEGIES = (Fixed(), Stability(), SeennI(), SeennI().with_parameters({"accumulate": "mean"}))


def workload(name: str, calibration: Trace, test: Trace, strategies=STRATEGIES, rules=RULES) -> WorkloadScores:
    fit, select = halve(Recorded(calibration))
    contest = Contest(fit, select, Recorded(test))
    points = [OperatingPoint.parse(rule) for rule in rules]
    entries = [Entry(s.label, s.family_knob.name, score_strategy(s, contest, points)) for s in strategies]
    return WorkloadScores(name, entries, test)


def board(*workloads: WorkloadScores, rules=RULES, resamples: int = 400) -> dict[str, pd.DataFrame]:
    points = [OperatingPoint.parse(rule) for rule in rules]
    return board_tables("tiny", workloads, points, [], resamples=resamples, seed=5)


@pytest.fixture(scope="module")
def scored() -> list[WorkloadScores]:
    """Two workloads of the same number of samples and one of another."""
    shapes = [("a", 100, 5, 3), ("b", 100, 4, 4), ("c", 61, 6, 2)]
    made = []
    for seed, (name, samples, timesteps, classes) in enumerate(shapes):
        calibration, test = (make_trace("normal", 10 * seed + i, samples, timesteps, classes) for i in range(2))
        made.append(workload(name, calibration, test))
    return made


@pytest.fixture(scope="module")
def tables(scored) -> dict[str, pd.DataFrame]:
    return board(*scored)


def ran(scored):
    """(workload, strategy, operating point, policy) of every row with figures."""
    for one in scored:
        for entry in one.entries:
            for policy in entry.scores.policies:
                if policy.outcome is not None:
                    yield one, entry.label, str(policy.point), policy


def samples_of(one, policy) -> tuple[list[bool], list[int], list[bool]]:
    """Right at the exit, exit timestep, right at T, sample by sample."""
    labels, last = one.test.labels.tolist(), one.test.predictions[:, -1].tolist()
    right = [p == label for p, label in zip(policy.outcome.predictions.tolist(), labels, strict=True)]
    return right, policy.outcome.exit_timesteps.tolist(), [p == label for p, label in zip(last, labels, strict=True)]


def find(table: pd.DataFrame, **values) -> dict:
    """The one row that has these values."""
    for name, value in values.items():
        table = table[table[name] == value]
    (row,) = table.to_dict("records")
    return row


def test_columns_are_those_of_the_dictionary(tables):
    assert tables["rows"].columns.tolist() == list(columns.ROW_COLUMNS)
    for name, expected in (
        ("workloads", columns.WORKLOAD_COLUMNS),
        ("curves", columns.CURVE_COLUMNS),
        ("pairwise", columns.PAIRWISE_COLUMNS),
        ("classes", columns.CLASS_COLUMNS),
        ("reliability", columns.RELIABILITY_COLUMNS),
        ("summary", columns.SUMMARY_COLUMNS),
    ):
        assert tables[name].columns.tolist() == list(expected), name


def test_harm_and_help_are_counted_sample_by_sample_and_make_the_change_of_accuracy(scored, tables):
    for one, label, point, policy in ran(scored):
        row = find(tables["rows"], workload=one.name, strategy=label, operating_point=point)
        right, _, last = samples_of(one, policy)
        pairs = list(zip(right, last, strict=True))
        assert row["harmed_share"] == sum(end and not here for here, end in pairs) / len(pairs)
        assert row["helped_share"] == sum(here and not end for here, end in pairs) / len(pairs)
        assert row["delta_points"] == pytest.approx(100 * (row["helped_share"] - row["harmed_share"]), abs=1e-9)


def test_the_saving_stands_where_the_target_is_met_and_nowhere_else(tables):
    bound = tables["workloads"].set_index("workload")
    for row in tables["rows"].dropna(subset="accuracy").to_dict("records"):
        if row["operating_point"].startswith("budget") or "missed target" in row["note"]:
            assert math.isnan(row["saving_realised"])
        else:
            timesteps, lower = bound.loc[row["workload"], ["timesteps", "lower_bound"]]
            expected = (timesteps - row["average_exit_timestep"]) / (timesteps - lower)
            assert row["saving_realised"] == pytest.approx(expected, abs=1e-12)


def slow_beats(point, first, second) -> bool:
    """Whether the first row beats the second, from columns of samples resampled on their own."""
    means = bootstrap_means(np.array([*first, *second]).T, resamples=400, seed=5).T
    (right, exits, harmed, last), (right2, exits2, harmed2, _) = means[:4], means[4:]
    if point.kind == "budget":
        return interval(right - right2)[0] > 0
    if point.kind == "risk":
        missed = [interval(h)[0] > point.value / 100 for h in (harmed, harmed2)]
    else:
        missed = [interval(r - (last - point.value / 100))[1] < 0 for r in (right, right2)]
    return missed[1] if missed[0] != missed[1] else interval(exits - exits2)[1] < 0


def test_ranks_count_the_rows_that_are_significantly_better(scored, tables):
    rows = {}
    for one, label, point, policy in ran(scored):
        right, exits, last = samples_of(one, policy)
        harmed = [end and not here for here, end in zip(right, last, strict=True)]
        rows.setdefault((one.name, point), {})[label] = [
            np.array(c, dtype=np.int64) for c in (right, exits, harmed, last)
        ]
    decided = 0
    for (name, point), field in rows.items():
        rule = OperatingPoint.parse(point)
        for label, own in field.items():
            rivals = [other for rival, other in field.items() if rival != label]
            wins = sum(slow_beats(rule, own, other) for other in rivals)
            losses = sum(slow_beats(rule, other, own) for other in rivals)
            row = find(tables["rows"], workload=name, operating_point=point, strategy=label)
            assert (row["rank"], row["wins"], row["losses"]) == (1 + losses, wins, losses)
            assert row["ties"] == len(rivals) - wins - losses
            decided += losses
    assert decided > 5


def test_every_pair_is_listed_once_with_its_tests(scored, tables):
    samples = {(one.name, point, label): samples_of(one, policy) for one, label, point, policy in ran(scored)}
    pairwise = tables["pairwise"]
    fields = {}
    for name, point, label in samples:
        fields.setdefault((name, point), []).append(label)
    assert len(pairwise) == sum(len(labels) * (len(labels) - 1) // 2 for labels in fields.values())
    for row in pairwise.to_dict("records"):
        (right, exits, _), (right2, exits2, _) = (
            samples[row["workload"], row["operating_point"], row[side]] for side in ("strategy", "rival")
        )
        count = len(right)
        only = sum(a and not b for a, b in zip(right, right2, strict=True))
        only2 = sum(b and not a for a, b in zip(right, right2, strict=True))
        assert (row["only_strategy_right"], row["only_rival_right"]) == (only, only2)
        assert row["accuracy_points"] == pytest.approx(100 * (only - only2) / count, abs=1e-9)
        assert row["accuracy_p"] == pytest.approx(float(uncertainty.mcnemar(only, only2)), rel=1e-9)
        assert row["timesteps"] == pytest.approx((sum(exits) - sum(exits2)) / count, abs=1e-9)
        assert row["accuracy_points_low"] <= row["accuracy_points"] + 1e-9
        assert row["timesteps_low"] <= row["timesteps"] <= row["timesteps_high"]
        if exits == exits2:
            assert row["timesteps_p"] == row["timesteps_p_holm"] == 1.0
            assert row["timesteps_low"] == row["timesteps_high"] == 0.0
    for _, family in pairwise.groupby(["workload", "operating_point"]):
        for name in ("accuracy_p", "timesteps_p"):
            plain, adjusted = family[name].tolist(), family[f"{name}_holm"].tolist()
            for level in (0.01, 0.05, 0.3):
                assert {i for i, p in enumerate(adjusted) if p <= level} == uncertainty.holm_rejects(plain, level)


def test_a_timestep_p_value_is_near_that_of_normal_theory(scored, tables):
    samples = {(one.name, point, label): samples_of(one, policy)[1] for one, label, point, policy in ran(scored)}
    seen = 0
    for row in tables["pairwise"].to_dict("records"):
        first, second = (samples[row["workload"], row["operating_point"], row[k]] for k in ("strategy", "rival"))
        difference = np.array(first) - np.array(second)
        if (difference != 0).sum() < 30:
            continue
        distance = max(0, abs(int(difference.sum())) - 1)  # sums of flipped differences lie 2 apart
        z = distance / math.sqrt((difference**2).sum())
        assert row["timesteps_p"] == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.08)
        seen += 1
    assert seen > 5


def test_classes_add_up_to_their_row(scored, tables):
    for one, label, point, policy in ran(scored):
        at = {"workload": one.name, "strategy": label, "operating_point": point}
        row = find(tables["rows"], **at)
        right, exits, last = samples_of(one, policy)
        labels = one.test.labels.tolist()
        mine = tables["classes"]
        for name, value in at.items():
            mine = mine[mine[name] == value]
        assert mine["class"].tolist() == sorted(set(labels))
        assert (mine["accuracy"] * mine["samples"]).sum() / len(labels) == pytest.approx(row["accuracy"])
        assert mine["harmed"].sum() / len(labels) == row["harmed_share"]
        for found in mine.to_dict("records"):
            own = [i for i, k in enumerate(labels) if k == found["class"]]
            assert found["samples"] == len(own)
            assert found["static_accuracy"] == sum(last[i] for i in own) / len(own)
            assert found["accuracy"] == sum(right[i] for i in own) / len(own)
            assert found["delta_points"] == pytest.approx(
                100 * (found["accuracy"] - found["static_accuracy"]), abs=1e-9
            )
            assert found["helped"] == sum(right[i] and not last[i] for i in own)
            assert found["average_exit_timestep"] == sum(exits[i] for i in own) / len(own)


def test_the_reliability_diagram_and_the_error_are_of_the_same_bins(scored, tables):
    for one in scored:
        mine = tables["reliability"][tables["reliability"]["workload"] == one.name]
        errors = json.loads(find(tables["workloads"], workload=one.name)["calibration_error"])
        assert len(mine) == 15 * one.test.timesteps
        for t, error in enumerate(errors, start=1):
            bins = mine[mine["timestep"] == t]
            assert bins["bin"].tolist() == list(range(1, 16))
            assert bins["samples"].sum() == len(one.test)
            held = bins[bins["samples"] > 0]
            gaps = (held["samples"] * (held["accuracy"] - held["confidence"]).abs()).sum() / len(one.test)
            assert gaps == pytest.approx(error, abs=1e-12)
            assert bins[bins["samples"] == 0][["confidence", "accuracy"]].isna().all(axis=None)
        assert errors == reliability(one.test).calibration_error.tolist()


def test_the_summary_is_that_of_the_rows(tables):
    rows = tables["rows"].dropna(subset="rank")
    for found in tables["summary"].to_dict("records"):
        own = rows[(rows["strategy"] == found["strategy"]) & (rows["operating_point"] == found["operating_point"])]
        ranks = own["rank"].tolist()
        mean = sum(ranks) / len(ranks)
        assert (found["workloads"], found["average_rank"]) == (len(ranks), mean)
        assert (found["best_rank"], found["worst_rank"]) == (min(ranks), max(ranks))
        if len(ranks) > 1:
            variance = sum((rank - mean) ** 2 for rank in ranks) / (len(ranks) - 1)
            assert found["rank_deviation"] == pytest.approx(math.sqrt(variance), abs=1e-12)
        by_workload = json.loads(found["by_workload"])
        assert list(by_workload) == own["workload"].tolist()
        for i, name in enumerate(("wins", "losses", "ties")):
            assert found[name] == own[name].sum() == sum(counts[i] for counts in by_workload.values())
    for _, at_point in tables["summary"].groupby("operating_point"):
        order = list(zip(-at_point["workloads"], at_point["average_rank"], strict=True))
        assert order == sorted(order)
        assert at_point["wins"].sum() == at_point["losses"].sum()


def test_no_figure_depends_on_the_workloads_beside_it(scored, tables, monkeypatch):
    monkeypatch.setattr("bench_core.scoring.comparisons._AT_ONCE", 1)
    assert len(list(_batches(scored))) == 3
    apart = board(*scored)
    for name, table in tables.items():
        assert apart[name].to_csv(index=False) == table.to_csv(index=False), name
    alone = board(scored[1])
    for name in ("rows", "pairwise", "classes"):
        expected = tables[name][tables[name]["workload"] == "b"]
        assert alone[name].to_csv(index=False) == expected.to_csv(index=False), name


# --- nasty cases -----------------------------------------------------------------------------------------------------


def test_one_sample_and_one_timestep_make_a_board():
    logits = torch.tensor([[[1.0, 0.0]]])
    for label in (0, 1):  # right, and wrong
        trace = Trace(logits, torch.tensor([label]), torch.tensor([7]))
        found = board(workload("one", trace, trace))
        rows = found["rows"]
        assert (rows["accuracy"].dropna() == 1 - label).all()
        assert rows["saving_realised"].isna().all()
        assert rows["area_share"].isna().all()
        assert (rows["rank"].dropna() == 1).all()
        assert (found["pairwise"][["accuracy_p_holm", "timesteps_p_holm"]] == 1).all(axis=None)
        assert find(found["workloads"], workload="one")["flips_to_wrong"] == "[]"
        assert found["classes"]["class"].unique().tolist() == [label]


def test_a_network_that_is_always_wrong_makes_a_board_without_harm():
    trace = make_trace("normal", 1, 40, 4, 3)
    wrong = Trace(trace.logits[..., :2], torch.full((40,), 1), trace.sample_ids)
    wrong.logits[..., 1] = wrong.logits[..., 0] - 1
    found = board(workload("wrong", wrong, wrong))["rows"].dropna(subset="accuracy")
    assert (found["accuracy"] == 0).all()
    assert (found["harmed_share"] == 0).all()
    assert found["area_share"].isna().all()


def test_identical_policies_share_a_rank_and_differ_in_nothing():
    calibration, test = (make_trace("normal", seed, 80, 4, 3) for seed in (1, 2))
    twin = SeennI()
    one = workload("twins", calibration, test, [SeennI(), Fixed()])
    entries = [*one.entries, Entry("twin", twin.family_knob.name, one.entries[0].scores)]
    found = board(WorkloadScores("twins", entries, test))
    for point, rows in found["rows"].groupby("operating_point"):
        same = rows[rows["strategy"].isin(["seenn-i", "twin"])]
        assert same["rank"].nunique() == 1
        pair = find(found["pairwise"], operating_point=point, strategy="seenn-i", rival="twin")
        assert (pair["accuracy_p"], pair["timesteps_p"]) == (1, 1)
        assert (pair["accuracy_points_low"], pair["timesteps_high"]) == (0, 0)


def test_a_workload_that_failed_and_a_strategy_that_failed_have_rows_and_nothing_else(scored):
    failed = WorkloadScores("failed", [Entry("fixed", "t", None, "failed: because")])
    partly = WorkloadScores("b", [*scored[1].entries, Entry("broken", "k", None, "failed: here")], scored[1].test)
    found = board(failed, partly)
    assert len(found["rows"]) == 3 * (1 + 5)
    assert found["rows"].loc[found["rows"]["status"].str.startswith("failed"), "rank"].isna().all()
    for name in ("pairwise", "classes"):
        assert "failed" not in found[name]["workload"].tolist()
        assert "broken" not in found[name]["strategy"].tolist()
    assert "broken" not in found["summary"]["strategy"].tolist()
    nothing = board(failed)
    assert [len(nothing[name]) for name in ("rows", "pairwise", "classes", "reliability", "summary")] == [3, 0, 0, 0, 0]


def test_an_infeasible_budget_has_no_rank_and_is_in_no_pair():
    calibration, test = (make_trace("normal", seed, 40, 4, 3) for seed in (3, 4))
    found = board(workload("w", calibration, test, rules=["budget:0.1"]), rules=["budget:0.1"])
    assert (found["rows"]["status"] == "infeasible").all()
    assert len(found["pairwise"]) == len(found["summary"]) == 0


def test_nothing_certified_is_said_and_costs_all_timesteps():
    calibration, test = (make_trace("normal", seed, 40, 4, 3) for seed in (3, 4))
    found = board(workload("w", calibration, test, rules=["risk:1,0.05"]), rules=["risk:1,0.05"])["rows"]
    assert (found["status"] == "fallback: static T").all()
    assert (found["note"] == "nothing certified").all()
    assert (found["average_exit_timestep"] == 4).all()
    assert (found["harmed_share"] == 0).all()


def test_more_harm_than_promised_is_a_missed_target():
    calibration = make_trace("normal", 5, 100, 4, 3)
    easy = Trace(calibration.logits * 0, torch.zeros(100, dtype=torch.int64), calibration.sample_ids)
    easy.logits[..., 0] = 1.0
    hard = Trace(easy.logits.clone(), easy.labels, easy.sample_ids)
    hard.logits[:, 0] = torch.tensor([0.0, 9.0, 0.0])  # certain and wrong at the first timestep
    hard.logits[:, 3, 0] = 20.0
    found = board(workload("w", easy, hard, [SeennI()], ["risk:10,0.1"]), rules=["risk:10,0.1"])["rows"]
    assert found["note"].tolist() == ["missed target"]
    assert found["harmed_share"].tolist() == [1.0]
    assert found["saving_realised"].isna().all()


@given(st.lists(st.lists(st.integers(1, 4), min_size=2, max_size=3), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_strategies_ranked_on_more_workloads_come_first(ranks):
    records = [
        {
            "workload": f"w{i}",
            "strategy": f"s{j}",
            "operating_point": "p",
            "rank": rank,
            "wins": 0,
            "losses": 0,
            "ties": 0,
        }
        for i, row in enumerate(ranks)
        for j, rank in enumerate(row)
    ]
    found = summary_table(pd.DataFrame(records))
    assert found["workloads"].tolist() == sorted(found["workloads"], reverse=True)
    assert sorted(found["strategy"]) == sorted({record["strategy"] for record in records})


def test_comparisons_are_of_every_workload_and_operating_point(scored):
    found = compare_workloads(scored, [OperatingPoint.parse(rule) for rule in RULES], resamples=100, seed=0)
    assert list(found) == [(one.name, rule) for one in scored for rule in RULES]
