"""Runs on Dask workers give the bytes that a run in one process gives, whatever happens to workers and scheduler."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch

from bench_core.board.board import TABLES
from bench_core.errors import ClusterError, RecordingError, StoreError, UsageError
from bench_core.recording import record as recording
from bench_core.run import artifacts as stages
from bench_core.run.artifacts import Workload, recorded_trace, recording_key, trained_weights
from bench_core.run.dask.client import check_address, duration, local_workers, share_cores
from bench_core.run.run import plan, run_suite
from bench_core.run.stages import Answer, Order, Stage, missing_stages, perform, read_answer, stage_request
from bench_core.store.local import Store
from tests.helpers.processes import (
    PATIENCE,
    completed,
    environment,
    in_session,
    module_path,
    run_command,
    started,
    wait_until,
)
from tests.helpers.suites import (
    CONVERTED,
    DIRECT,
    EVENTS,
    TINY_PLUGIN,
    parsed_suite,
    tiny_registry,
    write_plugin,
    write_suite,
)

ROOT = TINY_PLUGIN.parent.parent.parent
SEENN_II = {"name": "seenn-ii", "parameters": {"epochs": 1}}
STRATEGIES = [{"name": "fixed"}, {"name": "seenn-i"}, SEENN_II]
# A data set that waits in a worker's training until somebody kills that worker, or the run, and one that fails there.
PLUGIN = """
import os
import time
from pathlib import Path
from tests.helpers.tiny_plugin import TinyShapes
import bench_core.recording.record
import bench_core.run.artifacts

bench_core.recording.record.PART = bench_core.run.artifacts.PART = 100
PLACE = Path({place!r})

class Waiting(TinyShapes):
    name = "waiting"

    def encode(self, images, timesteps, frames=None):
        if (PLACE / "wait").exists():
            (PLACE / "pid.new").write_text(str(os.getpid()))
            (PLACE / "pid.new").rename(PLACE / "pid")
            while (PLACE / "wait").exists():
                time.sleep(0.05)
        return super().encode(images, timesteps, frames)

class Failing(TinyShapes):
    name = "failing"

    def encode(self, images, timesteps, frames=None):
        raise OSError("on the moon")

@hookimpl
def bench_datasets():
    return [Waiting(), Failing()]
"""
WAITING = {**DIRECT, "name": "waiting", "dataset": "waiting"}
FAILING = {**DIRECT, "name": "failing", "dataset": "failing"}
WORKLOADS = [WAITING, FAILING, CONVERTED]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes that the tests start: trainings depend on it."""
    before, variables = torch.get_num_threads(), dict(os.environ)
    torch.set_num_threads(1)
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": module_path()}
    yield
    torch.set_num_threads(before)
    os.environ.clear()
    os.environ.update(variables)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def registry(place):
    sizes = recording.PART, stages.PART
    yield tiny_registry(write_plugin(place / "cluster_plugin.py", PLUGIN.format(place=str(place))))
    recording.PART, stages.PART = sizes


@pytest.fixture(scope="module")
def suite():
    return parsed_suite(workloads=WORKLOADS, strategies=STRATEGIES)


def board(folder):
    """The deterministic files of a board."""
    return {name: (folder / f"{name}.csv").read_bytes() for name in TABLES}


def artifacts(store):
    return sorted(str(path.relative_to(store)) for path in store.rglob("*.safetensors"))


@pytest.fixture(scope="module")
def alone(place, registry, suite):
    """The board of a run in this process alone, and the store beside it."""
    run_suite(suite, registry=registry, output=place / "alone", store=Store(place / "alone-store", zoo=None))
    return board(place / "alone"), artifacts(place / "alone-store")


def dask(command, *options):
    return [sys.executable, "-m", f"distributed.cli.dask_{command}", *options]


