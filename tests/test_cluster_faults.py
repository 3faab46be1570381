"""Workers and schedulers that die, hang, freeze or hold other code: a run goes on without them, or says so."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

import pytest
import torch

from bench_core.errors import ClusterError, UsageError
from bench_core.run import artifacts as training_stages
from bench_core.run.dask import stages_under_way
from bench_core.run.dask import workers as dask_workers
from bench_core.run.dask.client import local_workers, run_stages, scheduler_at
from bench_core.run.dask.worker_process import standstill
from bench_core.run.plan import Limits
from bench_core.run.plugin_versions import described, outdated
from bench_core.run.run import plan
from bench_core.run.stages import Order, Stage, missing_stages, perform, read_answer, stage_request
from bench_core.store.local import Store
from bench_core.store.remote import RemoteStore
from bench_core.util.files import exclusive
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.processes import PATIENCE, environment, module_path, wait_until
from tests.helpers.suites import CONVERTED, parsed_suite, tiny_registry, write_plugin

PLUGIN = """
import ctypes
import os
import re
import signal
import sys
import time
from pathlib import Path
from bench_core.util.progress import note

PLACE = Path({place!r})

class Bad(ScoreStrategy):
    reference, family_knob = "the tests", Knob("threshold", low=0, high=1, help="never reached")

    def score(self, evidence):
        self.act()
        return evidence.mean.max(dim=1).values

class Dies(Bad):
    name = "dies"
    act = staticmethod(lambda: os.kill(os.getpid(), signal.SIGSEGV))

class Leaves(Bad):
    name = "leaves"
    act = staticmethod(lambda: os._exit(0))

class Exits(Bad):
    name = "exits"
    act = staticmethod(lambda: sys.exit(0))

class Interrupts(Bad):
    name = "interrupts"

    def act(self):
        raise KeyboardInterrupt

class Hangs(Bad):
    name = "hangs"
    act = staticmethod(lambda: time.sleep(3600))

class Holds(Bad):
    name = "holds"  # the GIL
    act = staticmethod(lambda: ctypes.PyDLL(None).sleep(3600))

class Waits(Bad):
    name = "waits"

    def act(self):
        if not (PLACE / "wait").exists():
            return
        note("waits: one line while it runs")
        (PLACE / "pid.new").write_text(str(os.getpid()))
        (PLACE / "pid.new").rename(PLACE / "pid")
        while (PLACE / "wait").exists():
            time.sleep(0.02)

@hookimpl
def bench_exit_strategies():
    return [Dies(), Leaves(), Exits(), Interrupts(), Hangs(), Holds(), Waits()]
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before, variables = torch.get_num_threads(), dict(os.environ)
    torch.set_num_threads(1)
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": module_path()}
    yield
    torch.set_num_threads(before)
    os.environ.clear()
    os.environ.update(variables)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def registry(place):
    (place / "plugin").mkdir()
    found = tiny_registry(write_plugin(place / "plugin" / "bad.py", PLUGIN.format(place=str(place))))
    names = ["dies", "leaves", "exits", "interrupts", "hangs", "holds", "waits"]
    plan(
        parsed_suite(strategies=[{"name": name} for name in names]), found
    )  # takes digests, before others load the file
    return found


