"""The main job on a tiny suite: what it writes, what it keeps, and that no stop and no failure spoils it."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from bench_core import Requirement, load_registry, load_suite
from bench_core.board import schema as columns
from bench_core.board.board import TABLES, read_board
from bench_core.data import calibration_halves
from bench_core.errors import DataError, UsageError
from bench_core.exits.strategy import Calibration, NeverExit
from bench_core.live.engine import LiveSamples, run_live
from bench_core.recording import record as recording
from bench_core.replay.controller import replay_policy
from bench_core.report.terminal import terminal
from bench_core.run import artifacts as stages
from bench_core.run import evaluate as competition
from bench_core.run.artifacts import Workload, recorded_trace, recording_key, spiking_network, trained_weights
from bench_core.run.evaluate import fitted_artifacts
from bench_core.run.plan import plan
from bench_core.run.run import competitors, run_suite
from bench_core.store.local import Store
from bench_core.trace.files import load_trace
from bench_core.trace.trace import Trace
from bench_core.workflows.reproduction.reproduce import reproduce_board
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.boards import write_board
from tests.helpers.numerics import assert_agree
from tests.helpers.processes import module_path
from tests.helpers.suites import (
    CONVERTED,
    DIRECT,
    EVENTS,
    TINY_PLUGIN,
    parsed_suite,
    tiny_registry,
    trained_store,
    write_plugin,
    write_suite,
)
from tests.helpers.tiny_plugin import TinyShapes

QUICK = Path(__file__).parent.parent / "results" / "quick"
DETERMINISTIC = tuple(f"{name}.csv" for name in TABLES)
WORKLOADS = [DIRECT, EVENTS, CONVERTED]


@pytest.fixture(scope="module")
def registry():
    return tiny_registry()


def run(folder, registry, *, store=None, **options):
    """Run the tiny suite into ``folder``; options of the suite and of ``run_suite`` mixed."""
    own = {name: options.pop(name) for name in ("refit", "remeasure", "export_traces", "command") if name in options}
    store = store or Store(folder.parent / f"{folder.name}-store", zoo=None)
    return run_suite(parsed_suite(**options), registry=registry, output=folder, store=store, **own)


@pytest.fixture(scope="module")
def every(registry):
    """Every strategy, one of them in two variants; policy networks are trained for a moment only."""
    names = [name for name in registry.strategies if name != "seenn-ii"]
    variants = [("seenn-ii", {"epochs": 1}), ("seenn-i", {"accumulate": "mean"})]
    return [{"name": name} for name in names] + [{"name": name, "parameters": knobs} for name, knobs in variants]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, registry, every):
    """A run of three workloads with every strategy: its board, its folder and its store."""
    folder = tmp_path_factory.mktemp("finished") / "board"
    store = Store(folder.parent / "store", zoo=None)
    board = run(folder, registry, store=store, workloads=WORKLOADS, strategies=every, export_traces=True)
    return board, folder, store


@pytest.fixture
def trained(tmp_path_factory, tmp_path):
    """A store of this test's own with trained networks and nothing else."""
    return trained_store(tmp_path_factory, tmp_path / "store")


def contents(folder, names=DETERMINISTIC):
    return {name: (folder / name).read_bytes() for name in names}


def artifacts(store, kind):
    return sorted((store.root / kind).rglob("*.safetensors"))


# --- what a run writes -----------------------------------------------------------------------------------------------


def test_a_run_writes_all_files_and_no_others(finished):
    board, folder, _ = finished
    traces = {
        f"traces/{workload['name']}-{split}.safetensors" for workload in WORKLOADS for split in ("calibration", "test")
    }
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    measured = {"measurements.csv", "measurements-raw.csv", "training.csv"}
    assert names == {*DETERMINISTIC, *measured, "manifest.json", "leaderboard.md", *traces}
    assert board.failures == 0


def test_every_strategy_has_a_row_at_every_operating_point(finished, registry):
    rows = finished[0].rows
    names = [name for name in registry.strategies if name != "seenn-ii"]
    labels = [*names, "seenn-ii[epochs=1]", "seenn-i[accumulate=mean]"]
    for workload in WORKLOADS:
        for point in ("iso-accuracy:1", "budget:0.5"):
            here = rows[(rows["workload"] == workload["name"]) & (rows["operating_point"] == point)]
            assert here["strategy"].tolist() == labels
            assert here["rank"].notna().sum() == (here["status"] != "infeasible").sum()
            assert here["rank"].min() == 1