@contextmanager
def cluster(place, workers=2):
    """A scheduler and workers on loopback, processes of their own: its address and all of them."""
    file = place / "scheduler.json"
    with ExitStack() as stack:
        options = ["--host", "127.0.0.1", "--no-dashboard"]
        kept = {"home": place / "elsewhere", "cwd": place}
        file.unlink(missing_ok=True)
        scheduler = dask("scheduler", *options, "--port", "0", "--scheduler-file", str(file))
        processes = [stack.enter_context(quiet(scheduler, **kept))]
        wait_until(lambda: file.exists() and file.read_text().rstrip().endswith("}"), processes[0])  # whole
        address = json.loads(file.read_text())["address"]
        worker = dask("worker", address, *options, "--nthreads", "1", "--no-nanny", "--death-timeout", "30")
        processes += [stack.enter_context(quiet(worker, **kept)) for _ in range(workers)]
        yield address, processes


@contextmanager
def quiet(command, *, home, cwd):
    """As ``started``, without pipes that might fill."""
    devnull = subprocess.DEVNULL
    process = subprocess.Popen(
        command, env=environment(home), cwd=cwd, stdout=devnull, stderr=devnull, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def dask_cluster(place):
    with cluster(place) as found:
        yield found


@contextmanager
def meanwhile(action):
    """Do something beside the block; what it raises comes out at the end."""
    problems = []

    def act():
        try:
            action()
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE)
    assert problems == []


def when_waiting(place, action):
    """Wait until a worker waits in its training; then do something with its id, and let trainings go on."""

    def act():
        patience = time.monotonic() + PATIENCE
        while not (place / "pid").exists():
            assert time.monotonic() < patience
            time.sleep(0.02)
        action(int((place / "pid").read_text()))
        (place / "wait").unlink()

    (place / "pid").unlink(missing_ok=True)
    (place / "wait").touch()
    return meanwhile(act)


# --- the same board --------------------------------------------------------------------------------------------------


def test_local_processes_give_the_same_bytes(place, registry, suite, alone, capfd):
    store = Store(place / "jobs-store", zoo=None)
    run_suite(suite, registry=registry, output=place / "jobs", store=store, jobs=2)
    said = capfd.readouterr().err
    assert (board(place / "jobs"), artifacts(store.root)) == alone
    for stage in ("train waiting", "record waiting test part 3/3", "record converted calibration"):
        assert f"\n{said}".count(f"\n{stage}: ") == 1
    assert said.count("workload failing: failed: ") == said.count("OSError: on the moon; ") == 1
    assert "stages: 37/37 stages" in said
    rows = pd.read_csv(place / "jobs" / "rows.csv")
    assert set(rows[rows["workload"] == "failing"]["status"]) == {"failed: OSError: on the moon"}
    assert not rows[rows["workload"] != "failing"]["status"].str.startswith("failed").any()


def test_a_worker_killed_in_the_middle_of_a_stage_costs_nothing_but_time(
    place, registry, suite, alone, dask_cluster, capfd
):
    """On a real scheduler with two workers."""
    address, processes = dask_cluster
    store = Store(place / "killed-store", zoo=None)
    killed = []

    def kill(pid):
        killed.append(next(process for process in processes[1:] if process.pid == pid))
        os.kill(pid, signal.SIGKILL)

    with when_waiting(place, kill):
        run_suite(suite, registry=registry, output=place / "killed", store=store, scheduler=address)
    assert killed[0].wait() == -signal.SIGKILL
    assert (board(place / "killed"), artifacts(store.root)) == alone
    assert "left; what it was doing is begun again" in capfd.readouterr().err


def test_a_scheduler_that_dies_is_one_line_and_the_next_run_goes_on(place, registry, suite, alone, capfd):
    store = Store(place / "gone-store", zoo=None)
    order = Order.of(suite, registry, store, refit=False)
    stage = next(s for s in missing_stages(plan(suite, registry), store)[0] if s.name == "train converted")
    assert read_answer(perform(stage_request(order, stage, 1))).problem == ""
    before = artifacts(store.root)
    with (
        cluster(place, workers=1) as (address, processes),
        when_waiting(place, lambda _: processes[0].kill()),
        pytest.raises(ClusterError, match=r"went away; what is finished is kept, the same command continues"),
    ):
        run_suite(suite, registry=registry, output=place / "gone", store=store, scheduler=address)
    assert set(before) <= set(artifacts(store.root))
    capfd.readouterr()
    run_suite(suite, registry=registry, output=place / "gone", store=store)
    assert "train converted" not in capfd.readouterr().err
    assert board(place / "gone") == alone[0]


