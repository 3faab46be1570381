"""Faults in real processes: kills, damage, full disks, Ctrl-C, two runs at once. No board and no artifact is spoilt."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest

from bench_core.board.board import TABLES
from bench_core.store.inventory import prune, verify
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
from tests.helpers.suites import CONVERTED, DIRECT, EVENTS, TINY_PLUGIN, write_plugin, write_suite

KILLS = int(os.environ.get("EXITBENCH_KILLS", "8"))
ROOT = TINY_PLUGIN.parent.parent.parent
WORKLOADS = [DIRECT, EVENTS, CONVERTED]
STAGE = re.compile(r"^(train \S+|record \S+ \S+): (\d+)/\2 ", flags=re.MULTILINE)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nothing happened to: its folder with suite, store and board, and how it went."""
    place = tmp_path_factory.mktemp("undisturbed")
    suite = write_suite(place / "tiny.toml", workloads=WORKLOADS)
    done = completed(run_command(suite, "--output", "board"), home=place / "home", cwd=place)
    assert done.returncode == 0, done.stderr
    return place, done


@pytest.fixture
def copied(undisturbed, tmp_path):
    """A copy of that run's suite and store to do harm to."""
    shutil.copytree(undisturbed[0] / "home", tmp_path / "home")
    shutil.copy(undisturbed[0] / "tiny.toml", tmp_path)
    return tmp_path


def run(place, *options, **more):
    """The suite in ``place``, to its end."""
    return completed(run_command("tiny.toml", "--output", "board", *options), home=place / "home", cwd=place, **more)


def board(folder):
    """The deterministic files of a board."""
    return {name: (folder / f"{name}.csv").read_bytes() for name in TABLES}


def artifacts(home):
    """Identity and date of every artifact: a file that is written again has others."""
    found = {path: path.stat() for path in home.rglob("*.safetensors")}
    return {str(path.relative_to(home)): (s.st_ino, s.st_mtime_ns) for path, s in found.items()}


def stages(said):
    """The stages that were finished, as the progress says."""
    return [match[1] for match in STAGE.finditer(said)]


def assert_whole(home):
    """Every file is an artifact as it was written; nothing unfinished is left, nor a part of what is whole."""
    store = Store(home, zoo=None)
    assert verify(store)[1] == []
    assert prune(store, dry_run=True) == []
    files = [path.relative_to(home) for path in home.rglob("*") if path.is_file()]
    assert {path.parts[0] for path in files} == {"converted", "networks", "scores", "traces"}


ALL_STAGES = [
    stage
    for name in ("direct", "events", "converted")
    for stage in (f"train {name}", f"record {name} calibration", f"record {name} test")
]


def test_an_undisturbed_run_does_every_stage_once(undisturbed):
    place, done = undisturbed
    assert stages(done.stderr) == ALL_STAGES
    assert_whole(place / "home")


# --- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "seed"), [("moments", 1), ("steps", 2)])
def test_kills_cost_nothing_but_time(undisturbed, tmp_path, how, seed):
    """Killed at random moments, or at random system calls, before the last run: same bytes, nothing twice."""
    write_suite(tmp_path / "tiny.toml", workloads=WORKLOADS)
    killing = [sys.executable, "-m", "tests.helpers.killing", str(tmp_path), "tiny.toml", how, str(KILLS), str(seed)]
    done = subprocess.run(
        killing,
        env={**environment(tmp_path / "home"), "PYTHONPATH": module_path()},
        cwd=tmp_path,
        capture_output=True,
        timeout=2 * PATIENCE,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["signals"]) <= {0, signal.SIGKILL}
    assert found["signals"].count(signal.SIGKILL) >= 0.6 * KILLS
    assert found["damage"] == []
    last = run(tmp_path)
    assert last.returncode == 0, last.stderr
    final = artifacts(tmp_path / "home")
    for seen in found["seen"]:  # nothing that was there once is lost or was written again
        assert {name: list(final.get(name, ())) for name in seen} == seen
    assert len(final) == 3 + 6 + 1 + 9  # networks, traces, a conversion, scores
    assert board(tmp_path / "board") == board(undisturbed[0] / "board")
    prune(Store(tmp_path / "home", zoo=None))
    assert_whole(tmp_path / "home")