def test_columns_are_those_of_the_dictionary(finished):
    _, folder, _ = finished
    costs = list(columns.cost_columns("cmos45"))
    expected = list(columns.ROW_COLUMNS)
    expected[expected.index("weights") : expected.index("weights")] = costs
    assert pd.read_csv(folder / "rows.csv").columns.tolist() == expected
    assert pd.read_csv(folder / "workloads.csv").columns.tolist() == list(columns.WORKLOAD_COLUMNS)
    assert pd.read_csv(folder / "curves.csv").columns.tolist() == list(columns.CURVE_COLUMNS)
    assert pd.read_csv(folder / "measurements.csv").columns.tolist() == list(columns.MEASUREMENT_COLUMNS)


@pytest.mark.parametrize("name", [*TABLES, "measurements"])
def test_a_board_is_read_back_to_the_last_digit(finished, name):
    board, folder, _ = finished
    written, found = getattr(board, name), getattr(read_board(folder), name)
    assert found.columns.tolist() == written.columns.tolist()
    for column in written:
        if pd.api.types.is_numeric_dtype(written[column]):
            expected, values = (table[column].astype("Float64") for table in (written, found))
            assert expected.equals(values.astype("Float64")), column
        else:
            empty = [table[column].fillna("").astype(str).tolist() for table in (written, found)]
            assert empty[0] == empty[1], column


def test_nothing_of_the_machine_is_in_the_deterministic_files(finished):
    _, folder, _ = finished
    for name, content in contents(folder).items():
        for word in (str(folder), os.uname().nodename, time.strftime("%Y-%m-%d")):
            assert word.encode() not in content, name


@pytest.mark.numerics
def test_fixed_rows_repeat_static_accuracy(finished):
    board, _, _ = finished
    static = {row["workload"]: json.loads(row["static_accuracy"]) for row in board.workloads.to_dict("records")}
    fixed = board.rows[board.rows["strategy"] == "fixed"]
    assert len(fixed) == 6
    for row in fixed.to_dict("records"):
        t = int(row["value"])
        assert row["accuracy"] == static[row["workload"]][t - 1]
        assert row["average_exit_timestep"] == t
        assert row["same_histogram_accuracy"] == pytest.approx(row["accuracy"])
    curve = board.curves[board.curves["strategy"] == "fixed"]
    for name, accuracies in static.items():
        assert curve[curve["workload"] == name]["accuracy"].tolist() == accuracies


@pytest.mark.numerics
def test_figures_of_a_row_agree_with_each_other(finished):
    board, _, _ = finished
    static = {row["workload"]: json.loads(row["static_accuracy"]) for row in board.workloads.to_dict("records")}
    for row in board.rows[board.rows["samples"].notna()].to_dict("records"):
        histogram = json.loads(row["exit_histogram"])
        assert sum(histogram) == row["samples"] == 300
        mean = sum(t * count for t, count in enumerate(histogram, start=1)) / 300
        assert row["average_exit_timestep"] == pytest.approx(mean, abs=1e-12)
        assert row["delta_points"] == pytest.approx(100 * (row["accuracy"] - static[row["workload"]][-1]), abs=1e-9)
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        expected = (
            sum(count * accuracy for count, accuracy in zip(histogram, static[row["workload"]], strict=True)) / 300
        )
        assert row["same_histogram_accuracy"] == pytest.approx(expected, abs=1e-12)
        assert row["gap_points"] == pytest.approx(100 * (row["select_accuracy"] - row["accuracy"]), abs=1e-9)
        assert row["energy_cmos45_share"] > 0


def test_energy_of_static_t_is_that_of_its_counts(finished):
    board, folder, _ = finished
    trace = load_trace(folder / "traces" / "events-test.safetensors")
    rows = board.rows[(board.rows["workload"] == "events") & (board.rows["strategy"] == "fixed")]
    for row in rows.to_dict("records"):
        t = int(row["value"])
        network = 0.9e-12 * trace.counts["acs"][:, :t].sum(1).double()
        decisions = 0.9e-12 * min(t, trace.timesteps - 1)  # one comparison each
        assert row["energy_cmos45_joules"] == pytest.approx((network + decisions).mean().item(), rel=1e-12)