def wait_until_gone(session):
    patience = time.monotonic() + PATIENCE
    while in_session(session):
        assert time.monotonic() < patience
        time.sleep(0.05)


# --- processes that end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_survives_the_run(place, registry, tmp_path, how):
    """Not even in the middle of a stage that would never end."""
    write_suite(tmp_path / "tiny.toml", workloads=[WAITING])
    plugin = write_plugin(tmp_path / "waiting.py", PLUGIN.format(place=str(tmp_path)))
    (tmp_path / "wait").touch()
    command = run_command("tiny.toml", "--plugin", plugin, "--jobs", "1")
    with started(command, home=tmp_path / "home", cwd=tmp_path) as process:
        wait_until((tmp_path / "pid").exists, process)
        worker = int((tmp_path / "pid").read_text())
        assert worker != process.pid
        assert worker in in_session(process.pid)
        start = time.monotonic()
        process.send_signal(how)
        said = process.communicate(timeout=PATIENCE)[1]
        seconds = time.monotonic() - start
        wait_until_gone(process.pid)
        assert time.monotonic() - start < 30  # Dask itself gives up after a minute
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert said.splitlines()[-1] == "stopped; what is finished is kept, the same command continues"
        assert "Traceback" not in said
        assert seconds < 20  # under 2 on an idle machine; a busy one must not turn the tests red


def test_ctrl_c_while_workers_start_is_as_quiet(registry, tmp_path):
    write_suite(tmp_path / "tiny.toml", workloads=[CONVERTED])
    with started(run_command("tiny.toml", "--jobs", "2"), home=tmp_path / "home", cwd=tmp_path) as process:
        wait_until(lambda: len(in_session(process.pid)) > 1, process)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=PATIENCE)[1]
        wait_until_gone(process.pid)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "stopped; what is finished is kept, the same command continues"
    assert "Traceback" not in said


def test_a_script_without_the_usual_guard_is_told_so(tmp_path):
    write_suite(tmp_path / "tiny.toml", workloads=[CONVERTED])
    (tmp_path / "script.py").write_text(
        "from pathlib import Path\n"
        "from bench_core import load_registry, load_suite, run_suite\n"
        f"registry = load_registry([Path({str(TINY_PLUGIN)!r})])\n"
        "run_suite(load_suite('tiny.toml'), registry=registry, output=Path('board'), jobs=1)\n"
    )
    with started([sys.executable, "script.py"], home=tmp_path / "home", cwd=tmp_path) as process:
        said = process.communicate(timeout=PATIENCE)[1]
        wait_until_gone(process.pid)
    assert process.returncode == 1
    assert "ClusterError: --jobs: the worker processes ended" in said
    assert "__main__" in said.splitlines()[-1]


# --- the graph -------------------------------------------------------------------------------------------------------


def test_every_stage_comes_after_what_it_needs(place, registry, suite, tmp_path):
    found, problems = missing_stages(plan(suite, registry), Store(tmp_path, zoo=None))
    assert problems == {}
    names = [stage.name for stage in found]
    assert len(set(names)) == len(names) == 37
    for number, stage in enumerate(found):
        assert set(stage.after) <= set(names[:number])
    by_name = {stage.name: stage for stage in found}
    assert by_name["record waiting test"].after == [f"record waiting test part {n}/3" for n in (1, 2, 3)]
    assert by_name["record waiting test part 2/3"].after == ["train waiting"]
    assert by_name["fit waiting seenn-ii[epochs=1]"].after == ["record waiting calibration"]
    assert by_name["score waiting fixed"].after == ["record waiting calibration", "record waiting test"]
    assert by_name["score waiting seenn-ii[epochs=1]"].after[2:] == ["fit waiting seenn-ii[epochs=1]"]
    assert [stage.kind for stage in found[-12:]] == ["fit"] * 3 + ["score"] * 9  # all is recorded before that


