"""Boards made under one set of kernels and reproduced under another; ties; what the tolerances don't hide."""

import json
import shutil

import pandas as pd
import pytest
import torch

from bench_core.board.board import read_board
from bench_core.errors import UsageError
from bench_core.run.run import run_suite
from bench_core.store.local import Store
from bench_core.util.environment import environment, numerics_fingerprint
from bench_core.workflows.reproduction import agreement, contract
from bench_core.workflows.reproduction.contract import near_threshold, same_cell, same_numerics
from bench_core.workflows.reproduction.reproduce import compare_with, reproduce_board
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.kernels import KERNELS, run_python
from tests.helpers.reproducing import CHANGES
from tests.helpers.suites import DIRECT, parsed_suite, tiny_registry, trained_store, write_plugin

HELPER = ["-m", "tests.helpers.reproducing"]


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    """The folder of a board made under each set of kernels, from the same weights."""
    folder = tmp_path_factory.mktemp("boards")
    for kernels in KERNELS:
        trained_store(tmp_path_factory, folder / kernels / "home")
        run_python([*HELPER, "make", str(folder / kernels)], kernels)
    return folder


@pytest.fixture(scope="module")
def checked(boards):
    """By kernels here, and kernels of the board: what reproducing it said."""
    folders = [str(boards / there) for there in KERNELS]
    return {here: json.loads(run_python([*HELPER, "check", *folders], here).stdout) for here in KERNELS}


@pytest.fixture(scope="module")
def changed(boards):
    """By kernels here, and change: what reproducing the native board said."""
    folder = str(boards / "native")
    return {here: json.loads(run_python([*HELPER, "change", folder], here).stdout) for here in KERNELS}


@pytest.mark.parametrize("there", KERNELS)
@pytest.mark.parametrize("here", KERNELS)
def test_a_board_is_reproduced_under_other_kernels(checked, here, there):
    for way, found in checked[here][there].items():
        assert found["drift"] == []
        if way == "traces" or here == there:  # decisions don't depend on kernels, which is more than is promised
            assert any("are equal byte by byte" in line for line in found["remarks"])


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("here", KERNELS)
def test_a_change_is_found_under_every_set_of_kernels(changed, here, change):
    assert changed[here][change]["drift"] != []


# --- fingerprint -----------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_the_same_in_every_process_with_the_same_kernels():
    code = "from bench_core.util.environment import numerics_fingerprint as f; print(f())"
    once, twice = (run_python(["-c", code], "native", variables={"OMP_NUM_THREADS": n}).stdout for n in "12")
    assert once == twice
    assert len(once.strip()) == 16


def test_a_fingerprint_leaves_threads_and_types_as_they_were():
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    try:
        first = numerics_fingerprint.__wrapped__() if hasattr(numerics_fingerprint, "__wrapped__") else None
        assert first is None or first == numerics_fingerprint()
        assert (torch.get_num_threads(), torch.get_default_dtype()) == (2, torch.float64)
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


def test_environments_are_alike_only_with_the_same_fingerprint():
    here = environment()
    assert same_numerics(here, here, threads=True)
    assert not same_numerics({**here, "numerics": "0" * 16}, here, threads=False)
    assert not same_numerics({name: value for name, value in here.items() if name != "numerics"}, here, threads=False)
    assert same_numerics({**here, "threads": 99}, here, threads=False)
    assert not same_numerics({**here, "threads": 99}, here, threads=True)


# --- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "expected", "found", "same"),
    [
        ("value", 0.5, 0.5 * (1 + 1e-10), True),
        ("value", 0.5, 0.5 * (1 + 1e-6), False),
        ("value", 1e-14, 1.00001e-14, False),
        ("gap_points", 1e-15, -1e-15, True),
        ("accuracy", 0.9, 0.9001, False),
        ("status", "ok", "fallback: static T", False),
        ("exit_histogram", "[1, 2]", "[1, 3]", False),
        ("exit_histogram", "[1, 2]", "[1, 2, 0]", False),
        ("parameters", '{"alpha": 2.0}', '{"alpha": 2.0000000001}', True),
        ("parameters", '{"alpha": 2.0}', '{"alpha": 2.001}', False),
        ("parameters", '{"alpha": 2.0}', '{"beta": 2.0}', False),
        ("parameters", '{"search": "exact"}', '{"search": "bins"}', False),
        ("accuracy", None, float("nan"), True),
        ("accuracy", None, 0.0, False),
    ],
)
def test_cells_agree_to_nine_digits(column, expected, found, same):
    assert same_cell(column, expected, found) == same


def test_samples_on_the_edge_are_counted():
    scores = torch.tensor([[0.5, 0.9], [0.5 + 1e-12, 0.0], [0.4, 0.4], [0.0, 0.5 - 1e-12]], dtype=torch.float64)
    assert near_threshold(scores, 0.5) == 3
    assert near_threshold(scores, 0.45) == 0
    assert near_threshold(scores, float("inf")) == 0


# --- ties ------------------------------------------------------------------------------------------------------------

COARSE = """
import os


class Coarse(ScoreStrategy):
    name = "coarse"
    reference = "nobody"
    family_knob = Knob("threshold", low=-1.0, high=2.0)

    def score(self, evidence):
        # Of every fifth sample a tie that kernels break: the last digits depend on where this runs.
        sure = evidence.readout().largest_probability
        tie = torch.floor(6 * sure) / 6 + 1e-12 * evidence.uniform(int(os.environ["KERNELS"]))
        return torch.where(evidence.uniform(0) < 0.2, tie, sure)


@hookimpl
def bench_exit_strategies():
    return [Coarse()]
"""


