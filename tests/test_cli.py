"""The command line: wrong input is one line that names the thing and the remedy, exit code 2, and nothing written."""

import csv
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from bench_plugins.seenn_ii import BETAS
from safetensors import safe_open
from safetensors.torch import save_file

from bench_core import Calibration, load_trace
from bench_core.data import calibration_halves
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.command import Answer
from tests.helpers.suites import CONVERTED, DIRECT, RECIPE, TINY_PLUGIN, tiny_registry, write_plugin, write_suite

N, T, K = 40, 4, 5


def process(*arguments, cwd):
    """The command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench_core", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONWARNINGS": "error::SyntaxWarning"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def home():
    """The store of this test."""
    return Path(os.environ["EXITBENCH_HOME"])


def tree(folder):
    """Every file and folder below, with sizes."""
    return {str(path.relative_to(folder)): path.stat().st_size * path.is_file() for path in folder.rglob("*")}


def logits(seed, samples=N, timesteps=T, classes=K):
    """Noise with evidence for the label that grows over time, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    noise = torch.randn(samples, timesteps, classes, generator=generator)
    return {"logits": noise + torch.nn.functional.one_hot(labels, classes)[:, None], "labels": labels}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with good traces, and with everything that a user can get wrong."""
    folder = tmp_path_factory.mktemp("place")
    good = logits(1)
    traces = {
        "cal": good,
        "test": logits(2, samples=60),
        "long": logits(3, timesteps=T + 2),
        "broad": logits(4, classes=K + 1),
        "labels-outside": {**good, "labels": torch.full((N,), K)},
        "short-labels": {**good, "labels": good["labels"][1:]},
        "twice": {**good, "sample_ids": torch.arange(N) // 2},
        "no-samples": {"logits": good["logits"][:0], "labels": good["labels"][:0]},
        "no-timesteps": {**good, "logits": good["logits"][:, :0].contiguous()},
        "one-class": {"logits": good["logits"][..., :1].contiguous(), "labels": torch.zeros(N, dtype=torch.int64)},
        "no-logits": {"labels": good["labels"]},
        "nan": {**good, "logits": good["logits"].clone()},
    }
    traces["nan"]["logits"][3, 1, 2] = math.nan
    for name, content in traces.items():
        save_file(content, folder / f"{name}.safetensors")
    (folder / "text.safetensors").write_text("logits, labels\n1, 0\n")

    seenn = {"name": "seenn-i"}
    write_suite(folder / "tiny.toml")
    write_suite(folder / "unknown-field.toml", colour="red")
    write_suite(folder / "wrong-type.toml", workloads=[{**DIRECT, "timesteps": "four"}])
    write_suite(folder / "zero-timesteps.toml", workloads=[{**DIRECT, "timesteps": 0}])
    write_suite(folder / "no-recipe.toml", workloads=[{k: v for k, v in DIRECT.items() if k != "recipe"}])
    write_suite(folder / "no-workloads.toml", workloads=[])
    write_suite(folder / "twice.toml", workloads=[DIRECT, DIRECT])
    write_suite(folder / "bad-name.toml", workloads=[{**DIRECT, "name": "../up"}])
    write_suite(folder / "bad-recipe.toml", workloads=[{**DIRECT, "recipe": {**RECIPE, "loss": "hinge"}}])
    write_suite(folder / "other-schema.toml", schema="exitbench.suite/9")
    write_suite(folder / "no-schema.toml", schema=None)
    write_suite(folder / "no-strategy.toml", strategies=[{"name": "seen-i"}])
    write_suite(folder / "no-model.toml", workloads=[{**DIRECT, "model": "tiny-con"}])
    write_suite(folder / "no-dataset.toml", workloads=[{**DIRECT, "dataset": "tiny-shape"}])
    write_suite(folder / "no-converter.toml", workloads=[{**CONVERTED, "conversion": {"converter": "qcf"}}])
    write_suite(folder / "no-cost-model.toml", cost_models=["cmos54"])
    write_suite(folder / "cost-knob.toml", cost_models=["cmos45", {"name": "imc", "parameters": {"sigma": 0.1}}])
    write_suite(folder / "cost-value.toml", cost_models=[{"name": "memory", "parameters": {"weights": 4.0}}])
    write_suite(folder / "first-layer.toml", first_layer="twice")
    write_suite(folder / "bad-knob.toml", strategies=[{**seenn, "parameters": {"alfa": 1.0}}])
    write_suite(folder / "bad-value.toml", strategies=[{**seenn, "parameters": {"alpha": -1.0}}])
    write_suite(folder / "bad-choice.toml", strategies=[{**seenn, "parameters": {"accumulate": "max"}}])
    write_suite(folder / "family-knob.toml", strategies=[{**seenn, "parameters": {"threshold": 0.9}}])
    conversion = {"converter": "qcfs", "parameters": {"levels": 0}}
    write_suite(folder / "bad-converter-knob.toml", workloads=[{**CONVERTED, "conversion": conversion}])
    write_suite(folder / "bad-point.toml", operating_points=["iso-acuracy:1"])
    write_suite(folder / "bad-budget.toml", operating_points=["budget:1.5"])
    (folder / "broken.toml").write_text('schema = "exitbench.suite/1"\nname = = "tiny"\n')
    (folder / "latin.toml").write_bytes(b'title = "Gr\xfc\xdfe"\n')
    (folder / "a-file").write_text("")
    (folder / "a-folder").mkdir()
    return folder


TRACES = ("--calibration", "cal.safetensors", "--test", "test.safetensors")
SEENN = ("replay", *TRACES, "--strategy", "seenn-i")
TINY = ("--plugin", TINY_PLUGIN)


def replayed_on(name, side="test"):
    """A replay with another file as one of the traces."""
    other = {"test": "calibration", "calibration": "test"}[side]
    files = (f"--{side}", f"{name}.safetensors", f"--{other}", "cal.safetensors")
    return ("replay", *files, "--strategy", "seenn-i", "--json", "out.json", "--per-sample", "out.csv")


def ran(name, *arguments):
    return ("run", f"{name}.toml", *TINY, "--output", "board", *arguments)


WRONG = {
    # what is asked for
    "unknown command": (["frobnicate"], ["frobnicate"]),
    "unknown flag": ([*SEENN, "--fast"], ["--fast"]),
    "missing option": (["replay", "--test", "test.safetensors", "--strategy", "seenn-i"], ["--calibration"]),
    "missing value": ([*SEENN, "--json"], ["--json"]),
    "nothing to list": (["list"], ["strategies"]),
    "unknown listing": (["list", "frogs"], ["frogs", "strategies"]),
    "unknown data command": (["data", "frobnicate"], ["frobnicate"]),
    "plugin missing": (
        ["run", "tiny.toml", "--plugin", "absent.py", "--output", "board"],
        ["absent.py", "no such file"],
    ),
    # suites
    "unknown suite": (["run", "quik", "--output", "board"], ["'quik'", "did you mean 'quick'"]),
    "suite file missing": (["run", "absent.toml", "--output", "board"], ["absent.toml", "No such file"]),
    "suite file a folder": (["run", "a-folder.toml", "--output", "board"], ["a-folder.toml"]),
    "broken TOML": (ran("broken"), ["broken.toml", "not TOML", "line 2"]),
    "not UTF-8": (ran("latin"), ["latin.toml", "not TOML"]),
    "unknown field": (ran("unknown-field"), ["unknown-field.toml", "colour"]),
    "wrong type": (ran("wrong-type"), ["wrong-type.toml", "workloads.0.timesteps", "integer"]),
    "no timesteps": (ran("zero-timesteps"), ["zero-timesteps.toml", "workloads.0.timesteps", "1"]),
    "missing field": (ran("no-recipe"), ["no-recipe.toml", "workloads.0.recipe"]),
    "no workloads": (ran("no-workloads"), ["no-workloads.toml", "workloads"]),
    "duplicate workloads": (ran("twice"), ["twice.toml", "unique", "direct"]),
    "name with a slash": (ran("bad-name"), ["bad-name.toml", "workloads.0.name"]),
    "unknown loss": (ran("bad-recipe"), ["bad-recipe.toml", "workloads.0.recipe.loss", "tet"]),
    "another schema": (ran("other-schema"), ["other-schema.toml", "schema", "exitbench.suite/1"]),
    "no schema": (ran("no-schema"), ["no-schema.toml", "schema"]),
    "unknown strategy in a suite": (ran("no-strategy"), ["strategy 'seen-i'", "did you mean 'seenn-i'"]),
    "unknown model": (ran("no-model"), ["model 'tiny-con'", "did you mean 'tiny-conv'", "exitbench list models"]),
    "unknown data set": (ran("no-dataset"), ["'tiny-shape'", "did you mean 'tiny-shapes'"]),
    "unknown converter": (ran("no-converter"), ["converter 'qcf'", "did you mean 'qcfs'"]),
    "unknown cost model": (ran("no-cost-model"), ["cost model 'cmos54'", "did you mean 'cmos45'"]),
    "unknown knob of a cost model": (ran("cost-knob"), ["imc", "'sigma'", "did you mean 'sigma_e'"]),
    "cost model's knob out of range": (ran("cost-value"), ["memory", "weights = 4.0", "[8, 1024]"]),
    "unknown first layer": (ran("first-layer"), ["first-layer.toml", "first_layer", "'once' or 'every-step'"]),
    "unknown knob in a suite": (ran("bad-knob"), ["seenn-i", "'alfa'", "did you mean 'alpha'"]),
    "knob out of range in a suite": (ran("bad-value"), ["seenn-i", "alpha = -1.0", "(0, inf)"]),
    "unknown choice in a suite": (ran("bad-choice"), ["seenn-i", "accumulate = max", "sum, mean"]),
    "family's knob in a suite": (ran("family-knob"), ["seenn-i", "threshold", "operating points"]),
    "converter's knob out of range": (ran("bad-converter-knob"), ["qcfs", "levels = 0"]),
    "bad operating point": (ran("bad-point"), ["'iso-acuracy:1'", "iso-accuracy:POINTS"]),
    "budget above one": (ran("bad-budget"), ["'budget:1.5'", "0 < SHARE <= 1"]),
    "unknown name for --only": (ran("tiny", "--only", "seen-i"), ["'seen-i'", "did you mean 'seenn-i'"]),
    "a misspelt workload for --only": (
        ran("tiny", "--only", "dirct"),
        ["--only 'dirct'", "did you mean 'direct'", "tiny has direct", "exitbench list strategies"],
    ),
    "another case for --only": (ran("tiny", "--only", "SEENN-I"), ["--only 'SEENN-I'", "did you mean 'seenn-i'"]),
    "another case for a workload": (ran("tiny", "--only", "seenn-i,DIRECT"), ["--only 'DIRECT'", "'direct'"]),
    "nothing for --only": (ran("tiny", "--only", ""), ["--only ''", "leave it out"]),
    "a comma for --only": (ran("tiny", "--only", "seenn-i", "--only", ","), ["--only ','", "leave it out"]),
    "no name for --output": (["run", "tiny.toml", *TINY, "--output", ""], ["--output ''", "leave it out"]),
    "no name behind --output=": (["run", "tiny.toml", *TINY, "--output="], ["--output ''", "leave it out"]),
    "no name for --output, dry": (["run", "tiny.toml", *TINY, "--dry-run", "--output", ""], ["--output ''"]),
    "no name for --scheduler": (ran("tiny", "--scheduler", ""), ["--scheduler ''"]),
    "no name for --device": (ran("tiny", "--device", ""), ["--device ''"]),
    "no name for a suite": (["run", "", "--output", "board"], ["run ''"]),
    "no name for a report's folder": (["report", "a-folder", "--output", ""], ["--output ''"]),
    "no name for a store's entry": (["store", "show", ""], ["show ''"]),
    "jobs and a scheduler": (ran("tiny", "--jobs", "2", "--scheduler", "tcp://127.0.0.1:9"), ["leave one out"]),
    "jobs and a scheduler, dry": (
        ran("tiny", "--dry-run", "--jobs", "2", "--scheduler", "tcp://127.0.0.1:9"),
        ["leave one out"],
    ),
    "jobs and nothing to make": (ran("tiny", "--jobs", "2", "--offline-store"), ["--offline-store", "--jobs"]),
    "a scheduler without a port": (ran("tiny", "--scheduler", "nonsense"), ["--scheduler nonsense", "tcp://HOST:PORT"]),
    "a scheduler without a port, dry": (ran("tiny", "--dry-run", "--scheduler", "x"), ["--scheduler x", "port"]),
    "a store without anything": (ran("tiny", "--offline-store"), ["not there", "--offline-store"]),
    "a plugin of another kind": (
        ["run", "tiny.toml", "--plugin", "text.safetensors", "--output", "board"],
        ["--plugin text.safetensors", "not a Python file", ".py"],
    ),
    "output is a file": (["run", "tiny.toml", *TINY, "--output", "a-file"], ["--output a-file"]),
    "output below a file": (["run", "tiny.toml", *TINY, "--output", "a-file/board"], ["a-file"]),
    "output where nobody may write": (
        ["run", "tiny.toml", *TINY, "--output", "/proc/exitbench/board"],
        ["/proc/exitbench"],
    ),
    "dry run of a bad suite": (ran("bad-knob", "--dry-run"), ["'alfa'"]),
    "dry run with a bad point": (ran("bad-point", "--dry-run"), ["'iso-acuracy:1'"]),
    "dry run with a bad cost model": (ran("no-cost-model", "--dry-run"), ["'cmos54'"]),
    # single stages
    "train an unknown workload": (["train", "dirct", "--suite", "tiny.toml", *TINY], ["'dirct'", "'direct'"]),
    "record an unknown workload": (["record", "dirct", "--suite", "tiny.toml", *TINY], ["'dirct'", "'direct'"]),
    "record an unknown split": (
        ["record", "direct", "--suite", "tiny.toml", *TINY, "--split", "validation"],
        ["--split validation", "calibration or test"],
    ),
    "record with all dropped": (
        ["record", "direct", "--suite", "tiny.toml", *TINY, "--dropout", "1"],
        ["--dropout 1", "[0, 1)"],
    ),
    "record layers with some dropped": (
        ["record", "direct", "--suite", "tiny.toml", *TINY, "--dropout", "0.3", "--per-layer"],
        ["--per-layer", "--dropout"],
    ),
    "record into no folder": (
        ["record", "direct", "--suite", "tiny.toml", *TINY, "--output", "absent/t.safetensors"],
        ["absent/t.safetensors", "folder"],
    ),
    # boards
    "board missing": (["leaderboard", "absent"], ["absent", "exitbench run"]),
    "reproduce nothing": (["reproduce", "absent"], ["absent", "manifest.json"]),
    "reproduce from nowhere": (["reproduce", "absent", "--from", "memory"], ["--from memory", "traces", "weights"]),
    # traces
    "trace missing": (replayed_on("absent"), ["absent.safetensors", "no such file"]),
    "calibration missing": (replayed_on("absent", "calibration"), ["absent.safetensors", "no such file"]),
    "trace is a folder": ([*SEENN[:3], "--test", "a-folder", *SEENN[5:]], ["a-folder"]),
    "not safetensors": (replayed_on("text"), ["text.safetensors", "safetensors file"]),
    "no logits": (replayed_on("no-logits"), ["no-logits.safetensors", "'logits' is missing"]),
    "NaN logits": (replayed_on("nan"), ["nan.safetensors", "logits[3, 1, 2] = nan"]),
    "labels out of range": (replayed_on("labels-outside"), ["labels[0] = 5", "5 classes"]),
    "shapes disagree": (replayed_on("short-labels"), ["labels is int64 [39]", "[40]"]),
    "duplicate ids": (replayed_on("twice"), ["sample_ids[1] = 0", "unique"]),
    "no samples in a trace": (replayed_on("no-samples"), ["no-samples.safetensors", "[0, 4, 5]"]),
    "no timesteps in a trace": (replayed_on("no-timesteps"), ["no-timesteps.safetensors", "[40, 0, 5]"]),
    "one class": (replayed_on("one-class"), ["one-class.safetensors", "at least 2"]),
    "T differs": (replayed_on("long"), ["4 timesteps", "6", "long.safetensors"]),
    "T differs the other way": (replayed_on("long", "calibration"), ["6 timesteps", "4", "long.safetensors"]),
    "K differs": (replayed_on("broad"), ["5 classes", "6", "broad.safetensors"]),
    # knobs
    "unknown strategy": (
        ["replay", *TRACES, "--strategy", "seenn"],
        ["strategy 'seenn'", "did you mean", "list strategies"],
    ),
    "unknown knob": ([*SEENN, "--set", "treshold=0.5"], ["seenn-i", "'treshold'", "threshold"]),
    "knob out of range": ([*SEENN, "--set", "threshold=1.5"], ["threshold = 1.5", "[0, 1]"]),
    "knob NaN": ([*SEENN, "--set", "threshold=nan"], ["threshold = nan"]),
    "knob not a number": ([*SEENN, "--set", "threshold=high"], ["threshold = high", "a number"]),
    "knob empty": ([*SEENN, "--set", "threshold="], ["threshold", "a number"]),
    "knob not whole": (["replay", *TRACES, "--strategy", "fixed", "--set", "t=1.5"], ["t = 1.5", "whole number"]),
    "alpha zero": ([*SEENN, "--set", "alpha=0", "--set", "threshold=0.5"], ["alpha = 0", "(0, inf)"]),
    "alpha infinite": ([*SEENN, "--set", "alpha=inf", "--set", "threshold=0.5"], ["alpha = inf", "(0, inf)"]),
    "unknown choice": ([*SEENN, "--set", "accumulate=median"], ["accumulate = median", "sum, mean"]),
    "--set without =": ([*SEENN, "--set", "threshold"], ["--set threshold", "KEY=VALUE"]),
    "--set without a key": ([*SEENN, "--set", "=0.5"], ["--set =0.5", "KEY=VALUE"]),
    "--set twice": ([*SEENN, "--set", "threshold=0.5", "--set", "threshold=0.6"], ["threshold", "twice"]),
    "knob and operating point": (
        [*SEENN, "--set", "threshold=0.5", "--operating-point", "budget:0.5"],
        ["threshold", "--operating-point", "not both"],
    ),
    "unknown operating point": ([*SEENN, "--operating-point", "cheapest"], ["'cheapest'", "budget:SHARE"]),
    "no harm at all": ([*SEENN, "--operating-point", "risk:0,0.05"], ["'risk:0,0.05'", "no finite number"]),
    "risk without a level": ([*SEENN, "--operating-point", "risk:1"], ["'risk:1'", "risk:1,0.05"]),
    "operating point NaN": ([*SEENN, "--operating-point", "budget:nan"], ["'budget:nan'"]),
    "t beyond T": (
        ["replay", *TRACES, "--strategy", "fixed", "--set", "t=5", "--json", "out.json"],
        ["t = 5", "[1, 4]"],
    ),
    "t of zero": (["replay", *TRACES, "--strategy", "fixed", "--set", "t=0"], ["t = 0", "[1, inf)"]),
    "t_mean beyond T": (["replay", *TRACES, "--strategy", "random", "--set", "t_mean=4.5"], ["t_mean = 4.5", "[1, 4]"]),
    "no inputs": (
        ["replay", *TRACES, "--strategy", "seenn-ii", "--json", "out.json"],
        ["seenn-ii", "inputs", "record"],
    ),
    "json into no folder": ([*SEENN, "--json", "absent/out.json"], ["absent/out.json", "folder"]),
    "json onto a folder": ([*SEENN, "--json", "a-folder"], ["a-folder"]),
    "csv into no folder": (
        [*SEENN, "--per-sample", "absent/out.csv", "--json", "out.json"],
        ["absent/out.csv", "folder"],
    ),
    "json and csv into one file": ([*SEENN, "--json", "out.txt", "--per-sample", "out.txt"], ["out.txt"]),
    "json where nobody may write": ([*SEENN, "--json", "/proc/out.json"], ["/proc/out.json"]),
    "csv where nobody may write": ([*SEENN, "--per-sample", "/proc/out.csv"], ["/proc/out.csv"]),
    "no policy to write": (
        [*SEENN, "--operating-point", "budget:0.1", "--json", "out.json", "--per-sample", "out.csv"],
        ["budget:0.1", "nothing is written"],
    ),
}


def check_refusal(answer, words):
    lines = answer.err.splitlines()
    assert answer.code == 2, answer
    assert len(lines) == 1, answer.err
    assert lines[0].startswith("exitbench: ")
    for word in words:
        assert str(word) in lines[0]
    assert answer.out == ""


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_one_line_exit_2_and_nothing_written(place, exitbench, monkeypatch, arguments, words):
    monkeypatch.chdir(place)
    before = tree(place)
    answer = exitbench(*arguments)
    after = tree(place)
    assert after == before, sorted(set(after) ^ set(before))
    assert not home().exists()
    check_refusal(answer, words)


@pytest.mark.parametrize("home", ["/proc/nope", "/etc/passwd", "/etc/passwd/below"])
@pytest.mark.parametrize("output", ["board", "new/board", "a-folder", "a-folder/board"])
def test_a_store_that_cannot_be_is_refused_before_anything_is_made(place, exitbench, monkeypatch, home, output):
    monkeypatch.chdir(place)
    monkeypatch.setenv("EXITBENCH_HOME", home)
    before = tree(place)
    answer = exitbench("run", "tiny.toml", *TINY, "--output", output)
    assert tree(place) == before
    check_refusal(answer, [f"store {home}: can't be written", "EXITBENCH_HOME"])


def test_what_lay_in_the_folder_of_a_run_that_is_refused_stays(place, tmp_path, exitbench, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "board").mkdir()
    (tmp_path / "board" / "notes").write_text("mine")
    before = tree(tmp_path)
    answer = exitbench("run", place / "tiny.toml", *TINY, "--offline-store", "--output", "board")
    assert tree(tmp_path) == before
    check_refusal(answer, ["not there"])


@pytest.mark.parametrize("case", ["unknown suite", "NaN logits", "unknown flag", "unknown command", "missing option"])
def test_a_process_of_its_own_refuses_alike(place, case):
    arguments, words = WRONG[case]
    before = tree(place)
    check_refusal(process(*arguments, cwd=place), words)
    assert tree(place) == before
    assert not home().exists()


HEAVY = ("torch", "numpy", "pandas", "scipy", "safetensors", "tonic", "bench_plugins")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["replay", "--help"], ["--version"]], ids=" ".join
)
def test_help_imports_nothing_heavy(tmp_path, arguments):
    program = (
        "import sys; from bench_core.cli import main\n"
        f"sys.argv = ['exitbench', *{arguments}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"print('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert "exitbench" in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize("arguments", [[], ["data"]], ids=["exitbench", "exitbench data"])
def test_no_command_shows_the_help_and_nothing_else(exitbench, arguments):
    answer = exitbench(*arguments)
    assert "Usage:" in answer.out + answer.err
    assert "exitbench: \n" not in answer.err


LISTED = {
    "strategies": ["seenn-i", "threshold [0, 1]", "fixed", "Li et al., NeurIPS 2023"],
    "models": ["small-conv", "tiny-conv"],
    "datasets": ["fashion-mnist", "tiny-shapes"],
    "converters": ["qcfs", "levels [1, inf) = 4"],
    "regularizers": ["regularizers"],
    "cost-models": ["cmos45", "accumulate [0, inf) = 0.9", "seenn-code", "imc", "sigma_e [0, inf) = 0.0", "memory"],
    "suites": ["quick"],
    "plugins": ["seenn_i", "exitbench", "strategy: seenn-i", "tiny_plugin"],
}


@pytest.mark.parametrize(("what", "words"), LISTED.items(), ids=LISTED.keys())
def test_list_shows_what_is_installed(exitbench, what, words):
    answer = exitbench("list", what, *TINY)
    assert answer.code == 0
    assert answer.err == ""
    for word in words:
        assert word in " ".join(answer.out.split())


def test_a_broken_plugin_is_listed_and_the_exit_code_is_1(tmp_path, exitbench):
    plugin = tmp_path / "brittle.py"
    plugin.write_text("raise RuntimeError('out of glue')\n")
    answer = exitbench("list", "plugins", "--plugin", plugin)
    assert "out of glue" in " ".join(answer.out.split())
    assert "strategy: seenn-i" in answer.out
    assert len(answer.err.splitlines()) == 1
    assert "brittle" in answer.err
    assert answer.code == 1


def test_a_plugin_without_a_mark_is_listed_and_the_exit_code_is_1(tmp_path, exitbench):
    plugin = write_plugin(tmp_path / "unmarked.py", COUNTING.replace("@hookimpl\n", ""))
    answer = exitbench("list", "plugins", "--plugin", plugin)
    assert "registers nothing; is @hookimpl missing?" in " ".join(answer.out.split())
    assert "unmarked: registers nothing; is @hookimpl missing?" in answer.err
    assert answer.code == 1


def test_data_list_shows_splits_and_digests(exitbench):
    answer = exitbench("data", "list")
    assert answer.code == 0
    row = next(line for line in answer.out.splitlines() if line.startswith("fashion-mnist ") and " test " in line)
    assert "10000" in row
    assert "MIT" in row


def test_ctrl_c_is_one_line_and_exit_code_130(tmp_path):
    plugin = tmp_path / "impatient.py"
    plugin.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    answer = process("list", "strategies", "--plugin", plugin, cwd=tmp_path)
    assert answer.code == 130
    assert "Traceback" not in answer.err
    assert "the same command continues" in answer.err


def test_a_reader_that_goes_away_is_no_traceback(tmp_path):
    command = f"{sys.executable} -m bench_core list strategies | true"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""


@pytest.fixture
def outputs(tmp_path):
    return tmp_path / "out.json", tmp_path / "out.csv"


def test_replay_writes_json_and_samples_that_agree(place, exitbench, monkeypatch, outputs):
    monkeypatch.chdir(place)
    json_file, csv_file = outputs
    answer = exitbench(*SEENN, "--operating-point", "budget:0.6", "--json", json_file, "--per-sample", csv_file)
    assert answer.code == 0
    assert answer.err == ""
    assert "seenn-i" in answer.out

    result = json.loads(json_file.read_text())
    assert result["strategy"] == "seenn-i"
    assert result["operating_point"] == "budget:0.6"
    assert set(result["parameters"]) == {"threshold", "accumulate", "alpha"}
    for name in ("aet", "empirical_aet", "oct"):
        assert 1 <= result[name] <= T
    assert result["accuracy"] <= result["oracle_accuracy"] <= 1

    trace = load_trace(place / "test.safetensors")
    assert result["static_accuracy"] == [int(trace.correct[:, t].sum()) / len(trace) for t in range(T)]
    with csv_file.open(newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["sample_id", "exit_timestep", "prediction", "label", "forced"]
    samples = pd.read_csv(csv_file)
    assert samples["sample_id"].tolist() == trace.sample_ids.tolist()
    assert samples["label"].tolist() == trace.labels.tolist()
    assert (samples["prediction"] == samples["label"]).sum() / len(trace) == result["accuracy"]
    assert samples["exit_timestep"].sum() / len(trace) == result["avg_exit_timestep"]
    assert (samples["forced"] == (samples["exit_timestep"] == T)).all()
    predictions = trace.predictions[torch.arange(len(trace)), torch.tensor(samples["exit_timestep"].to_numpy()) - 1]
    assert samples["prediction"].tolist() == predictions.tolist()
    assert set(samples["exit_timestep"]) <= set(range(1, T + 1))


def test_replay_with_the_knob_replays_exactly_that_policy(place, exitbench, monkeypatch, outputs):
    monkeypatch.chdir(place)
    json_file, csv_file = outputs
    settings = ("--set", "threshold=0.7", "--set", "accumulate=mean", "--set", "alpha=0.5")
    assert exitbench(*SEENN, *settings, "--json", json_file, "--per-sample", csv_file).code == 0
    result = json.loads(json_file.read_text())
    assert result["parameters"] == {"threshold": 0.7, "accumulate": "mean", "alpha": 0.5}
    assert result["operating_point"] is None
    trace = load_trace("test.safetensors")
    expected = []
    for sample in range(len(trace)):
        total = torch.zeros(K, dtype=torch.float64)
        for t in range(1, T + 1):
            total = total + trace.logits[sample, t - 1].double()
            if t == T or float(torch.softmax(total / t / 0.5, 0).max()) > 0.7:
                expected.append(t)
                break
    assert pd.read_csv(csv_file)["exit_timestep"].tolist() == expected
    assert len(Counter(expected)) > 1


def test_replay_without_a_choice_takes_iso_accuracy_0(place, exitbench, monkeypatch, outputs):
    monkeypatch.chdir(place)
    assert exitbench(*SEENN, "--json", outputs[0]).code == 0
    assert json.loads(outputs[0].read_text())["operating_point"] == "iso-accuracy:0"


def test_replay_chooses_by_risk_and_says_where_nothing_is_proved(place, exitbench, monkeypatch, outputs):
    monkeypatch.chdir(place)
    json_file = outputs[0]
    answer = exitbench(*SEENN, "--operating-point", "risk:60,0.2", "--json", json_file)
    assert answer.code == 0
    result = json.loads(json_file.read_text())
    assert (result["operating_point"], result["status"]) == ("risk:60,0.2", "ok")
    assert result["avg_exit_timestep"] < T
    assert 0 <= result["harmed_share"] <= 0.6
    answer = exitbench(*SEENN, "--operating-point", "risk:0.1,0.05", "--json", json_file)  # too few samples
    assert "fallback to static T" in answer.out
    result = json.loads(json_file.read_text())
    assert (result["status"], result["avg_exit_timestep"], result["harmed_share"]) == ("fallback", T, 0)


@pytest.mark.parametrize("name", ["fixed", "random", "stability", "margin", "seenn-i", "dt-snn", "dynamic-confidence"])
def test_every_strategy_that_needs_traces_only_is_replayed(place, exitbench, monkeypatch, outputs, name):
    monkeypatch.chdir(place)
    answer = exitbench("replay", *TRACES, "--strategy", name, "--operating-point", "budget:0.6", "--json", outputs[0])
    assert answer.code == 0
    result = json.loads(outputs[0].read_text())
    assert result["strategy"] == name
    assert 1 <= result["avg_exit_timestep"] <= T


def test_replay_says_so_when_calibration_is_the_test_trace(place, exitbench, monkeypatch, outputs):
    monkeypatch.chdir(place)
    files = ("--calibration", "cal.safetensors", "--test", "cal.safetensors")
    answer = exitbench("replay", *files, "--strategy", "seenn-i", "--json", outputs[0])
    assert answer.code == 0
    assert "same trace" in answer.err
    assert json.loads(outputs[0].read_text())["calibration_equals_test"] is True


COUNTING = """
class Counting(ScoreStrategy):
    name = "counting"
    reference = "the tests"
    knobs = (Knob("seen", "int", help="samples that were learnt from"),)

    def learn(self, calibration):
        return self.with_parameters({"seen": len(calibration.trace)})

    def score(self, evidence):
        return evidence.total.amax(1)