def test_the_leaderboard_ends_with_the_average_ranks_over_all_workloads(finished):
    board, folder, _ = finished
    text = (folder / "leaderboard.md").read_text()
    end = text[text.index("## All workloads") :]
    for point in ("iso-accuracy:1", "budget:0.5"):
        assert f"### {point}" in end
    best = board.summary[board.summary["operating_point"] == "budget:0.5"].iloc[0]
    line = next(line for line in end[end.index("### budget:0.5") :].splitlines() if f"| {best['strategy']} " in line)
    assert f" {best['average_rank']:.2f} " in line
    assert f" {best['wins']}-{best['losses']}-{best['ties']} " in line
    assert "All workloads" not in terminal(board, ["iso-accuracy:1"])


def test_measurements_are_of_every_policy_that_ran(finished):
    board, folder, _ = finished
    measured = pd.read_csv(folder / "measurements.csv")
    ran = board.rows[board.rows["samples"].notna()]
    assert len(measured) == len(ran)
    assert (measured["latency_ms"] > 0).all()
    assert (measured["samples"] == 2).all()
    assert board.joined()["latency_ms"].notna().sum() == len(ran)


def test_exported_traces_are_those_of_the_manifest(finished):
    _, folder, _ = finished
    manifest = json.loads((folder / "manifest.json").read_text())
    for workload in WORKLOADS:
        for split, samples in (("calibration", 200), ("test", 300)):
            trace = load_trace(folder / "traces" / f"{workload['name']}-{split}.safetensors")
            assert trace.digest == manifest["workloads"][workload["name"]][f"{split}_trace"]
            assert (len(trace), trace.timesteps) == (samples, workload["timesteps"])
            assert trace.header["split"] == split
    assert manifest["workloads"]["events"]["simulated"] is True
    assert manifest["workloads"]["events"]["milliseconds_per_step"] == 10.0


def test_a_star_stands_for_every_strategy_and_no_strategy_comes_twice(registry):
    suite = parsed_suite(strategies=[{"name": "fixed"}, {"name": "*"}, {"name": "margin"}])
    labels = [competitor.label for competitor in competitors(suite, registry)]
    assert labels == ["fixed", *(name for name in registry.strategies if name != "fixed")]


# --- the same again --------------------------------------------------------------------------------------------------


@pytest.mark.numerics
def test_runs_in_other_folders_and_stores_write_the_same_bytes(finished, registry, every, tmp_path):
    _, folder, _ = finished
    run(tmp_path / "other", registry, workloads=WORKLOADS, strategies=every)
    assert contents(tmp_path / "other") == contents(folder)


def test_a_second_run_trains_records_and_fits_nothing(finished, registry, every, monkeypatch, tmp_path):
    _, folder, store = finished
    monkeypatch.setattr(stages, "train_network", lambda *a, **o: pytest.fail("trained again"))
    monkeypatch.setattr(stages, "recorded_tensors", lambda *a, **o: pytest.fail("recorded again"))
    monkeypatch.setattr(competition, "score_together", lambda tried, *_: (tried and pytest.fail("scored again")) or [])
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*.safetensors")}
    run(tmp_path / "second", registry, store=store, workloads=WORKLOADS, strategies=every)
    assert contents(tmp_path / "second") == contents(folder)
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*.safetensors")} == before


def test_refit_trains_policy_networks_again_and_ends_with_the_same_rows(registry, tmp_path, trained):
    store = trained
    seenn_ii = [{"name": "seenn-ii", "parameters": {"epochs": 1}}]
    run(tmp_path / "one", registry, store=store, strategies=seenn_ii)
    before = {path: path.stat().st_mtime_ns for path in artifacts(store, "policies")}
    assert before
    run(tmp_path / "two", registry, store=store, strategies=seenn_ii, refit=True)
    after = {path: path.stat().st_mtime_ns for path in artifacts(store, "policies")}
    assert after.keys() == before.keys()
    assert all(after[path] != before[path] for path in before)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_only_what_is_asked_for_is_run(finished, registry, tmp_path):
    _, folder, store = finished
    suite = parsed_suite(workloads=WORKLOADS).only(["converted", "stability"])
    board = run_suite(suite, registry=registry, output=tmp_path / "board", store=store)
    whole = pd.read_csv(folder / "rows.csv")
    expected = whole[(whole["workload"] == "converted") & (whole["strategy"] == "stability")]
    assert board.rows["accuracy"].tolist() == expected["accuracy"].tolist()
    assert len(board.rows) == 2