def test_nothing_is_left_of_a_finished_run_but_what_failed(place, registry, suite, alone):
    store = Store(place / "alone-store", zoo=None)
    assert {stage.workload for stage in missing_stages(plan(suite, registry), store)[0]} == {"failing"}
    again = missing_stages(plan(suite, registry), store, refit=True)[0]
    kinds = [stage.kind for stage in again if stage.workload == "converted"]
    assert kinds == ["fit"] * 3  # and whoever reads scores makes them again


def test_another_knob_or_operating_point_is_scored_and_the_rest_is_there(registry, suite, alone, place):
    store = Store(place / "alone-store", zoo=None)
    more = [*STRATEGIES, {"name": "seenn-i", "parameters": {"accumulate": "mean"}}]
    one = {"workloads": [CONVERTED], "strategies": more}
    found = missing_stages(plan(parsed_suite(**one), registry), store)[0]
    assert [stage.name for stage in found] == ["score converted seenn-i[accumulate=mean]"]
    found = missing_stages(plan(parsed_suite(**one, operating_points=["budget:0.5"]), registry), store)[0]
    assert [stage.kind for stage in found] == ["fit"] + ["score"] * 4


def test_a_shared_training_is_one_stage_and_a_trunk_comes_first(registry, tmp_path):
    branch = {**EVENTS, "name": "branch", "recipe": {**EVENTS["recipe"], "epochs": 2, "trunk": EVENTS["recipe"]}}
    wanted = parsed_suite(workloads=[branch, EVENTS, CONVERTED, {**CONVERTED, "name": "longer", "timesteps": 16}])
    found, _ = missing_stages(plan(wanted, registry), Store(tmp_path, zoo=None))
    training = {stage.name: stage for stage in found if stage.kind == "train"}
    assert list(training) == ["train branch trunk 1", "train branch", "train converted"]
    assert training["train branch"].after == ["train branch trunk 1"]
    of_longer = [stage for stage in found if stage.workload == "longer" and stage.part is not None]
    assert all(stage.after == ["convert longer"] for stage in of_longer)
    conversions = {stage.name: stage.after for stage in found if stage.kind == "convert"}
    assert conversions == {"convert converted": ["train converted"], "convert longer": ["train converted"]}
    assert next(s for s in found if s.name == "record events test part 1/3").after == ["train branch trunk 1"]


def test_stages_in_any_order_that_fits_make_the_same_artifacts(place, registry, suite, alone, capfd):
    """Without Dask: what a worker does with requests, one after another in this process."""
    store = Store(place / "shuffled-store", zoo=None)
    order = Order.of(suite, registry, store, refit=False)
    left = {stage.name: stage for stage in missing_stages(plan(suite, registry), store)[0]}
    rng, failed = random.Random(3), set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXITBENCH_HOME", "")  # put back afterwards
        while left:
            ready = [stage for stage in left.values() if not set(stage.after) & left.keys()]
            stage = left.pop(rng.choice(ready).name)
            if set(stage.after) & failed:
                failed.add(stage.name)
                continue
            request = stage_request(order, stage, {"tcp://here": 1})
            assert json.loads(request)
            answer = read_answer(perform(request, "tcp://here"))
            assert answer.stop == ""
            if answer.problem:
                failed.add(stage.name)
                assert answer.problem == "failed: OSError: on the moon"
            elif answer.artifact:
                assert store.path(*answer.artifact).exists()
            if stage.kind == "train" and not answer.problem:
                assert any(line.startswith(f"{stage.name}: 80/80 batches") for line in answer.said)
    assert capfd.readouterr().err == ""  # a worker says nothing itself
    assert artifacts(store.root) == alone[1]


