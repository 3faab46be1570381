"""Networks that differ in their seed only: how suites name them, and what a board says over them."""

import json
import math
import statistics

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench_core.board.board import OPTIONAL_TABLES, TABLES, read_board
from bench_core.board.consistency import contradictions
from bench_core.board.csv_tables import read_table
from bench_core.board.over_seeds import over_seeds, seed_table
from bench_core.board.schema import SEED_COLUMNS
from bench_core.errors import SuiteError
from bench_core.report.markdown import markdown
from bench_core.report.terminal import terminal
from bench_core.run.run import run_suite
from bench_core.run.suite import load_suite, parse_suite, seed_groups
from bench_core.store.local import Store
from bench_core.workflows.reproduction.reproduce import reproduce_board
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.suites import DIRECT, EVENTS, parsed_suite, tiny_registry, write_suite

SHORT = {**DIRECT["recipe"], "epochs": 3}
SEVERAL = {**DIRECT, "name": "net", "recipe": SHORT, "seeds": [1, 2, 3]}
T_975 = {5: 2.7764451, 6: 2.5705818, 10: 2.2621572}  # Student's t, n - 1 degrees of freedom, from printed tables


# --- suites ----------------------------------------------------------------------------------------------------------


def test_seeds_make_a_workload_each_that_differs_in_nothing_else(tmp_path):
    suite = load_suite(str(write_suite(tmp_path / "s.toml", workloads=[SEVERAL, EVENTS])))
    assert [(w.name, w.seed) for w in suite.workloads] == [
        ("net-seed1", 1),
        ("net-seed2", 2),
        ("net-seed3", 3),
        ("events", 0),
    ]
    apart = [w.model_dump(exclude={"name", "seed"}) for w in suite.workloads[:3]]
    assert apart[0] == apart[1] == apart[2]
    assert seed_groups(suite) == {"net": ["net-seed1", "net-seed2", "net-seed3"]}


def test_the_manifest_form_of_a_suite_is_read_back_and_names_no_new_field():
    suite = parsed_suite(workloads=[SEVERAL])
    dumped = suite.model_dump(by_alias=True)
    assert parse_suite(json.loads(json.dumps(dumped)), "again") == suite
    assert all("seeds" not in workload for workload in dumped["workloads"])
    assert "shift" not in dumped


def test_entries_of_their_own_that_differ_in_seed_and_name_belong_together():
    first, second = {**DIRECT, "name": "a"}, {**DIRECT, "name": "b", "seed": 7}
    other = {**DIRECT, "name": "c", "seed": 8, "timesteps": 3}
    assert seed_groups(parsed_suite(workloads=[first, second, other])) == {"a": ["a", "b"]}


def test_the_same_seed_twice_is_no_group_and_names_in_common_stay_apart():
    twice = [{**DIRECT, "name": "a"}, {**DIRECT, "name": "b"}]
    assert seed_groups(parsed_suite(workloads=twice)) == {}
    shorter = [{**DIRECT, "name": f"net-seed{s}", "seed": s, "timesteps": 3} for s in (4, 5)]
    groups = seed_groups(parsed_suite(workloads=[SEVERAL, *shorter]))
    assert groups == {"net": ["net-seed1", "net-seed2", "net-seed3"], "net-seed4": ["net-seed4", "net-seed5"]}


def test_only_takes_the_common_name_or_one_of_the_seeds():
    suite = parsed_suite(workloads=[SEVERAL, EVENTS])
    assert [w.name for w in suite.only(["net", "fixed"]).workloads] == ["net-seed1", "net-seed2", "net-seed3"]
    assert [s.name for s in suite.only(["net", "fixed"]).strategies] == ["fixed"]
    assert [w.name for w in suite.only(["net-seed2"]).workloads] == ["net-seed2"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": [1]}, "two or more"),
        ({"seeds": []}, "two or more"),
        ({"seeds": [1, 2, 1]}, "all different"),
        ({"seeds": [1, 2], "seed": 3}, "both seed and seeds"),
        ({"seeds": [1, -2]}, "seeds.1"),
        ({"seeds": ["1", "2"]}, "seeds.0"),
        ({"seeds": [1, 2], "name": "x" * 60}, "longer than 64"),
    ],
)
def test_seeds_that_cannot_be_are_one_line(change, words):
    with pytest.raises(SuiteError, match=words) as error:
        parsed_suite(workloads=[{**DIRECT, **change}])
    assert "\n" not in str(error.value)


def test_a_seed_that_makes_a_name_that_exists_is_refused():
    with pytest.raises(SuiteError, match="unique: net-seed2"):
        parsed_suite(workloads=[SEVERAL, {**DIRECT, "name": "net-seed2"}])


# --- figures ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=4))
def test_few_seeds_have_a_range_and_a_single_one_has_none(values):
    mean, low, high, what = over_seeds(values)
    assert mean == pytest.approx(math.fsum(values) / len(values), abs=1e-9)
    if len(values) == 1:
        assert math.isnan(low) and math.isnan(high) and what == ""
    else:
        assert (low, high, what) == (min(values), max(values), "range")