@pytest.mark.parametrize("kind", ["networks", "traces", "policies", "scores"])
def test_a_damaged_artifact_is_named_and_made_again(finished, registry, every, tmp_path, capfd, kind):
    _, folder, store = finished
    copy = Store(shutil.copytree(store.root, tmp_path / "store"), zoo=None)
    for path in artifacts(copy, kind):
        path.write_bytes(path.read_bytes()[:-3])
    damaged = artifacts(copy, kind)
    assert damaged
    if kind == "policies":
        shutil.rmtree(copy.root / "scores")  # else nobody asks for policies
    run(tmp_path / "board", registry, store=copy, workloads=WORKLOADS, strategies=every)
    said = capfd.readouterr().err
    assert all(str(path) in said for path in damaged)
    assert contents(tmp_path / "board") == contents(folder)


# --- measurements ----------------------------------------------------------------------------------------------------


def test_measurements_are_kept_until_they_are_renewed(registry, tmp_path, trained):
    folder, store = tmp_path / "board", trained
    run(folder, registry, store=store)
    table = pd.read_csv(folder / "measurements.csv")
    table["latency_ms"] = 123456.5
    table.to_csv(folder / "measurements.csv", index=False)
    run(folder, registry, store=store)
    assert (pd.read_csv(folder / "measurements.csv")["latency_ms"] == 123456.5).all()
    run(folder, registry, store=store, remeasure=True)
    assert (pd.read_csv(folder / "measurements.csv")["latency_ms"] < 123456.5).all()


def test_a_policy_that_is_new_is_measured_beside_those_that_are_kept(registry, tmp_path, trained):
    folder, store = tmp_path / "board", trained
    run(folder, registry, store=store, strategies=[{"name": "fixed"}])
    table = pd.read_csv(folder / "measurements.csv")
    table["latency_ms"] = 123456.5
    table.to_csv(folder / "measurements.csv", index=False)
    run(folder, registry, store=store, strategies=[{"name": "fixed"}, {"name": "seenn-i"}])
    kept = pd.read_csv(folder / "measurements.csv").set_index("strategy")["latency_ms"]
    assert (kept["fixed"] == 123456.5).all()
    assert (kept["seenn-i"] < 123456.5).all()


def test_every_figure_follows_from_the_single_measurements_of_its_session(registry, tmp_path, trained):
    folder = tmp_path / "board"
    timing = {"samples": 3, "batch": 2, "batch_samples": 5, "repetitions": 2}
    for names in (["fixed"], ["fixed", "seenn-i"]):
        run(folder, registry, store=trained, strategies=[{"name": name} for name in names], latency=timing)
    table = pd.read_csv(folder / "measurements.csv", dtype={"policy": str})
    raw = pd.read_csv(folder / "measurements-raw.csv", dtype={"policy": str})
    assert raw.columns.tolist() == list(columns.RAW_COLUMNS)
    assert raw["session"].unique().tolist() == [1, 2, 3, 4]
    for row in table.to_dict("records"):
        for batch, units in ((1, 3), (2, 1)):
            own = raw[(raw["policy"] == row["policy"]) & (raw["batch"] == batch)]
            assert own["session"].nunique() == 1
            beside = raw[(raw["policy"] == "static") & (raw["session"] == own["session"].iloc[0])]
            assert len(own) == len(beside) == 2 * units
            ours, static = (rows.groupby("repetition")["milliseconds"].sum() for rows in (own, beside))
            assert row["speedup" if batch == 1 else "throughput_speedup"] == pytest.approx((static / ours).median())
            if batch == 1:
                assert row["latency_ms"] == pytest.approx(own.groupby("unit")["milliseconds"].median().mean())
            else:
                assert row["throughput"] == pytest.approx((5e3 / ours).median())
    assert (read_board(folder).raw == raw).all(axis=None)


@pytest.mark.parametrize("digest", ["0123456789012345", "1234567890123e45", "1234567890123456", "ab34567890123456"])
def test_a_measurement_is_found_again_by_its_digest(finished, tmp_path, digest):
    board, _, _ = finished
    table = board.measurements.head(1).assign(policy=digest)
    write_board(replace(board, measurements=table), tmp_path / "board")
    assert read_board(tmp_path / "board").is_measured(digest)


# --- stopped and continued -------------------------------------------------------------------------------------------

DRIVER = """
import sys, time
from pathlib import Path
import bench_core.recording.record as recording
import bench_core.run.artifacts as stages
from bench_core.run.run import run_suite
from bench_core.store.local import Store
from tests.helpers.suites import parsed_suite, tiny_registry

recording.PART = stages.PART = 100
real, seen = recording.record_part, []

def record_part(*arguments, **options):
    seen.append(1)
    if len(seen) == int(sys.argv[2]):
        Path(sys.argv[1], "waiting").touch()
        time.sleep(600)
    return real(*arguments, **options)

recording.record_part = record_part
place = Path(sys.argv[1])
run_suite(parsed_suite(), registry=tiny_registry(), output=place / "board", store=Store(place / "store", zoo=None))
"""