@hookimpl
def bench_exit_strategies():
    return [Counting()]
"""


def test_a_given_knob_leaves_the_whole_calibration_to_learn_from(place, tmp_path, exitbench, monkeypatch, outputs):
    plugin = write_plugin(tmp_path / "counting.py", COUNTING)
    monkeypatch.chdir(place)
    counting = ("replay", *TRACES, "--strategy", "counting", "--plugin", plugin, "--json", outputs[0])
    assert exitbench(*counting, "--set", "threshold=1").code == 0
    assert json.loads(outputs[0].read_text())["parameters"]["seen"] == N
    assert exitbench(*counting, "--operating-point", "iso-accuracy:1").code == 0
    calibration = load_trace("cal.safetensors")
    fit, _ = calibration_halves(calibration.labels, calibration.sample_ids)
    assert json.loads(outputs[0].read_text())["parameters"]["seen"] == len(fit) < N


def test_a_given_knob_fits_the_other_knobs_on_the_whole_calibration(place, exitbench, monkeypatch, outputs):
    monkeypatch.chdir(place)
    knob = ("--strategy", "dynamic-confidence", "--set", "threshold=0.7", "--json", outputs[0])
    assert exitbench("replay", *TRACES, *knob).code == 0
    found = json.loads(outputs[0].read_text())["parameters"]["alpha"]
    trace = load_trace("cal.safetensors")
    strategy = tiny_registry().strategies["dynamic-confidence"]
    assert found == strategy.learn(Calibration(trace)).parameters["alpha"]
    half = trace.select(calibration_halves(trace.labels, trace.sample_ids)[0])
    assert found != strategy.learn(Calibration(half)).parameters["alpha"]


LOST = """
from bench_core.errors import DataError