def test_what_is_recorded_under_corruption_are_stages_too(place, registry, tmp_path, capfd):
    """Carried out by requests, in parts, or in one process: the same board and the same artifacts."""
    shift = {"corruptions": ["noise", "drop"], "severities": [2], "samples": 250}
    wanted = parsed_suite(workloads=[CONVERTED, FAILING, {**FAILING, "name": "failing-too"}], shift=shift)
    stores = [Store(tmp_path / name, zoo=None) for name in ("requests", "alone")]
    order = Order.of(wanted, registry, stores[0], refit=False)
    found = [stage for stage in missing_stages(plan(wanted, registry), stores[0])[0] if stage.workload == "converted"]
    noisy = [stage.name for stage in found if "noise" in stage.split]
    assert noisy == [*(f"record converted test noise-2 250 v1 part {n}/3" for n in (1, 2, 3)), noisy[3]]
    assert noisy[3] == "record converted test noise-2 250 v1"
    assert not any("drop" in stage.split for stage in found)  # which is made for events
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXITBENCH_HOME", "")  # put back afterwards
        assert {read_answer(perform(stage_request(order, stage, 1))).problem for stage in found} == {""}
    capfd.readouterr()
    for store in stores:
        run_suite(wanted, registry=registry, output=store.root / "board", store=store)
        said = capfd.readouterr().err
        assert said.count("record converted") == (3 if store is stores[1] else 0)
        assert said.count("OSError: on the moon; ") == 1
    shifted = [(store.root / "board" / "shift.csv").read_bytes() for store in stores]
    assert shifted[0] == shifted[1]
    assert board(stores[0].root / "board") == board(stores[1].root / "board")
    assert artifacts(stores[0].root) == artifacts(stores[1].root)


def test_a_fit_that_fails_is_said_once_and_its_row_says_so(place, registry, tmp_path, capfd):
    plugin = write_plugin(
        tmp_path / "stubborn.py",
        """
class Stubborn(ExitStrategy):
    name, reference, requires = "stubborn", "exitbench-test", frozenset({Requirement.INPUTS})
    family_knob = Knob("t", low=1, help="never asked for")

    def fit(self, calibration):
        raise ValueError("will not learn")

@hookimpl
def bench_exit_strategies():
    return [Stubborn()]
""",
    )
    wanted = parsed_suite(workloads=[CONVERTED], strategies=[{"name": "fixed"}, {"name": "stubborn"}])
    run_suite(wanted, registry=tiny_registry(plugin), output=tmp_path / "board", store=Store(tmp_path / "s", zoo=None))
    assert capfd.readouterr().err.count("ValueError: will not learn; ") == 1
    rows = pd.read_csv(tmp_path / "board" / "rows.csv").set_index("strategy")["status"]
    assert set(rows["stubborn"]) == {"failed: ValueError: will not learn"}
    assert set(rows["fixed"]) == {"ok"}


def test_a_worker_with_other_versions_refuses(place, registry, suite, tmp_path, monkeypatch):
    monkeypatch.setenv("EXITBENCH_HOME", "")
    order = Order.of(suite, registry, Store(tmp_path, zoo=None), refit=False)
    changed = Order(**{**vars(order), "versions": {**order.versions, "torch": "1.0"}})
    answer = read_answer(perform(stage_request(changed, Stage("train converted", "train", "converted"), 1)))
    assert answer.problem.startswith("failed: ")
    assert "torch 1.0" in answer.problem
    assert artifacts(tmp_path) == []


def test_a_store_that_cannot_be_written_ends_the_run(registry, suite, tmp_path, monkeypatch):
    monkeypatch.setenv("EXITBENCH_HOME", "")
    (tmp_path / "file").touch()
    order = Order.of(suite, registry, Store(tmp_path / "file", zoo=None), refit=False)
    answer = read_answer(perform(stage_request(order, Stage("train converted", "train", "converted"), 1)))
    assert "can't be written" in answer.stop


