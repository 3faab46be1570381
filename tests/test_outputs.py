"""What a command reads is never written over, and what can't be written is known before the work begins."""

import json
import os
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import nn

from bench_core import load_trace
from bench_core.errors import UsageError
from bench_core.trace.files import save_trace, save_trace_shards
from bench_core.util.files import refuse_outputs
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.suites import CONVERTED, DIRECT, TINY_PLUGIN, write_suite
from tests.traces import make_trace

NET = """
from torch import nn


class make(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 4))

    def reset(self):
        pass

    def step(self, x):
        return self(x)
"""
REPLAY = ("replay", "--strategy", "seenn-i", "--calibration", "cal.safetensors", "--test", "test.safetensors")
SHARDS = ("replay", "--strategy", "seenn-i", "--calibration", "cal.json", "--test", "test.json")
SUITE = ("direct", "--suite", "tiny.toml", "--plugin", "plugin.py")
VERIFY = ("verify", "--strategy", "seenn-i", "--suite", "tiny.toml", "--plugin", "plugin.py")
OWN = ("--model", "own_package.nets:make", "--checkpoint", "net.safetensors", "--dataset", "tiny-shapes")
OWN = ("record", *OWN, "--timesteps", "2", "--plugin", "plugin.py")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with everything that the commands read, and other names for some of it."""
    place = tmp_path / "work"
    (place / "own_package").mkdir(parents=True)
    (place / "a-folder").mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, seed, samples in (("cal", 1, 60), ("test", 2, 50)):
        trace = make_trace("strong", seed, samples, 4, 5)
        save_trace(trace, place / f"{name}.safetensors")
        save_trace_shards(trace, place / f"{name}.json", 30)
    save_file(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).state_dict(), place / "net.safetensors")
    (place / "own_package" / "nets.py").write_text(NET)
    (place / "plugin.py").write_text(Path(TINY_PLUGIN).read_text())
    write_suite(place / "tiny.toml", workloads=[DIRECT, CONVERTED])
    (place / "link").symlink_to("cal.safetensors")
    (place / "again").symlink_to(".")
    (place / "linked-net.safetensors").symlink_to("net.safetensors")
    os.link(place / "test.safetensors", place / "second-name")
    os.mkfifo(place / "pipe")
    yield place
    for name in ("own_package", "own_package.nets"):
        sys.modules.pop(name, None)


def content(folder):
    """Every file below with what is in it, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else path.is_dir()
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def home():
    return Path(os.environ["EXITBENCH_HOME"])


READ = {
    "csv on the calibration trace": (*REPLAY, "--per-sample", "cal.safetensors"),
    "csv on the test trace": (*REPLAY, "--per-sample", "test.safetensors"),
    "json on the test trace": (*REPLAY, "--json", "test.safetensors"),
    "json by a way around": (*REPLAY, "--json", "a-folder/../cal.safetensors"),
    "json through a linked folder": (*REPLAY, "--json", "again/cal.safetensors"),
    "json on a link to a trace": (*REPLAY, "--json", "link"),
    "json on a second name of a trace": (*REPLAY, "--json", "second-name"),
    "json on an index": (*SHARDS, "--json", "test.json"),
    "csv on a shard": (*SHARDS, "--per-sample", "cal.00001.safetensors"),
    "json on a plugin": (*REPLAY, "--plugin", "plugin.py", "--json", "plugin.py"),
    "trained weights on the suite": ("train", *SUITE, "--output", "tiny.toml"),
    "trained weights on a plugin": ("train", *SUITE, "--output", "a-folder/../plugin.py"),
    "trace on the suite": ("record", *SUITE, "--output", "again/tiny.toml"),
    "trace on a plugin": ("record", *SUITE, "--output", "plugin.py"),
    "trace on the checkpoint": (*OWN, "--output", "net.safetensors"),
    "trace on a link to the checkpoint": (*OWN, "--output", "linked-net.safetensors"),
    "trace on the network's code": (*OWN, "--output", "own_package/nets.py"),
    "trace on the data set's plugin": (*OWN, "--output", "plugin.py"),
    "converted network on the suite": ("convert", "converted", *SUITE[1:], "--output", "tiny.toml"),
    "times on the suite": (*VERIFY, "--json", "again/tiny.toml"),
    "times on a plugin": (*VERIFY, "--json", "plugin.py"),
}
UNWRITABLE = {
    "a folder": ("a-folder", "a-folder: is a folder; name a file"),
    "no folder": ("nodir/sub/x.safetensors", "its folder doesn't exist; make nodir/sub first"),
    "a file for a folder": ("tiny.toml/x.safetensors", "its folder doesn't exist; make tiny.toml first"),
    "a pipe": ("pipe", "pipe: is no regular file; name a file"),
    "where nobody may write": ("/proc/x.safetensors", "/proc/x.safetensors: can't be written"),
    "a name too long": ("x" * 300, "can't be written"),
}
WRITERS = {
    "replay --json": (*REPLAY, "--json"),
    "replay --per-sample": (*REPLAY, "--per-sample"),
    "train": ("train", *SUITE, "--output"),
    "record": ("record", *SUITE, "--output"),
    "record --model": (*OWN, "--output"),
    "verify": (*VERIFY, "--json"),
    "convert": ("convert", "converted", *SUITE[1:], "--output"),
    "store export": ("store", "export", "direct", "--output"),
}


