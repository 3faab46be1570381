"""``exitbench reproduce --from scratch``: networks trained again, differences with their intervals, nothing judged."""

import math
import shutil

import numpy as np
import pandas as pd
import pytest

from bench_core.board.board import TABLES
from bench_core.run.artifacts import Workload, trained_weights
from bench_core.run.run import run_suite
from bench_core.run.suite import load_suite
from bench_core.store.local import Store
from bench_core.workflows.retrain import PAIRED, STATIC, UNPAIRED, retrain_board, unpaired
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.suites import DIRECT, TINY_PLUGIN, parsed_suite, tiny_registry, write_suite

BRIEF = {**DIRECT, "recipe": {**DIRECT["recipe"], "epochs": 5}}
KEYS = ["workload", "strategy", "operating_point"]
DIGITS = {"name": "digits-net", "dataset": "digits", "model": "small-conv", "timesteps": 2, "recipe": {"epochs": 1}}


def network_of(store, spec, registry):
    return trained_weights(Workload.resolve(spec, registry), store)


def put_negative(store, spec, registry):
    """Put into a store, as the network of a workload, the negative of what is trained: wrong where that is right."""
    artifact = network_of(Store(store.root.with_name("trained"), zoo=None), spec, registry)
    *_, readout = [name for name, tensor in artifact.tensors.items() if tensor.ndim == 2]
    tensors = {**artifact.tensors, readout: -artifact.tensors[readout]}
    store.put("networks", Workload.resolve(spec, registry).training_key, tensors, artifact.metadata)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A board whose network is not what its suite trains, but its negative."""
    folder, registry = tmp_path_factory.mktemp("scratch"), tiny_registry()
    store, suite = Store(folder / "store", zoo=None), parsed_suite(workloads=[BRIEF])
    (spec,) = suite.workloads
    put_negative(store, spec, registry)
    board = run_suite(suite, registry=registry, output=folder / "board", store=store, export_traces=True)
    return board, folder / "board", registry


@pytest.fixture(scope="module")
def again(made, tmp_path_factory):
    kept = tmp_path_factory.mktemp("kept") / "tables"
    return retrain_board(made[1], made[2], keep=kept), kept


def test_every_row_and_static_t_stand_with_both_figures(made, again):
    board, _, _ = made
    found, kept = again
    table = found.differences
    assert found.problems == []
    assert table[table["strategy"] == STATIC]["workload"].tolist() == ["direct"]
    old = table.merge(board.rows[board.rows["accuracy"].notna()], on=KEYS)
    assert len(old) >= 4
    assert np.allclose(old["accuracy_committed"], old["accuracy"])
    assert np.allclose(old["timesteps_committed"], old["average_exit_timestep"])
    new = table.merge(pd.read_csv(kept / "rows.csv"), on=KEYS)
    assert np.allclose(new["accuracy_found"], new["accuracy"])
    assert np.allclose(new["timesteps_found"], new["average_exit_timestep"])
    assert np.allclose(table["accuracy_points"], 100 * (table["accuracy_found"] - table["accuracy_committed"]))
    assert (table["accuracy_points"].abs() > 0).any()
    assert {path.name for path in kept.iterdir()} == {"differences.csv", *(f"{name}.csv" for name in TABLES)}


def test_intervals_are_paired_where_traces_are_there_and_hold_the_difference(again):
    table = again[0].differences
    assert set(table["interval"]) == {PAIRED}
    for name in ("accuracy_points", "timesteps"):
        assert (table[f"{name}_low"] <= table[name]).all() and (table[name] <= table[f"{name}_high"]).all()
    text = again[0].text
    assert "95 % intervals: paired bootstrap" in text
    assert text.splitlines()[-1] == "differences are not judged"


def test_without_traces_the_intervals_are_unpaired_and_say_so(made, again, tmp_path):
    _, folder, registry = made
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("traces"))
    found = retrain_board(bare, registry)
    assert set(found.differences["interval"]) == {UNPAIRED}
    columns = ["accuracy_points", "timesteps", "accuracy_found"]
    left, right = (one.differences.set_index(KEYS)[columns].sort_index() for one in (again[0], found))
    assert np.allclose(left, right)
    row = found.differences[found.differences["strategy"] == STATIC].iloc[0]
    p, q, n = row["accuracy_committed"], row["accuracy_found"], 300
    half = 100 * 1.959964 * math.sqrt((p * (1 - p) + q * (1 - q)) / n)
    assert row["accuracy_points_high"] - row["accuracy_points"] == pytest.approx(half, rel=1e-5)
    assert (row["timesteps_low"], row["timesteps_high"]) == (0, 0)


def test_the_unpaired_interval_of_samples_is_that_of_normal_theory():
    generator = np.random.default_rng(1)
    one, other = generator.integers(1, 9, 400), generator.integers(1, 6, 250)
    low, high = unpaired((one.mean(), one.var(), 400), (other.mean(), other.var(), 250))
    assert (low + high) / 2 == pytest.approx(other.mean() - one.mean())
    draws = [generator.choice(other, 250).mean() - generator.choice(one, 400).mean() for _ in range(4000)]
    assert high - low == pytest.approx(2 * 1.96 * np.std(draws), rel=0.05)


def test_the_same_network_again_differs_in_nothing(made, again, tmp_path):
    """A board that was trained by the suite itself, on this machine."""
    _, _, registry = made
    suite = parsed_suite(workloads=[BRIEF])
    store = Store(tmp_path / "store", zoo=None)
    run_suite(suite, registry=registry, output=tmp_path / "own", store=store, export_traces=True)
    table = retrain_board(tmp_path / "own", registry).differences
    zero = [name for name in table if name.startswith(("accuracy_points", "timesteps")) and name.count("_") < 3]
    differences = [name for name in zero if name not in ("timesteps_committed", "timesteps_found")]
    assert (table[differences] == 0).all().all()


def test_a_network_that_cannot_be_trained_again_is_a_failure_and_exit_1(made, tmp_path, exitbench):
    _, folder, _ = made
    plugin = tmp_path / "without_training.py"
    source = TINY_PLUGIN.read_text().replace("if name not in SPLITS:", 'if name == "train" or name not in SPLITS:')
    plugin.write_text(source)
    answer = exitbench("reproduce", folder, "--from", "scratch", "--plugin", plugin)
    assert answer.code == 1
    assert "direct, seenn-i, iso-accuracy:1: failed: tiny-shapes has no split 'train'" in answer.out
    assert answer.out.rstrip().splitlines()[-1] == "failed"


def test_an_unknown_source_is_one_line(made, exitbench):
    answer = exitbench("reproduce", made[1], "--from", "memory")
    assert answer.code == 2
    assert "--from memory: it is traces, weights or scratch" in answer.err


def test_digits_are_trained_again_on_the_command_line(tmp_path, exitbench):
    pytest.importorskip("sklearn")
    path = write_suite(tmp_path / "digits.toml", workloads=[DIGITS])
    answer = exitbench("run", path, "--output", tmp_path / "board", "--traces")
    assert answer.code == 0
    kept = tmp_path / "kept"
    answer = exitbench("reproduce", tmp_path / "board", "--from", "scratch", "--tables", kept)
    assert answer.code == 0
    assert "digits-net (95 % intervals: paired bootstrap)" in answer.out
    assert load_suite(str(path)).workloads[0].name == "digits-net"
    assert (kept / "differences.csv").is_file()


def test_corruptions_are_run_through_the_new_networks_too(made, tmp_path):
    _, _, registry = made
    store = Store(tmp_path / "store", zoo=None)
    shift = {"corruptions": ["noise", "contrast"], "severities": [5], "samples": 60}
    suite = parsed_suite(workloads=[BRIEF], shift=shift)
    (spec,) = suite.workloads
    put_negative(store, spec, registry)
    board = run_suite(suite, registry=registry, output=tmp_path / "board", store=store)
    found = retrain_board(tmp_path / "board", registry, keep=tmp_path / "kept")
    again = pd.read_csv(tmp_path / "kept" / "shift.csv", dtype={"trace": str})
    table, keys = found.shift, [*KEYS, "corruption", "severity"]
    pd.testing.assert_frame_equal(table, pd.read_csv(tmp_path / "kept" / "shift-differences.csv"), check_dtype=False)
    assert len(table) == len(board.shift) == len(again)
    assert set(zip(table["corruption"], table["severity"], strict=True)) == {
        ("clean", 0),
        ("noise", 5),
        ("contrast", 5),
    }
    for one, end in ((board.shift, "committed"), (again, "found")):
        both = table.merge(one, on=keys)
        assert np.allclose(both[f"accuracy_{end}"], both["accuracy"])
        assert np.allclose(both[f"timesteps_{end}"], both["average_exit_timestep"])
        assert (both[f"promise_{end}"] == both["promise"]).all()
    row = table.iloc[-1]
    p, q = row["accuracy_committed"], row["accuracy_found"]
    half = 100 * 1.959964 * math.sqrt((p * (1 - p) + q * (1 - q)) / 60)
    assert row["accuracy_points_high"] - row["accuracy_points"] == pytest.approx(half, rel=1e-5)
    ends = board.shift.merge(again, on=keys, suffixes=("", "_found")).iloc[-1]
    halves = [ends[f"average_exit_timestep_high{e}"] - ends[f"average_exit_timestep_low{e}"] for e in ("", "_found")]
    assert row["timesteps_high"] - row["timesteps_low"] == pytest.approx(math.hypot(*halves))
    assert "direct under corruption, means over policies (95 % intervals: unpaired normal)" in found.text
    broken = [
        (table[(table["corruption"] == "noise")][f"promise_{e}"] == "broken").sum() for e in ("committed", "found")
    ]
    assert f"{broken[0]} → {broken[1]} of {(table['corruption'] == 'noise').sum()}" in found.text