def test_what_a_killed_run_left_unfinished_is_gone_after_the_next_write(undisturbed, tmp_path):
    """A folder that nobody holds is thrown out; one that is being written stays."""
    store = Store(tmp_path / "home", zoo=None)
    path = store.path("traces", "ab" * 32)
    (path.parent / ".writing-abandoned").mkdir(parents=True)
    (path.parent / ".writing-abandoned" / "half.safetensors").write_bytes(b"half")
    (path.parent / ".writing-old.tmp").write_bytes(b"half")
    holder = "import sys\nfrom bench_core.util.files import workspace\nfrom pathlib import Path\n"
    holder += "with workspace(Path(sys.argv[1])) as place:\n    print(place, flush=True)\n    input()\n"
    with started(
        [sys.executable, "-c", holder, str(path.parent)],
        home=tmp_path,
        cwd=tmp_path,
        stdin=subprocess.PIPE,
    ) as process:
        held = process.stdout.readline().strip()
        import torch

        store.put("traces", "ab" * 32, {"a": torch.zeros(1)})
        assert sorted(p.name for p in path.parent.iterdir()) == sorted([path.name, held.rpartition("/")[2]])
        process.kill()
        process.wait()
        assert [line.split(":")[0] for line in prune(store)] == [held]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_process_removes_what_it_holds_even_where_a_finally_was_cut_short(tmp_path):
    """As if Ctrl-C came between the end of a block and its clean-up; a forked child leaves its parent's alone."""
    code = (
        "import os, sys\nfrom bench_core.util import files\nfrom pathlib import Path\n"
        "files.shutil.rmtree, real = lambda *_, **__: sys.exit(3), files.shutil.rmtree\n"
        "try:\n    with files.workspace(Path(sys.argv[1])) as place:\n"
        "        if not os.fork():\n            sys.exit()\n"
        "        os.wait()\n        print(place.exists())\n"
        "finally:\n    files.shutil.rmtree = real\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.stdout.splitlines()[-1], done.returncode) == ("True", 3), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_survives_a_run_that_is_killed(copied):
    shutil.rmtree(copied / "home" / "networks")
    with started(run_command("tiny.toml"), home=copied / "home", cwd=copied) as process:
        wait_until(lambda: any((copied / "home").glob("networks/*/*")), process)
        assert in_session(process.pid) == [process.pid]  # a run has no children to leave behind
        process.kill()
        process.wait()
        assert in_session(process.pid) == []


# --- two at once -----------------------------------------------------------------------------------------------------


def test_two_runs_at_once_share_the_work(undisturbed, tmp_path):
    """Same suite, same store, same results folder: each stage is done once, by one of them."""
    write_suite(tmp_path / "tiny.toml", workloads=WORKLOADS)
    command = run_command("tiny.toml", "--output", "board")
    with (
        started(command, home=tmp_path / "home", cwd=tmp_path) as one,
        started(command, home=tmp_path / "home", cwd=tmp_path) as two,
    ):
        said = [process.communicate(timeout=PATIENCE)[1] for process in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0), said
    assert sorted(stages("".join(said))) == sorted(ALL_STAGES)
    assert board(tmp_path / "board") == board(undisturbed[0] / "board")
    assert_whole(tmp_path / "home")
    assert [path.name for path in (tmp_path / "board").iterdir() if path.name.startswith(".")] == []


def test_a_run_goes_on_with_the_work_of_one_that_is_killed_beside_it(undisturbed, tmp_path):
    """The lock of a killed process opens; who waited for it takes up the work."""
    write_suite(tmp_path / "tiny.toml", workloads=WORKLOADS)
    command = run_command("tiny.toml", "--output", "board")
    with started(command, home=tmp_path / "home", cwd=tmp_path) as one:
        wait_until(lambda: any((tmp_path / "home").glob("training/*/*.safetensors")), one)
        one.send_signal(signal.SIGSTOP)
        with started(command, home=tmp_path / "home", cwd=tmp_path) as two:
            said = two.stderr.readline()
            assert "another run is making networks" in said
            one.kill()
            said = two.communicate(timeout=PATIENCE)[1]
    assert two.returncode == 0, said
    assert stages(said) == ALL_STAGES
    assert board(tmp_path / "board") == board(undisturbed[0] / "board")
    assert_whole(tmp_path / "home")


# --- damaged ---------------------------------------------------------------------------------------------------------


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 4
    path.write_bytes(content)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def other_content(path):
    """A file of the same size that is valid safetensors: the same tensors, all zero."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(content[:start] + bytes(len(content) - start))


def test_damage_is_named_and_only_what_is_damaged_is_made_again(copied, undisturbed):
    home = copied / "home"
    traces, networks = sorted(home.glob("traces/*/*")), sorted(home.glob("networks/*/*"))
    harmed = [traces[0], networks[0], traces[-1]]
    for damage, path in zip((flip_a_bit, truncate, other_content), harmed, strict=True):
        size = path.stat().st_size
        damage(path)
        assert (path.stat().st_size == size) == (damage is not truncate)
    before = artifacts(home)
    done = run(copied)
    assert done.returncode == 0, done.stderr
    named = [line for line in done.stderr.splitlines() if "it is made again" in line]
    assert len(named) == 3
    assert all(any(str(path) in line for line in named) for path in harmed)
    assert len(stages(done.stderr)) == 3
    after = artifacts(home)
    assert after.keys() == before.keys()
    changed = [name for name in after if after[name] != before[name]]
    assert sorted(changed) == sorted(str(path.relative_to(home)) for path in harmed)
    assert board(copied / "board") == board(undisturbed[0] / "board")
    assert_whole(home)


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, other_content, os.unlink], ids=lambda damage: damage.__name__)
def test_an_offline_store_refuses_what_is_damaged_or_missing(copied, damage):
    path = sorted((copied / "home").glob("traces/*/*"))[2]
    damage(path)
    before = artifacts(copied / "home")
    done = run(copied, "--offline-store")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("exitbench:")]
    assert len(errors) == 1
    assert str(path) in errors[0]
    assert "import a bundle" in errors[0]
    assert stages(done.stderr) == []
    assert artifacts(copied / "home") == before
    assert not (copied / "board" / "rows.csv").exists()


def test_an_offline_store_that_has_everything_runs(copied, undisturbed):
    before = artifacts(copied / "home")
    done = run(copied, "--offline-store")
    assert done.returncode == 0, done.stderr
    assert artifacts(copied / "home") == before
    assert board(copied / "board") == board(undisturbed[0] / "board")


# --- no space --------------------------------------------------------------------------------------------------------


def largest_file(size):
    """For a child: no file may become larger, as on a disk that fills up. In bytes."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_space(undisturbed, tmp_path):
    write_suite(tmp_path / "tiny.toml", workloads=WORKLOADS)
    full = run(tmp_path, preexec_fn=largest_file(40_000))
    assert full.returncode == 2
    errors = [line for line in full.stderr.splitlines() if line.startswith("exitbench:")]
    assert len(errors) == 1
    assert "can't be written" in errors[0]
    assert "free space" in errors[0]
    assert not list((tmp_path / "home").glob("traces/*/*"))
    assert verify(Store(tmp_path / "home", zoo=None)) == (1, [])  # the network of the first workload
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train direct" not in stages(done.stderr)
    assert board(tmp_path / "board") == board(undisturbed[0] / "board")
    assert_whole(tmp_path / "home")


def test_a_board_that_cannot_be_written_leaves_the_one_before(copied, undisturbed):
    shutil.copytree(undisturbed[0] / "board", copied / "board")
    before = {path.name: path.read_bytes() for path in (copied / "board").iterdir()}
    full = run(copied, "--remeasure", preexec_fn=largest_file(5_000))
    assert full.returncode == 2
    assert "rows.csv: can't be written" in full.stderr
    assert {path.name: path.read_bytes() for path in (copied / "board").iterdir()} == before


# --- stopped ---------------------------------------------------------------------------------------------------------


def test_ctrl_c_stops_at_once_and_says_how_to_go_on(tmp_path):
    """In the middle of a training of hours; what is trained is kept, and nothing unfinished is left."""
    endless = {**DIRECT, "recipe": {**DIRECT["recipe"], "epochs": 10_000}}
    write_suite(tmp_path / "tiny.toml", workloads=[endless])
    with started(run_command("tiny.toml"), home=tmp_path / "home", cwd=tmp_path) as process:
        wait_until(lambda: any((tmp_path / "home").glob("training/*/*.safetensors")), process)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        said = list(process.stderr)
        process.wait(timeout=PATIENCE)
        seconds = time.monotonic() - start
    assert process.returncode == 130
    assert seconds < 10  # it is under 2 on an idle machine; a busy one must not turn the tests red
    assert said[-1] == "stopped; what is finished is kept, the same command continues\n"
    assert not any("Traceback" in line for line in said)
    assert prune(Store(tmp_path / "home", zoo=None)) == []
    assert verify(Store(tmp_path / "home", zoo=None)) == (1, [])


def test_ctrl_c_while_waiting_for_another_run_stops_only_the_one_that_waits(tmp_path):
    endless = {**DIRECT, "recipe": {**DIRECT["recipe"], "epochs": 10_000}}
    write_suite(tmp_path / "tiny.toml", workloads=[endless])
    with started(run_command("tiny.toml"), home=tmp_path / "home", cwd=tmp_path) as one:
        wait_until(lambda: any((tmp_path / "home").glob("training/*/*.safetensors")), one)
        with started(run_command("tiny.toml"), home=tmp_path / "home", cwd=tmp_path) as two:
            assert "another run is making networks" in two.stderr.readline()
            two.send_signal(signal.SIGINT)
            two.communicate(timeout=10)
        assert two.returncode == 130
        assert one.poll() is None


# --- failures --------------------------------------------------------------------------------------------------------

FAILING = """
from tests.helpers.tiny_plugin import TinyShapes

class Unreadable(TinyShapes):
    name = "unreadable"

    def split(self, name):
        raise OSError("on the moon")

@hookimpl
def bench_datasets():
    return [Unreadable()]
"""


def test_a_workload_that_fails_is_rows_with_the_reason_and_exit_code_1(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", module_path())
    plugin = write_plugin(tmp_path / "failing.py", FAILING)
    bad = {**DIRECT, "name": "bad", "dataset": "unreadable"}
    write_suite(tmp_path / "tiny.toml", workloads=[bad, *WORKLOADS])
    done = run(tmp_path, "--plugin", plugin)
    assert done.returncode == 1
    assert stages(done.stderr) == ALL_STAGES
    rows = (tmp_path / "board" / "rows.csv").read_text().splitlines()
    failed = [line for line in rows if ",bad," in line]
    assert len(failed) == 6
    assert all("failed: OSError: on the moon" in line for line in failed)
    good = (undisturbed[0] / "board" / "rows.csv").read_text().splitlines()
    assert [line for line in rows if line not in failed] == good