@pytest.mark.parametrize("part", [2, 5], ids=["in the calibration split", "in the test split"])
def test_a_run_killed_while_recording_goes_on_and_ends_with_the_same_rows(
    tmp_path, registry, trained, monkeypatch, part
):
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), str(part)],
        env={**os.environ, "PYTHONPATH": module_path()},
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    try:
        patience = time.monotonic() + 90
        while not (tmp_path / "waiting").exists():
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < patience
            time.sleep(0.02)
    finally:
        process.kill()  # SIGKILL
        process.wait()
    found = [len(artifacts(trained, kind)) for kind in ("traces", "trace-parts")]
    assert found == ([0, 1] if part == 2 else [1, 2])
    assert list((tmp_path / "board").iterdir()) == []  # no file of a board before there is a board

    run(tmp_path / "unbroken", registry)
    monkeypatch.setattr(recording, "PART", 100)
    monkeypatch.setattr(stages, "PART", 100)
    run(tmp_path / "board", registry, store=trained)
    assert artifacts(trained, "trace-parts") == []
    assert len(artifacts(trained, "traces")) == 2
    assert contents(tmp_path / "board") == contents(tmp_path / "unbroken")


def test_parts_that_were_recorded_are_not_recorded_again(registry, tmp_path, trained, monkeypatch):
    monkeypatch.setattr(recording, "PART", 100)
    monkeypatch.setattr(stages, "PART", 100)
    workload = Workload.resolve(parsed_suite().workloads[0], registry)
    weights = trained_weights(workload, trained)
    real, seen = recording.record_part, []

    def stop_at(last):
        def record_part(recorded, positions):
            seen.append(int(positions[0]))
            if len(seen) == last:
                raise RuntimeError("stopped")
            return real(recorded, positions)

        monkeypatch.setattr(recording, "record_part", record_part)

    stop_at(3)
    with pytest.raises(RuntimeError, match="stopped"):
        recorded_trace(workload, weights, "test", trained)
    stop_at(None)
    trace = recorded_trace(workload, weights, "test", trained)
    assert seen == [0, 100, 200, 200]
    monkeypatch.undo()
    assert trace.digest == recorded_trace(workload, weights, "test", Store(tmp_path / "other", zoo=None)).digest


QUITTING = """
class Quitting(ScoreStrategy):
    name = "quitting"
    reference = "the tests"

    def learn(self, calibration):
        import os
        os.kill(os.getpid(), 9)

    def score(self, evidence):
        return evidence.total.amax(1)

@hookimpl
def bench_exit_strategies():
    return [Quitting()]
"""