# --- cores, time, flags ----------------------------------------------------------------------------------------------


def test_workers_share_the_cores_of_their_host():
    all_eight, first, second = list(range(8)), [0, 1, 2, 3], [4, 5, 6, 7]
    found = {"a": ("one", all_eight), "b": ("one", all_eight), "c": ("two", first), "d": ("two", second)}
    assert share_cores(found, threads=4) == ({"a": 4, "b": 4, "c": 4, "d": 4}, 4)
    assert share_cores(found, threads=8) == ({"a": 4, "b": 4, "c": 4, "d": 4}, 3)
    crowd = {str(number): ("one", [0, 1]) for number in range(5)}
    assert share_cores(crowd, threads=2) == (dict.fromkeys(crowd, 1), 1)
    assert share_cores({}, threads=1) == ({}, 0)


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h")])
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_without_dask_the_extra_is_named(registry, suite, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    for options, flag in (({"jobs": 2}, "--jobs"), ({"scheduler": "tcp://127.0.0.1:1"}, "--scheduler")):
        with pytest.raises(ClusterError, match=rf"^{flag} needs dask: pip install 'exitbench\[cluster\]'$"):
            run_suite(suite, registry=registry, output=tmp_path / "b", store=Store(tmp_path / "s"), **options)


def test_flags_that_contradict_each_other_are_refused(registry, suite, tmp_path):
    options = {"registry": registry, "output": tmp_path / "board"}
    with pytest.raises(UsageError, match="leave one out"):
        run_suite(suite, store=Store(tmp_path), jobs=1, scheduler="tcp://127.0.0.1:1", **options)
    with pytest.raises(UsageError, match="offline-store"):
        run_suite(suite, store=Store(tmp_path, offline=True), jobs=1, **options)


ADDRESSES = {
    "no port": "nonsense",
    "no port behind a scheme": "tcp://localhost",
    "empty": "",
    "port of letters": "localhost:port",
    "port of zero": "tcp://localhost:0",
    "port too large": "tcp://localhost:65536",
    "unknown scheme": "http://localhost:8786",
    "IPv6 without brackets": "::1",
    "two schemes": "tcp://tcp://localhost:8786",
}


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES.keys())
def test_what_is_no_address_is_refused_before_anything_is_made(registry, suite, alone, place, tmp_path, address):
    """Where every artifact is there and no worker is needed, too."""
    for store in (Store(place / "alone-store", zoo=None), Store(tmp_path / "s", zoo=None)):
        with pytest.raises(UsageError, match=r"^--scheduler .*: no address .*; write tcp://HOST:PORT$"):
            run_suite(suite, registry=registry, output=tmp_path / "b", store=store, scheduler=address)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "address", ["localhost:8786", "tcp://127.0.0.1:1", "tls://[::1]:65535", "inproc://10.0.0.1/7/1"]
)
def test_an_address_is_accepted(address):
    check_address(address)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tls://127.0.0.1:9", "inproc://nobody"])
def test_a_scheduler_that_does_not_answer_is_one_line_and_nothing_is_made(place, tmp_path, address):
    """Without credentials for TLS, and in another process, the client that was begun has to be closed by hand."""
    write_suite(tmp_path / "tiny.toml")
    command = run_command("tiny.toml", "--scheduler", address, "--output", "new/board")
    done = completed(command, home=tmp_path / "home", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"exitbench: --scheduler {address}: no scheduler answers there")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


@pytest.mark.parametrize("options", [{}, {"jobs": 1}], ids=["here", "jobs"])
def test_a_folder_that_was_made_goes_again_where_the_store_cannot_be_written(registry, suite, tmp_path, options):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/store: can't be written \(Not a directory\)"):
        run_suite(
            suite, registry=registry, output=tmp_path / "a" / "b", store=Store(tmp_path / "file" / "store"), **options
        )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- out of memory ---------------------------------------------------------------------------------------------------