@pytest.fixture
def tied(tmp_path, tmp_path_factory, monkeypatch):
    """The folder of a board with ties, and its reproduction where they are broken in another way."""
    registry = tiny_registry(write_plugin(tmp_path / "coarse.py", COARSE))
    store, folder = trained_store(tmp_path_factory, tmp_path / "store"), tmp_path / "board"
    suite = parsed_suite(workloads=[DIRECT], strategies=[{"name": "coarse"}, {"name": "seenn-i"}, {"name": "fixed"}])
    monkeypatch.setenv("KERNELS", "1")
    run_suite(suite, registry=registry, output=folder, store=store, export_traces=True)
    monkeypatch.setenv("KERNELS", "2")
    monkeypatch.setattr(agreement, "same_numerics", lambda *_, **__: False)
    return folder, lambda: reproduce_board(folder, registry, from_weights=False, store=store, verified=False)


def test_samples_that_rounding_decides_are_counted_and_no_drift(tied):
    _, again = tied
    found = again()
    assert found.drift == []
    assert any("rounding decides" in line for line in found.remarks)


def test_a_tie_excuses_no_more_samples_than_are_on_the_edge(tied):
    folder, again = tied
    rows = pd.read_csv(folder / "rows.csv")
    place = rows.index[rows["strategy"] == "coarse"][0]
    histogram = json.loads(rows.loc[place, "exit_histogram"])
    rows.loc[place, "exit_histogram"] = json.dumps([sum(histogram), *([0] * (len(histogram) - 1))])
    rows.to_csv(folder / "rows.csv", index=False)
    assert any("coarse" in line and "exit_histogram" in line for line in again().drift)


def test_rows_without_ties_are_held_to_their_figures(tied):
    folder, again = tied
    rows = pd.read_csv(folder / "rows.csv")
    place = rows.index[rows["strategy"] == "seenn-i"][0]
    rows.loc[place, "harmed_share"] += 0.01
    rows.to_csv(folder / "rows.csv", index=False)
    assert any("seenn-i" in line and "harmed_share" in line for line in again().drift)


# --- another board of the same suite ---------------------------------------------------------------------------------


def test_a_board_made_elsewhere_is_compared_like_one_from_weights(boards, tmp_path):
    store = Store(boards / "avx2" / "home", zoo=None)
    registry = tiny_registry()
    native, avx2 = (boards / name / "board" for name in ("native", "avx2"))
    found = compare_with(native, avx2, registry, store=store)
    assert found.drift == []
    assert "native" in found.remarks[0] and "avx2" in found.remarks[0]
    other = tmp_path / "other"
    run_suite(parsed_suite(name="other"), registry=registry, output=other, store=store)
    with pytest.raises(UsageError, match="made by another suite"):
        compare_with(native, other, registry, store=store)


def test_networks_that_say_something_else_drift(boards, tmp_path, monkeypatch):
    """A board whose rows were made by other policies than it shows is outside the tolerances."""
    folder = tmp_path / "board"
    shutil.copytree(boards / "native" / "board", folder)
    rows = pd.read_csv(folder / "rows.csv")
    place = rows.index[(rows["strategy"] == "fixed") & (rows["accuracy"].notna())][0]
    rows.loc[place, "accuracy"] -= 0.05
    rows.to_csv(folder / "rows.csv", index=False)
    store = Store(boards / "avx2" / "home", zoo=None)
    found = compare_with(folder, boards / "avx2" / "board", tiny_registry(), store=store, verified=False)
    (line,) = (
        found.drift
    )  # "at its committed knob", or, where these kernels are the processor's own, as a byte that differs
    assert "fixed" in line and "accuracy" in line
    assert read_board(folder, verified=False).rows.loc[place, "strategy"] == "fixed"
    assert contract.accuracy_allowance(10_000) == pytest.approx(0.0015)


def test_without_weights_nothing_is_trained(boards, tmp_path):
    with pytest.raises(UsageError, match="weights are neither in the store nor in the package"):
        reproduce_board(
            boards / "native" / "board", tiny_registry(), from_weights=True, store=Store(tmp_path / "empty", zoo=None)
        )


def test_a_row_that_is_missing_is_no_tie(tied):
    folder, again = tied
    rows = pd.read_csv(folder / "rows.csv")
    rows[rows["strategy"] != "coarse"].to_csv(folder / "rows.csv", index=False)
    assert any("coarse" in line for line in again().drift)


# --- some workloads alone --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["traces", "weights"])
@pytest.mark.parametrize("made", ["native", "default"])
def test_some_workloads_alone_are_judged_alone(boards, tmp_path, made, way):
    folder, store = tmp_path / "board", Store(boards / made / "home", zoo=None)
    shutil.copytree(boards / made / "board", folder)
    rows = pd.read_csv(folder / "rows.csv")
    place = rows.index[(rows["workload"] == "converted") & (rows["strategy"] == "fixed") & rows["accuracy"].notna()][0]
    rows.loc[place, "accuracy"] -= 0.05
    rows.to_csv(folder / "rows.csv", index=False)

    def found(*only):
        again = reproduce_board(
            folder, tiny_registry(), from_weights=way == "weights", only=only, store=store, verified=False
        )
        assert f"{folder}: {sum(rows['workload'].isin(only))} rows recomputed from {way}" in again.remarks
        return again.drift

    assert found("direct") == []
    assert "fixed" in "\n".join(found("converted"))
    assert found("converted", "direct") == found("converted")


def test_an_unknown_workload_is_named_with_the_nearest_one(boards):
    with pytest.raises(UsageError, match=r"'dirrect': no workload of the board \(did you mean 'direct'\?\)"):
        reproduce_board(boards / "native" / "board", tiny_registry(), from_weights=False, only=["dirrect"])