class Lost(Dataset):
    name = "lost"
    classes, input_shape, constant_input = 5, (1, 2, 2), True
    licence = reference = "none"
    identity = {"name": "lost"}

    def split(self, name):
        raise DataError("lost: the files are not on this machine; fetch them")

    def encode(self, images, timesteps, frames=None):
        raise AssertionError

@hookimpl
def bench_datasets():
    return [Lost()]
"""


def test_a_strategy_that_needs_no_inputs_is_replayed_though_the_data_are_lost(tmp_path, exitbench, outputs):
    plugin = write_plugin(tmp_path / "lost.py", LOST)
    header = {"provenance": json.dumps({"dataset": "lost", "data": "0" * 64})}
    for split, seed in (("calibration", 1), ("test", 2)):
        save_file(logits(seed), tmp_path / f"{split}.safetensors", {**header, "split": split})
    files = ("--calibration", tmp_path / "calibration.safetensors", "--test", tmp_path / "test.safetensors")
    answer = exitbench("replay", *files, "--strategy", "seenn-i", "--plugin", plugin, "--json", outputs[0])
    assert answer.code == 0, answer.err
    assert json.loads(outputs[0].read_text())["samples"] == N


KEPT_TO_ITSELF = """
from typing import ClassVar

from bench_core import hookimpl
from bench_plugins.qcfs import QCFS