@pytest.fixture(scope="module")
def store(place, registry):
    """A store in which everything is trained and recorded, and nothing is scored."""
    store = Store(place / "store", zoo=None)
    wanted = parsed_suite(workloads=[CONVERTED], strategies=[{"name": "fixed"}])
    order = Order.of(wanted, registry, store, refit=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXITBENCH_HOME", "")
        for stage in missing_stages(plan(wanted, registry), store)[0]:
            if stage.kind != "score":
                assert read_answer(perform(stage_request(order, stage, 1))).problem == ""
    return store


@pytest.fixture
def scored(registry, store):
    """Order and stages of scoring some strategies anew."""

    def ask(*names):
        wanted = parsed_suite(workloads=[CONVERTED], strategies=[{"name": name} for name in names])
        for path in (store.root / "scores").rglob("*.safetensors"):
            path.unlink()
        stages, problems = missing_stages(plan(wanted, registry), store)
        assert problems == {}
        assert [stage.kind for stage in stages] == ["score"] * len(names)
        return stages, Order.of(wanted, registry, store, refit=False)

    return ask


def scores(store):
    return {path.name: path.read_bytes() for path in (store.root / "scores").rglob("*.safetensors")}


@contextmanager
def dask(place, *commands):
    """Processes of Dask's commands, the first one a scheduler: its address and all of them."""
    file = place / "scheduler.json"
    file.unlink(missing_ok=True)
    with ExitStack() as stack:

        def start(command, *options):
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{command}", *options],
                env=environment(place / "elsewhere"),
                cwd=place,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            stack.callback(process.send_signal, signal.SIGCONT)
            return process

        common = ["--host", "127.0.0.1", "--no-dashboard"]
        processes = [start("scheduler", *common, "--port", "0", "--scheduler-file", str(file))]
        wait_until(lambda: file.exists() and file.read_text().rstrip().endswith("}"), processes[0])
        address = json.loads(file.read_text())["address"]
        for options in commands:
            processes.append(start("worker", address, *common, "--nthreads", "1", "--death-timeout", "60", *options))
        yield address, processes


def when_waiting(place, action):
    """In a thread: wait until a worker waits in its stage; then do something with its process id."""
    for name in ("pid", "pid.new"):
        (place / name).unlink(missing_ok=True)
    (place / "wait").touch()

    def act():
        patience = time.monotonic() + PATIENCE
        while not (place / "pid").exists() and time.monotonic() < patience:
            time.sleep(0.02)
        action(int((place / "pid").read_text()))

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


# --- plugins that end or hang their process -------------------------------------------------------------------------


def test_what_kills_its_worker_or_never_ends_fails_and_everything_else_is_scored(scored, store, monkeypatch, capfd):
    monkeypatch.setattr(stages_under_way, "DEATHS", 2)  # each takes a new process's start
    with local_workers(2) as client:
        stages, order = scored("fixed", "seenn-i")
        assert run_stages(client, stages, order, store) == {}
        alone = scores(store)
        stages, order = scored("hangs", "holds", "dies", "fixed", "leaves", "exits", "interrupts", "seenn-i")
        failed = run_stages(client, stages, order, store, limits=Limits.of(0.35))
        client.wait_for_workers(2, timeout=PATIENCE)  # a new process stands in for each that died
    died = "failed: its worker died 2 times (killed, crashed, or out of memory)"
    late = "failed: didn't end within the limit of 0.35 minutes"
    assert failed["converted, dies"] == died
    assert failed["converted, hangs"] == failed["converted, holds"] == late
    others = {"converted, leaves", "converted, exits", "converted, interrupts"}
    assert failed.keys() == others | {"converted, dies", "converted, hangs", "converted, holds"}
    assert all(failed[what].startswith("failed: ") for what in others)
    assert scores(store) == alone
    assert "score converted hangs: failed: didn't end" in capfd.readouterr().err


# --- workers that come late, and that freeze ------------------------------------------------------------------------


def test_an_adaptive_cluster_grows_from_nothing_and_gives_the_same_bytes(scored, store, place):
    from distributed import LocalCluster

    names = ("fixed", "seenn-i", "stability")
    stages, order = scored(*names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXITBENCH_HOME", "")
        for stage in stages:
            assert read_answer(perform(stage_request(order, stage, 1))).problem == ""
    alone = scores(store)
    stages, order = scored("waits", *names)
    cluster = LocalCluster(
        n_workers=0, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", memory_limit=0
    )
    most = []
    with cluster, scheduler_at(cluster.scheduler_address) as client:
        cluster.adapt(minimum=0, maximum=2, interval="100ms", target_duration="100ms")

        def let_go(_pid):
            patience = time.monotonic() + PATIENCE
            while len(scores(store)) < len(alone) and time.monotonic() < patience:  # by a second worker
                most.append(len(cluster.workers))
                time.sleep(0.05)
            (place / "wait").unlink()

        thread = when_waiting(place, let_go)
        assert run_stages(client, stages, order, store) == {}
        thread.join(PATIENCE)
    assert max(most) == 2
    assert {name: scores(store)[name] for name in alone} == alone


@pytest.fixture
def short_patience(monkeypatch):
    monkeypatch.setattr(dask_workers, "_SAID", 2.0)
    monkeypatch.setattr(dask_workers, "_SCHEDULER", 3.0)


def test_a_frozen_worker_is_replaced_and_notes_come_while_stages_run(scored, store, place, short_patience, capfd):
    stages, order = scored("waits", "fixed")
    said = []

    def freeze(pid):
        time.sleep(0.5)
        said.append(capfd.readouterr().err)
        os.kill(pid, signal.SIGSTOP)
        (place / "wait").unlink()

    thread = when_waiting(place, freeze)
    with local_workers(1) as client:
        assert run_stages(client, stages, order, store) == {}
    thread.join(PATIENCE)
    assert "waits: one line while it runs\n" in said[0]
    err = capfd.readouterr().err
    assert "its process was stopped and is ended; its nanny starts another" in err
    assert len(scores(store)) == 2


def test_the_stage_of_a_frozen_worker_without_a_nanny_is_begun_elsewhere(scored, store, place, short_patience, capfd):
    stages, order = scored("waits")
    frozen = []

    def freeze(pid):
        frozen.append(pid)
        os.kill(pid, signal.SIGSTOP)
        (place / "wait").unlink()

    thread = when_waiting(place, freeze)
    with dask(place, ["--no-nanny"], ["--no-nanny"]) as (address, processes):
        with scheduler_at(address) as client:
            assert run_stages(client, stages, order, store) == {}
        thread.join(PATIENCE)
        assert frozen[0] in [process.pid for process in processes]
        assert standstill(frozen[0])
    assert len(scores(store)) == 1
    assert "what it was doing is begun again elsewhere" in capfd.readouterr().err


def test_a_stage_that_takes_over_waits_for_no_lock(scored, store, monkeypatch):
    """The frozen worker may hold it."""
    monkeypatch.setenv("EXITBENCH_HOME", "")
    _, order = scored("fixed")
    train = Stage("train converted", "train", "converted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "get", lambda *_arguments: None)  # as if it weren't there
        patch.setattr(training_stages, "_train", lambda *_arguments: pytest.fail("made"))
        key = plan(parsed_suite(workloads=[CONVERTED]), tiny_registry()).workloads[0].training_key
        with exclusive(store.root / ".locks" / f"networks-{key}", lambda: None):
            answer = read_answer(perform(stage_request(order, train, 1, take_over=True)))
    assert answer.problem.startswith("failed: raised Failed: made")


def test_a_frozen_scheduler_is_one_line(scored, store, place, short_patience):
    stages, order = scored("waits")
    with dask(place, ["--no-nanny"]) as (address, processes):
        when_waiting(place, lambda _: processes[0].send_signal(signal.SIGSTOP))
        with scheduler_at(address) as client, pytest.raises(ClusterError) as stopped:
            run_stages(client, stages, order, store)
        (place / "wait").unlink()
    line = str(stopped.value)
    assert line.startswith(f"the scheduler {address} has not answered for 3 s; what is finished is kept")


def test_no_worker_is_one_line_after_the_time_that_is_set(scored, store, place, monkeypatch, short_patience, capfd):
    stages, order = scored("fixed")
    monkeypatch.setenv("EXITBENCH_WORKER_MINUTES", "0.08")
    with (
        dask(place) as (address, _),
        scheduler_at(address) as client,
        pytest.raises(ClusterError, match=r"has had no worker for .* min \(EXITBENCH_WORKER_MINUTES sets"),
    ):
        run_stages(client, stages, order, store)
    assert "no worker is there; waiting for one" in capfd.readouterr().err
    for wrong in ("soon", "0", "-1", "nan"):
        monkeypatch.setenv("EXITBENCH_WORKER_MINUTES", wrong)
        with pytest.raises(UsageError, match=f"EXITBENCH_WORKER_MINUTES={wrong}: not a number of minutes"):
            dask_workers._patience()


# --- other code -----------------------------------------------------------------------------------------------------


def answer_to(order, monkeypatch):
    monkeypatch.setenv("EXITBENCH_HOME", "")
    return read_answer(perform(stage_request(order, Stage("score converted fixed", "score", "converted"), 1)))


def changed(order, name, **changes):
    plugins = [{**plugin, **(changes if plugin["name"] == name else {})} for plugin in order.plugins]
    return Order(**{**vars(order), "plugins": plugins})


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("seenn_i", {"version": "9.9"}, "plugin seenn_i (exitbench 9.9, code "),
        ("seenn_i", {"code": "0" * 64}, "plugin seenn_i (exitbench "),
        ("seenn_i", {"distribution": "elsewhere"}, "the worker lacks it; install it there too"),
        ("bad", {"code": "0" * 64}, "bad.py (code 00000000): on the worker it is not the same file"),
        ("bad", {"distribution": "/nowhere/bad.py"}, "plugin /nowhere/bad.py: the worker has no such file"),
    ],
)
def test_a_worker_with_another_plugin_says_which(scored, monkeypatch, name, changes, words):
    _, order = scored("fixed")
    assert {plugin["name"] for plugin in order.plugins} >= {"seenn_i", "bad", "tiny_plugin", "datasets"}
    assert all(len(plugin["code"]) == 64 for plugin in order.plugins)
    problem = answer_to(changed(order, name, **changes), monkeypatch).problem
    assert problem.startswith("failed: plugin ")
    assert words in problem
    assert "\n" not in problem


def test_a_worker_that_lives_on_never_uses_old_code(store, place, tmp_path):
    """What a plugin imports, then the plugin, is edited between runs on one worker, whose process starts again."""
    (tmp_path / "wanted.py").write_text("LINE = 'first'\n")
    source = """
import sys
sys.path.insert(0, {folder!r})
import wanted
from bench_core.util.progress import note

class Says(ScoreStrategy):
    name, reference = "says", "the tests"
    family_knob = Knob("threshold", low=0, high=1, help="of the score")

    def score(self, evidence):
        note("says " + wanted.LINE + {more!r})
        return evidence.mean.softmax(dim=1).max(dim=1).values

@hookimpl
def bench_exit_strategies():
    return [Says()]
"""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from bench_core.run.dask.client import run_stages, scheduler_at\n"
        "from bench_core.run.run import plan\n"
        "from bench_core.run.stages import Order, missing_stages\n"
        "from bench_core.store.local import Store\n"
        "from tests.helpers.suites import CONVERTED, parsed_suite, tiny_registry\n"
        "registry = tiny_registry(Path(sys.argv[1]))\n"
        "suite = parsed_suite(workloads=[CONVERTED], strategies=[{'name': 'says'}])\n"
        "store = Store(Path(sys.argv[2]), zoo=None)\n"
        "stages = [s for s in missing_stages(plan(suite, registry), store)[0] if s.kind == 'score']\n"
        "with scheduler_at(sys.argv[3]) as client:\n"
        "    print(run_stages(client, stages, Order.of(suite, registry, store, refit=False), store))\n"
    )
    plugin = write_plugin(tmp_path / "says.py", source.format(folder=str(tmp_path), more=""))
    said = []
    with dask(place, []) as (address, _):
        for edit in (
            lambda: None,
            lambda: (tmp_path / "wanted.py").write_text("LINE = 'second'\n"),
            lambda: write_plugin(plugin, source.format(folder=str(tmp_path), more=" and more")),
        ):
            edit()
            done = subprocess.run(
                [sys.executable, str(script), str(plugin), str(store.root), address],
                env=environment(tmp_path),
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=True,
            )
            assert done.stdout == "{}\n"
            said.append(done.stderr)
    assert "says first\n" in said[0]
    assert "says second\n" in said[1]
    assert "says second and more\n" in said[2]
    assert "says first" not in said[1]
    assert "says second\n" not in said[2]
    for lines in said[1:]:
        assert "was edited after it had been loaded; its process is started again" in lines


def test_what_is_loaded_as_it_is_wanted_is_not_outdated(registry):
    assert outdated(described(registry)) == ""


# --- a store's password ---------------------------------------------------------------------------------------------


def test_a_password_of_the_store_reaches_workers_and_no_text(registry, tmp_path, monkeypatch, capfd):
    """A worker of another process finds what is shared under the URL with the password."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # the URL names a folder below the working directory
    url = f"file://me:s3cret@{tmp_path}/shared"
    remote = RemoteStore(tmp_path / "ours", url, zoo=None)
    wanted = parsed_suite(workloads=[CONVERTED], strategies=[{"name": "fixed"}])
    order = Order.of(wanted, registry, remote, refit=False)
    (train, *_) = missing_stages(plan(wanted, registry), remote)[0]
    assert "s3cret" not in json.dumps(asdict(order)) + stage_request(order, train, 1) + repr(order) + repr(remote.url)
    with local_workers(1) as client:
        assert run_stages(client, [train], order, remote) == {}
        logs = client.get_worker_logs(), client.get_scheduler_logs(), client.get_events()
    assert [kind for kind, _ in remote.shared()] == ["networks"]
    assert "s3cret" not in repr(logs) + "".join(capfd.readouterr())