def refused(answer, *words):
    """Exit code 2 and one line, of which nothing else was said."""
    assert answer.code == 2, answer
    (line,) = answer.err.splitlines()
    assert line.startswith("exitbench: --"), line
    assert [word for word in words if word not in line] == [], line
    assert answer.out == ""


@pytest.mark.parametrize("arguments", READ.values(), ids=READ.keys())
def test_what_a_command_reads_is_not_written_over(exitbench, folder, arguments):
    before = content(folder)
    refused(exitbench(*arguments), f"{arguments[-2]} {arguments[-1]}: would overwrite", "choose another place")
    assert content(folder) == before
    assert not home().exists()


@pytest.mark.parametrize("output", UNWRITABLE.keys())
@pytest.mark.parametrize("command", WRITERS.keys())
def test_what_can_not_be_written_is_refused_before_the_work_begins(exitbench, folder, command, output):
    before = content(folder)
    place, words = UNWRITABLE[output]
    refused(exitbench(*WRITERS[command], place), f"{WRITERS[command][-1]} {place}: ", words)
    assert content(folder) == before
    assert not home().exists()


def test_the_name_that_record_makes_up_is_checked_as_well(exitbench, folder):
    weights = (folder / "net.safetensors").rename("mine-test.safetensors").read_bytes()
    answer = exitbench(*[x.replace("net.safetensors", "mine-test.safetensors") for x in OWN], "--name", "mine")
    refused(answer, "--output mine-test.safetensors: would overwrite")
    assert (folder / "mine-test.safetensors").read_bytes() == weights
    (folder / "direct-test.safetensors").mkdir()
    refused(exitbench("record", *SUITE), "--output direct-test.safetensors: is a folder; name a file")


@pytest.mark.parametrize("disguise", ["out.x", "a-folder/../out.x", "again/out.x", "hard", "soft"])
def test_two_outputs_are_two_files(exitbench, folder, disguise):
    if disguise in ("hard", "soft"):
        (folder / "out.x").write_text("of an earlier run")
        os.link("out.x", "hard")
        (folder / "soft").symlink_to("out.x")
    before = content(folder)
    answer = exitbench(*REPLAY, "--json", "out.x", "--per-sample", disguise)
    refused(answer, "--json out.x", f"--per-sample {disguise}", "the same file")
    assert content(folder) == before


@pytest.mark.parametrize("command", ["train", "record", "replay"])
def test_the_store_keeps_its_files_to_itself(exitbench, folder, command):
    kept = home() / "networks" / "ab" / "abc.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"weights")
    arguments = {"train": WRITERS["train"], "record": WRITERS["record"], "replay": WRITERS["replay --json"]}[command]
    refused(exitbench(*arguments, kept), f"{kept}: would overwrite", str(home() / "networks"))
    assert content(home()) == {"networks": True, "networks/ab": True, "networks/ab/abc.safetensors": b"weights"}


def test_outputs_of_an_earlier_run_and_other_files_are_replaced(exitbench, folder, monkeypatch):
    monkeypatch.setenv("EXITBENCH_HOME", str(folder))  # its own folders are the store's, the rest is not
    (folder / "elsewhere").symlink_to("nowhere")
    for _ in range(2):
        answer = exitbench(*SHARDS, "--json", "out.json", "--per-sample", "elsewhere")
        assert answer.code == 0, answer.err
        assert json.loads((folder / "out.json").read_text())["samples"] == 50
        assert (folder / "elsewhere").read_text().startswith("sample_id")
        (folder / "elsewhere").write_text("old")
    for _ in range(2):
        answer = exitbench(*OWN, "--output", "cal.safetensors")  # nothing that this command reads
        assert answer.code == 0, answer.err
        assert load_trace(folder / "cal.safetensors").timesteps == 2


def test_an_input_that_is_missing_or_a_loop_of_links_is_no_obstacle(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    refuse_outputs({"--output": tmp_path / "x", "--json": None}, [tmp_path / "absent", tmp_path / "loop"])
    with pytest.raises(UsageError, match=r"--output .*/loop: would overwrite what exitbench reads"):
        refuse_outputs({"--output": tmp_path / "loop"}, [tmp_path / "loop"])
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]