class Secret(QCFS):
    name: ClassVar[str] = "secret"

    def __init__(self, **knobs):
        super().__init__(**knobs)
        self.what_json_lacks = object()


@hookimpl
def bench_converters():
    return [Secret()]
"""


def test_convert_shows_and_copies_the_spiking_twin(tmp_path, exitbench, monkeypatch):
    monkeypatch.chdir(tmp_path)
    secret = {**CONVERTED, "name": "secret", "conversion": {"converter": "secret"}}
    suite = ("--suite", write_suite(tmp_path / "tiny.toml", workloads=[DIRECT, CONVERTED, secret]), *TINY)
    plugin = ("--plugin", write_plugin(tmp_path / "secret.py", KEPT_TO_ITSELF))
    answer = exitbench("convert", "converted", *suite, *plugin, "--output", "spiking.safetensors")
    assert answer.code == 0, answer.err
    shown = [line.split() for line in answer.out.splitlines() if line.startswith("layers.")]
    with safe_open("spiking.safetensors", "pt") as stream:
        kept = json.loads(stream.metadata()["artifact"])["neurons"]
    assert len(shown) == len(kept) == 2
    for cells, neuron in zip(shown, kept, strict=True):
        numbers = [neuron[name] for name in ("threshold", "initial", "amplitude")]
        assert [float(cell) for cell in cells[1:4]] == pytest.approx(numbers, rel=1e-4)
        assert cells[4:] == ["soft", "1"]
        assert neuron["initial"] == neuron["threshold"] / 2
    assert "converted: converted by qcfs from weights sha256" in answer.out

    again = exitbench("convert", "converted", *suite, *plugin)
    assert again.out == answer.out
    assert "convert" not in again.err  # it was kept
    check_refusal(exitbench("convert", "direct", *suite, *plugin), ["direct", "nothing to convert"])
    check_refusal(exitbench("convert", "convertd", *suite, *plugin), ["'convertd'", "did you mean 'converted'"])
    assert exitbench("train", "secret", *suite, *plugin).code == 0
    check_refusal(exitbench("convert", "secret", *suite, *plugin, "--output", "x"), ["--output x", "converter secret"])
    assert exitbench("convert", "secret", *suite, *plugin).code == 0


def test_train_record_and_replay_with_inputs_one_after_the_other(tmp_path, exitbench, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite = ("--suite", write_suite(tmp_path / "tiny.toml"), *TINY)
    trained = exitbench("train", "direct", *suite, "--output", "weights.safetensors")
    assert trained.code == 0
    assert "sha256" in trained.out
    assert (tmp_path / "weights.safetensors").is_file()
    for split, samples in (("calibration", 200), ("test", 300)):
        recorded = exitbench("record", "direct", *suite, "--split", split)
        assert recorded.code == 0
        assert f"{samples} samples, T = 4, K = 4" in recorded.out
        assert "train" not in recorded.err
    detailed = exitbench("record", "direct", *suite, "--per-layer", "--output", "detailed.safetensors")
    assert detailed.code == 0
    plain, detail = (load_trace(Path(f"{name}.safetensors")) for name in ("direct-test", "detailed"))
    assert plain.layer_counts == {}
    assert torch.equal(detail.layer_counts["layer_acs"].sum(2), plain.counts["acs"])
    assert [layer["name"] for layer in detail.layers if layer["kind"] == "neurons"] == ["layers.1", "layers.4"]
    files = ("--calibration", "direct-calibration.safetensors", "--test", "direct-test.safetensors")
    seenn_ii = ("--strategy", "seenn-ii", "--set", "epochs=1", "--set", "beta=2", *TINY, "--json", "out.json")
    assert exitbench("replay", *files, *seenn_ii).code == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["samples"] == 300
    assert result["parameters"]["beta"] == 2

    policies = []
    for choice in (("--operating-point", "iso-accuracy:1"), ("--set", f"beta={BETAS[1]}")):
        rest = (*files, "--strategy", "seenn-ii", "--set", "epochs=1", *TINY)
        assert exitbench("replay", *rest, *choice).code == 0
        policies.append(len(list((home() / "policies").rglob("*.safetensors"))))
    assert policies == [
        1 + len(BETAS),
        2 + len(BETAS),
    ]  # one learnt from half of calibration isn't taken for one learnt from all


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(place, exitbench, monkeypatch):
    monkeypatch.chdir(place)
    before = tree(place)
    answer = exitbench("run", "tiny.toml", *TINY, "--dry-run")
    assert answer.code == 0
    assert "direct: train, then record" in answer.out
    assert "fixed, stability, seenn-i" in answer.out
    assert "exitbench-results/tiny" in answer.out
    assert tree(place) == before
    assert not home().exists()


def test_a_failed_row_is_exit_code_1(tmp_path, exitbench, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failing = "def score(self, evidence):\n        raise RuntimeError('no score')"
    source = COUNTING.replace("def score(self, evidence):\n        return evidence.total.amax(1)", failing)
    plugin = write_plugin(tmp_path / "failing.py", source)
    write_suite(tmp_path / "tiny.toml", strategies=[{"name": "fixed"}, {"name": "counting"}])
    answer = exitbench("run", "tiny.toml", *TINY, "--plugin", plugin)
    assert "2 rows failed" in answer.err
    assert "failed: RuntimeError: no score" in answer.out
    assert answer.code == 1


def test_the_board_of_a_run_is_printed_again(tmp_path, exitbench, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_suite(tmp_path / "tiny.toml")
    answer = exitbench("run", "tiny.toml", *TINY)
    assert answer.code == 0
    again = exitbench("leaderboard", "exitbench-results/tiny")
    assert again.code == 0
    assert again.out.strip() in answer.out
    wrong = exitbench("leaderboard", "exitbench-results/tiny", "--operating-point", "budget:0.9")
    check_refusal(wrong, ["'budget:0.9'", "budget:0.5", "iso-accuracy:1"])


def test_a_part_of_a_suite_leaves_the_whole_board_alone(tmp_path, exitbench, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_suite(tmp_path / "tiny.toml")
    assert exitbench("run", "tiny.toml", *TINY).code == 0
    whole = tmp_path / "exitbench-results" / "tiny"
    before = tree(whole)
    answer = exitbench("run", "tiny.toml", *TINY, "--only", "fixed", "--only", "seenn-i,direct")
    assert answer.code == 0
    assert tree(whole) == before
    part = tmp_path / "exitbench-results" / "tiny-only"
    assert f"{part.relative_to(tmp_path)}/rows.csv" in answer.out
    assert 0 < len((part / "rows.csv").read_text().splitlines()) < len((whole / "rows.csv").read_text().splitlines())
    command = json.loads((part / "manifest.json").read_text())["command"]
    assert command == "exitbench run tiny.toml --only fixed --only seenn-i,direct"