@pytest.mark.parametrize("count", T_975)
def test_five_seeds_have_students_interval(count):
    values = [0.9 + 0.01 * ((7 * i) % count) for i in range(count)]
    mean, low, high, what = over_seeds(values)
    half = T_975[count] * statistics.stdev(values) / math.sqrt(count)
    assert what == "95 % t"
    assert (low, high) == (pytest.approx(mean - half, abs=1e-7), pytest.approx(mean + half, abs=1e-7))


def test_equal_values_have_an_interval_of_nothing():
    assert over_seeds([0.5] * 6)[:3] == (0.5, 0.5, 0.5)


def rows(values):
    """rows.csv as far as it matters: (workload, strategy, accuracy or None, note)."""
    return pd.DataFrame(
        [
            {
                "workload": workload,
                "strategy": strategy,
                "operating_point": "budget:0.5",
                "accuracy": accuracy,
                "delta_points": None if accuracy is None else 100 * (accuracy - 0.9),
                "average_exit_timestep": None if accuracy is None else 4 * accuracy,
                "note": note,
            }
            for workload, strategy, accuracy, note in values
        ]
    )


def test_a_seed_that_failed_is_left_out_and_not_a_zero():
    table = seed_table(
        rows(
            [
                ("a1", "x", 0.8, ""),
                ("a2", "x", None, None),
                ("a3", "x", 0.9, "missed target"),
                ("a1", "y", None, ""),
                ("b", "x", 0.1, ""),
            ]
        ),
        {"a": ["a1", "a2", "a3"]},
    )
    assert list(table.columns) == list(SEED_COLUMNS)
    x, y = table.to_dict("records")
    assert (x["workload"], x["strategy"], x["seeds"], json.loads(x["workloads"])) == ("a", "x", 2, ["a1", "a3"])
    assert (x["accuracy"], x["accuracy_low"], x["accuracy_high"]) == (pytest.approx(0.85), 0.8, 0.9)
    assert x["delta_points"] == pytest.approx(-5)
    assert (x["missed"], x["interval"]) == (1, "range")
    assert (y["seeds"], json.loads(y["workloads"])) == (0, [])
    assert pd.isna(y["accuracy"]) and pd.isna(y["missed"])


def test_without_a_group_there_is_no_table():
    assert seed_table(rows([("a", "x", 0.8, "")]), {}) is None


# --- boards ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, registry = tmp_path_factory.mktemp("seeds"), tiny_registry()
    suite = parsed_suite(workloads=[SEVERAL])
    store = Store(folder / "store", zoo=None)
    board = run_suite(suite, registry=registry, output=folder / "board", store=store, export_traces=True)
    return board, folder / "board", registry


def test_a_board_has_a_row_over_seeds_for_every_row_of_one(made):
    board, folder, _ = made
    found = read_table(folder / "seeds.csv")
    assert list(found.columns) == list(SEED_COLUMNS)
    assert len(found) * 3 == len(board.rows)
    for row in found.to_dict("records"):
        same = (board.rows["strategy"] == row["strategy"]) & (board.rows["operating_point"] == row["operating_point"])
        values = board.rows[same]["average_exit_timestep"].dropna().tolist()
        assert row["seeds"] == len(values)
        if len(values) > 1:
            assert row["average_exit_timestep"] == pytest.approx(sum(values) / len(values))
            assert (row["average_exit_timestep_low"], row["average_exit_timestep_high"]) == (min(values), max(values))
    weights = board.rows.groupby("workload")["weights"].first()
    assert weights.nunique() == 3


def test_the_seeds_are_shown_and_the_files_agree(made):
    _, folder, _ = made
    board = read_board(folder)
    assert set(board.tables) == {*TABLES, "seeds"} and set(OPTIONAL_TABLES) == {"seeds", "shift"}
    assert list(contradictions(board)) == []
    text = (folder / "leaderboard.md").read_text(encoding="utf-8")
    assert text == markdown(board)
    assert text.count("## Over seeds") == 1
    assert "### net, iso-accuracy:1" in text
    shown = terminal(board, ["iso-accuracy:1"])
    assert "net, iso-accuracy:1, over seeds" in shown
    board.seeds.loc[0, "accuracy"] += 0.01
    assert "seeds.csv does not follow from rows.csv" in list(contradictions(board))


def test_the_seeds_are_reproduced_and_drift_is_named(made):
    _, folder, registry = made
    assert reproduce_board(folder, registry, from_weights=False).drift == []
    kept = (folder / "seeds.csv").read_bytes()
    try:
        table = read_table(folder / "seeds.csv")
        table.loc[0, "accuracy_low"] -= 0.25
        table.to_csv(folder / "seeds.csv", index=False)
        (line,) = reproduce_board(folder, registry, from_weights=False, verified=False).drift
        assert line.startswith("seeds.csv: net, ") and "accuracy_low: expected" in line
    finally:
        (folder / "seeds.csv").write_bytes(kept)


def test_a_board_of_one_seed_has_no_such_file():
    assert seed_groups(load_suite("quick")) == {}