def test_traces_are_saved_before_any_strategy_runs(tmp_path, trained):
    plugin = write_plugin(tmp_path / "quitting.py", QUITTING)
    write_suite(tmp_path / "tiny.toml", strategies=[{"name": "quitting"}], workloads=[DIRECT, EVENTS])
    plugins = ["--plugin", str(TINY_PLUGIN), "--plugin", str(plugin)]
    command = [sys.executable, "-m", "bench_core", "run", "tiny.toml", *plugins]
    environment = {**os.environ, "EXITBENCH_HOME": str(trained.root)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == -9
    assert len(artifacts(trained, "traces")) == 4
    assert artifacts(trained, "trace-parts") == []
    for path in artifacts(trained, "traces"):
        assert load_trace(path).classes == 4


# --- failures --------------------------------------------------------------------------------------------------------


class Unreadable(TinyShapes):
    """A data set of which a split is missing."""

    name = "unreadable"
    missing = "train"

    def split(self, name):
        if name == self.missing:
            raise OSError(f"{name} is on the moon")
        return super().split(name)


def with_unreadable(missing):
    registry = tiny_registry()
    registry.datasets["unreadable"] = Unreadable()
    registry.datasets["unreadable"].missing = missing
    return registry


BAD = {**DIRECT, "name": "bad", "dataset": "unreadable"}


@pytest.mark.parametrize("missing", ["train", "calibration", "test"])
def test_a_workload_that_fails_is_rows_with_a_status_and_the_others_are_complete(tmp_path, trained, missing):
    board = run(tmp_path / "board", with_unreadable(missing), store=trained, workloads=[BAD, DIRECT])
    bad = board.rows[board.rows["workload"] == "bad"]
    assert len(bad) == 6
    assert (bad["status"] == f"failed: OSError: {missing} is on the moon").all()
    assert bad[["accuracy", "rank", "samples", "energy_cmos45_joules"]].isna().all(axis=None)
    good = board.rows[board.rows["workload"] == "direct"]
    assert (good["status"] == "ok").all()
    assert good["accuracy"].notna().all()
    assert board.failures == 6
    assert board.workloads["workload"].tolist() == ["direct"]
    assert "moon" in (tmp_path / "board" / "leaderboard.md").read_text()
    assert len(pd.read_csv(tmp_path / "board" / "rows.csv")) == 12


def test_data_that_are_lost_after_recording_spoil_no_other_workload(tmp_path, trained):
    store = trained
    run(tmp_path / "before", with_unreadable(None), store=store, workloads=[BAD, DIRECT])
    board = run(tmp_path / "after", with_unreadable("test"), store=store, workloads=[BAD, DIRECT])
    good = board.rows[board.rows["workload"] == "direct"]
    assert good["accuracy"].notna().all()
    assert (tmp_path / "after" / "rows.csv").is_file()


@pytest.mark.parametrize(
    "change",
    [
        {"strategies": [{"name": "nobody"}]},
        {"strategies": [{"name": "seenn-i", "parameters": {"alpha": -1.0}}]},
        {"cost_models": ["free"]},
        {"operating_points": ["budget:2"]},
        {"workloads": [DIRECT, {**DIRECT, "name": "other", "model": "nothing"}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_cannot_be_is_refused_before_anything_is_computed(registry, tmp_path, change):
    with pytest.raises(UsageError):
        run(tmp_path / "board", registry, **change)
    assert list(tmp_path.iterdir()) == []


def test_calibration_that_equals_test_is_flagged_on_every_row(tmp_path):
    class Same(TinyShapes):
        name = "same"

        def split(self, name):
            return super().split("test" if name == "calibration" else name)

    registry = tiny_registry()
    registry.datasets["same"] = Same()
    board = run(tmp_path / "board", registry, workloads=[{**DIRECT, "dataset": "same"}])
    assert board.rows["note"].str.contains("calibration equals test").all()


# --- live and replay -------------------------------------------------------------------------------------------------


class Listening:
    """A network that remembers the logits it gave to each sample."""

    def __init__(self, network, samples, timesteps, classes):
        self.network = network
        self.logits = torch.zeros(samples, timesteps, classes)
        self.alive, self.t = torch.arange(samples), 0

    def reset(self):
        self.network.reset()

    def step(self, frame):
        logits = self.network.step(frame)
        self.logits[self.alive, self.t] = logits
        self.t += 1
        return logits

    def keep(self, index):
        self.alive = self.alive[index]
        self.network.keep(index)


@pytest.mark.numerics
@pytest.mark.parametrize("content", WORKLOADS, ids=lambda content: content["name"])
def test_replaying_the_logits_that_a_live_run_saw_gives_its_exits(finished, registry, every, content):
    """Decisions agree exactly, for every strategy and policy of the board."""
    _, _, store = finished
    suite = parsed_suite(workloads=[content], strategies=every)
    workload = Workload.resolve(suite.workloads[0], registry)
    weights = trained_weights(workload, store)
    network = spiking_network(workload, weights, store)
    dataset, split, steps = workload.dataset, workload.dataset.split("test"), workload.spec.timesteps
    some = torch.arange(40, 100)
    frames = dataset.frames(split, steps)
    calibration = recorded_trace(workload, weights, "calibration", store)
    fit, _ = calibration_halves(calibration.labels, calibration.sample_ids)
    early = 0
    for competitor in competitors(suite, registry):
        family = fit_on(competitor.strategy, calibration.select(fit), dataset, steps)
        for value in {"seenn-ii[epochs=1]": [1.0], "fixed": [2], "random": [2.5], "stability": [2]}.get(
            competitor.label, [0.1, 0.5, 0.9]
        ):
            policy = family.policy(value)
            listening = Listening(network, len(some), steps, dataset.classes)

            def read(positions, count):
                return frames(some[positions], count)

            live = run_live(listening, LiveSamples.of_split(dataset, split, some, steps), policy)
            seen = Trace(listening.logits, split.labels[some], split.sample_ids[some])
            replayed = replay_policy(policy, seen, read, batch=7)
            assert torch.equal(live.exit_timesteps, replayed.exit_timesteps), competitor.label
            assert torch.equal(live.predictions, replayed.predictions), competitor.label
            assert torch.equal(live.forced, replayed.forced), competitor.label
            early += int((live.exit_timesteps < steps).sum())
    assert early > 0


def fit_on(strategy, trace, dataset, timesteps):
    """A family fitted on a calibration trace of a data set."""
    from bench_core.scoring.scores import Recorded, fit_family

    split = dataset.split("calibration")
    place = {int(sample): position for position, sample in enumerate(split.sample_ids)}
    positions = torch.tensor([place[int(sample)] for sample in trace.sample_ids])
    frames = dataset.frames(split, timesteps)
    return fit_family(strategy, Recorded(trace, lambda wanted, count: frames(positions[wanted], count)))


@pytest.mark.numerics
def test_a_live_run_of_a_batch_agrees_with_its_trace(finished, registry):
    """The same batch stepwise gives the recorded logits up to rounding."""
    _, _, store = finished
    for content in WORKLOADS:
        workload = Workload.resolve(parsed_suite(workloads=[content]).workloads[0], registry)
        weights = trained_weights(workload, store)
        trace = recorded_trace(workload, weights, "test", store)
        dataset, split, steps = workload.dataset, workload.dataset.split("test"), workload.spec.timesteps
        listening = Listening(spiking_network(workload, weights, store), 100, steps, dataset.classes)
        live = run_live(listening, LiveSamples.of_split(dataset, split, torch.arange(100), steps), NeverExit())
        assert_agree(listening.logits, trace.logits[:100], samples=0)
        assert (live.exit_timesteps == steps).all()
        assert live.forced.all()


@pytest.mark.numerics
@pytest.mark.parametrize("content", WORKLOADS, ids=lambda content: content["name"])
def test_samples_that_go_on_alone_are_those_of_the_trace(finished, registry, content):
    """With finished samples dropped, logits off by more than 1e-4 occur in at most 2 % of samples."""
    _, _, store = finished
    workload = Workload.resolve(parsed_suite(workloads=[content]).workloads[0], registry)
    weights = trained_weights(workload, store)
    recorded = recorded_trace(workload, weights, "test", store)
    dataset, split, steps = workload.dataset, workload.dataset.split("test"), workload.spec.timesteps
    mixed = registry.strategies["random"].fit(Calibration(recorded)).policy(2.5)
    listening = Listening(spiking_network(workload, weights, store), 100, steps, dataset.classes)
    live = run_live(listening, LiveSamples.of_split(dataset, split, torch.arange(100), steps), mixed)
    assert live.exit_timesteps.unique().tolist() == [2, 3]
    ran = torch.arange(1, steps + 1) <= live.exit_timesteps[:, None]
    assert_agree(listening.logits, recorded.logits[:100].where(ran[..., None], 0.0), samples=0)


# --- reproducing -----------------------------------------------------------------------------------------------------


def test_a_board_is_reproduced_from_its_traces_and_from_its_weights(registry, tmp_path, trained):
    folder = tmp_path / "board"
    run(folder, registry, store=trained, export_traces=True)
    for from_weights in (False, True):
        found = reproduce_board(folder, registry, from_weights=from_weights, keep=tmp_path / "kept", store=trained)
        assert found.drift == []
        assert found.text.splitlines()[-1] == "reproduced"
        assert contents(tmp_path / "kept") == contents(folder)


def test_a_figure_that_drifted_is_named(registry, tmp_path, trained):
    folder = tmp_path / "board"
    run(folder, registry, store=trained, export_traces=True)
    rows = pd.read_csv(folder / "rows.csv")
    rows.loc[2, "accuracy"] += 0.01
    rows.to_csv(folder / "rows.csv", index=False)
    found = reproduce_board(folder, registry, from_weights=False, verified=False)
    assert any("seenn-i" in line and "accuracy" in line for line in found.drift)
    assert found.text.splitlines()[-1] == "drifted"


@pytest.mark.parametrize("name", [name for name in TABLES if name != "rows"])
def test_a_figure_that_drifted_in_another_file_is_named_with_the_file(registry, tmp_path, trained, name):
    folder = tmp_path / "board"
    run(folder, registry, store=trained, export_traces=True)
    table = pd.read_csv(folder / f"{name}.csv")
    column = table.select_dtypes("float").dropna(axis="columns", how="all").columns[-1]
    row = table[column].notna().to_numpy().nonzero()[0][-1]
    table.loc[row, column] += 0.25
    table.to_csv(folder / f"{name}.csv", index=False)
    found = reproduce_board(folder, registry, from_weights=False, verified=False)
    assert len(found.drift) == 1
    assert found.drift[0].startswith(f"{name}.csv: ")
    assert f"{column}: expected" in found.drift[0]


LOOKS = """
class Bright(ScoreStrategy):
    name = "bright"
    reference = "nobody"
    family_knob = Knob("threshold")
    requires = frozenset({Requirement.INPUTS})

    def score(self, evidence):
        return evidence.inputs.flatten(1).mean(1).double() + evidence.t


@hookimpl
def bench_exit_strategies():
    return [Bright()]
"""


def test_without_the_inputs_all_but_what_looks_at_them_is_compared(tmp_path, trained, monkeypatch):
    registry, folder = tiny_registry(write_plugin(tmp_path / "looks.py", LOOKS)), tmp_path / "board"
    run(folder, registry, store=trained, strategies=[{"name": "seenn-i"}, {"name": "bright"}], export_traces=True)
    assert reproduce_board(folder, registry, from_weights=False).drift == []

    def absent(_name):
        raise DataError("no images: fetch them")

    monkeypatch.setattr(registry.datasets["tiny-shapes"], "split", absent)
    found = reproduce_board(folder, registry, from_weights=False)
    assert found.drift == []
    assert any(line.startswith("bright: not compared") for line in found.remarks)
    rows = pd.read_csv(folder / "rows.csv")
    seen = rows["strategy"] == "seenn-i"
    for column, strategy, drift in (("rank", seen, 0), ("accuracy", ~seen, 0), ("accuracy", seen, 1)):
        changed = rows.copy()
        changed.loc[changed.index[strategy][0], column] += 1
        changed.to_csv(folder / "rows.csv", index=False)
        lines = reproduce_board(folder, registry, from_weights=False, verified=False).drift
        assert [line for line in lines if "seenn-i" in line and column in line] == lines
        assert len(lines) == drift


def test_a_trace_that_is_not_the_boards_own_is_refused(registry, tmp_path, trained):
    folder = tmp_path / "board"
    run(folder, registry, store=trained, export_traces=True)
    shutil.copy(folder / "traces" / "direct-test.safetensors", folder / "traces" / "direct-calibration.safetensors")
    with pytest.raises(UsageError, match=r"direct-calibration\.safetensors"):
        reproduce_board(folder, registry, from_weights=False)


# --- recording variants ----------------------------------------------------------------------------------------------


@pytest.mark.numerics
def test_dropout_is_another_trace_that_says_so_and_is_the_same_every_time(finished, registry, tmp_path):
    _, _, store = finished
    workload = Workload.resolve(parsed_suite().workloads[0], registry)
    weights = trained_weights(workload, store)
    plain = recorded_trace(workload, weights, "calibration", store)
    state = torch.get_rng_state()
    one, two = (
        recorded_trace(workload, weights, "calibration", Store(tmp_path / name, zoo=None), dropout=0.2) for name in "ab"
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert one.digest == two.digest != plain.digest
    assert json.loads(one.header["variant"])["dropout"] == 0.2
    assert json.loads(plain.header["variant"])["dropout"] == 0.0
    assert one.counts == {}
    keys = [recording_key(workload, weights, "calibration", dropout) for dropout in (0.0, 0.1, 0.2)]
    assert len(set(keys)) == 3
    again = recorded_trace(workload, weights, "calibration", Store(tmp_path / "c", zoo=None))
    assert again.digest == plain.digest


def test_the_default_suite_trains_nothing(tmp_path):
    """Its networks and the policies that are fitted to them come with the package."""
    store = Store(tmp_path, offline=True)  # raises where something would have to be made
    planned = plan(load_suite("quick"), load_registry())
    fitted = [entrant.strategy for entrant in planned.competitors if Requirement.INPUTS in entrant.strategy.requires]
    assert len(planned.workloads) == 6
    assert [strategy.name for strategy in fitted] == ["seenn-ii"]
    for workload in planned.workloads:
        weights = trained_weights(workload, store)
        trace = load_trace(QUICK / "traces" / f"{workload.spec.name}-calibration.safetensors")
        for strategy in fitted:
            family = strategy.fit(Calibration(trace, _artifact=fitted_artifacts(workload, weights, store)))
            assert len([family.policy(value) for value in family.values]) == 3
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