REFUSALS = [
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    torch.cuda.OutOfMemoryError("CUDA out of memory."),
]


@pytest.fixture
def recorded(registry, place, suite, alone, tmp_path):
    """Record the converted network's test split into a fresh store where only batches up to some size fit."""
    workload = Workload.resolve(next(spec for spec in suite.workloads if spec.name == "converted"), registry)
    weights = trained_weights(workload, Store(place / "alone-store", zoo=None))
    real, tried = recording.Recording.run, []

    def record(largest, error, monkeypatch):
        def run(recorded, positions, batch):
            tried.append(batch)
            if batch > largest:
                raise error
            return real(recorded, positions, batch)

        monkeypatch.setattr(recording.Recording, "run", run)
        store = Store(tmp_path, zoo=None)
        trace = recorded_trace(workload, weights, "test", store)
        assert store.path("traces", recording_key(workload, weights, "test")).exists()
        return trace

    return record, tried


@pytest.mark.parametrize("error", REFUSALS, ids=["python", "torch", "cuda"])
def test_where_memory_runs_out_the_batch_is_halved_and_the_trace_says_so(recorded, monkeypatch, error):
    record, tried = recorded
    trace = record(25, error, monkeypatch)
    assert tried == [100, 50, 25] * 3  # three parts, each from the start
    assert json.loads(trace.header["variant"])["batch"] == 25
    assert len(trace) == 300


def test_where_even_the_smallest_batch_does_not_fit_the_row_says_so(recorded, monkeypatch):
    record, tried = recorded
    with pytest.raises(RecordingError, match=r"^out of memory even at batch 12$"):
        record(0, MemoryError(), monkeypatch)
    assert tried == [100, 50, 25, 12]


def test_other_errors_halve_nothing(recorded, monkeypatch):
    record, tried = recorded
    with pytest.raises(RuntimeError, match="shapes"):
        record(0, RuntimeError("shapes disagree"), monkeypatch)
    assert tried == [100]


def test_an_answer_survives_the_journey():
    answer = Answer(("traces", "ab"), "failed: x", "", ["a", "b"])
    assert read_answer(json.dumps(vars(answer))) == Answer(["traces", "ab"], "failed: x", "", ["a", "b"])


def test_the_row_of_a_workload_without_memory_has_the_reason(registry, tmp_path, monkeypatch, capfd):
    def run(*_arguments):
        raise MemoryError

    monkeypatch.setattr(recording.Recording, "run", run)
    suite = parsed_suite(workloads=[CONVERTED])
    run_suite(suite, registry=registry, output=Path(tmp_path / "board"), store=Store(tmp_path / "store", zoo=None))
    rows = pd.read_csv(tmp_path / "board" / "rows.csv")
    assert set(rows["status"]) == {"failed: out of memory even at batch 12"}
    assert capfd.readouterr().err.count("workload converted: failed") == 1  # the other split isn't tried


def test_workers_keep_freed_memory_unless_somebody_wants_otherwise(monkeypatch):
    import dask

    def seen_by_a_worker():
        with local_workers(1) as client:
            (found,) = client.run(os.environ.get, "MALLOC_TRIM_THRESHOLD_").values()
        return found

    assert seen_by_a_worker() is None
    with dask.config.set({"distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 131072}):
        assert seen_by_a_worker() == "131072"
    monkeypatch.setenv(
        "DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON", '{"MALLOC_TRIM_THRESHOLD_": None}'
    )  # as documented
    documented = dask.config.collect_env()["distributed"]["nanny"]["pre_spawn_environ"]
    assert documented == {"MALLOC_TRIM_THRESHOLD_": None}


@pytest.mark.filterwarnings("error")
def test_two_runs_on_one_machine_do_not_ask_for_the_same_port():
    with local_workers(1) as first, local_workers(1) as second:
        addresses = {client.scheduler_info()["services"]["dashboard"] for client in (first, second)}
        assert len(addresses) == 2
        assert 8787 not in addresses
