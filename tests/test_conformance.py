"""The conformance kit: every check fails for its own reason only, and the package that `plugin new` writes is whole."""

import os
import random
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from bench_core import load_registry
from bench_core.conformance import CHECKS, examine
from bench_core.conformance.scaffold import render
from bench_core.conformance.synthetic import record
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.broken_strategies import BROKEN, MORE_BROKEN, Sound, WithNetwork
from tests.helpers.suites import write_plugin

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "plugins" / "example"
NAMES = [check.name for check in CHECKS]
REGISTRY = load_registry()
SHIPPED = [name for name in REGISTRY.strategies if REGISTRY.owners["strategies", name].distribution == "exitbench"]


def failures(strategy):
    """Names of the checks that a strategy fails; those that are not run are no failures."""
    verdicts = list(examine(strategy))
    assert [verdict.check for verdict in verdicts] == NAMES
    assert all("\n" not in str(verdict) for verdict in verdicts)
    return [verdict.check for verdict in verdicts if verdict.problem]


# --- the checks ------------------------------------------------------------------------------------------------------


def test_every_check_has_a_broken_strategy_and_a_rule():
    assert list(BROKEN) == NAMES
    assert all(check.rule.endswith(".") for check in CHECKS)


def test_a_sound_strategy_passes():
    assert failures(Sound()) == []


@pytest.mark.parametrize(("name", "broken"), BROKEN.items(), ids=BROKEN)
def test_a_broken_strategy_fails_its_check_and_no_other(name, broken):
    assert failures(broken()) == [name]
    with pytest.raises(Exception):  # noqa: B017  # a ConformanceError, or what the strategy raises
        next(check for check in CHECKS if check.name == name)(broken())


@pytest.mark.parametrize(("name", "broken"), MORE_BROKEN, ids=lambda value: getattr(value, "__name__", value))
def test_a_rule_may_be_broken_in_other_ways(name, broken):
    assert failures(broken()) == [name]


def test_the_reason_says_which_policy_and_sample_and_what_was_changed():
    causality = next(verdict for verdict in examine(BROKEN["causality"]()) if verdict.problem)
    assert re.match(r"threshold = [\d.]+ stops sample \d+ at t = \d instead of \d when only", causality.problem)
    assert causality.problem.endswith("what comes after t = 1 changes")


def test_where_a_strategy_does_not_run_the_rest_is_not_checked():
    first, *others = examine(BROKEN["runs"]())
    assert "IndexError" in first.problem
    assert not any(verdict.passed for verdict in others)
    assert all(str(verdict).endswith(" not run") for verdict in others)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_strategy_passes(name):
    assert failures(REGISTRY.strategies[name]) == []


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("seenn-i", {"accumulate": "mean", "alpha": 3.0}),
        ("dt-snn", {"accumulate": "mean"}),
        ("margin", {"accumulate": "mean"}),
        ("topk-cutoff", {"search": "bins"}),
        ("spikecp", {"correction": "simes"}),
        ("spikecp", {"max_set": 5}),
    ],
)
def test_the_variants_pass_too(name, parameters):
    problems = failures(REGISTRY.strategies[name].with_parameters(parameters))
    assert problems == (["forced-exit"] if parameters == {"max_set": 5} else [])  # five labels of five: always enough


@pytest.mark.parametrize(("margin", "problems"), [(1e-7, []), (1e-5, ["batch-size"])])
def test_a_network_in_a_policy_may_round_differently_and_no_more(margin, problems):
    assert failures(WithNetwork(margin)) == problems


def test_random_generators_are_left_as_they_were():
    def state():
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002

    before = state()
    assert failures(Sound()) == []
    assert state() == before


def test_a_strategy_is_left_as_it_was():
    strategy = BROKEN["store-round-trip"]()
    failures(strategy)
    assert vars(strategy) == vars(BROKEN["store-round-trip"]())


def test_recordings_are_the_same_every_time_and_hold_no_ties():
    first, second = record(1), record(1)
    assert torch.equal(first.trace.logits, second.trace.logits)
    assert torch.equal(first.frames, second.frames)
    logits = first.trace.logits.flatten()
    assert len(logits.unique()) == len(logits)
    assert 0.3 < first.trace.correct[:, 0].double().mean() < first.trace.correct[:, -1].double().mean()


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def exitbench(exitbench, monkeypatch, tmp_path):
    """The command line in this process, in a folder of its own."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return exitbench


def test_plugin_check_prints_a_line_per_check_and_passes_the_example(exitbench):
    code, out, _ = exitbench("plugin", "check", EXAMPLE / "exitbench_example" / "__init__.py")
    *lines, last = out.splitlines()
    assert code == 0
    assert [line.split() for line in lines] == [["scaled-gap", name, "passed"] for name in NAMES]
    assert last == f"{len(NAMES)} of {len(NAMES)} checks passed"


def test_plugin_check_fails_with_the_reason_in_one_line(exitbench, tmp_path):
    source = "from tests.helpers.broken_strategies import BROKEN\n@hookimpl\ndef bench_exit_strategies():\n"
    file = write_plugin(tmp_path / "mine.py", source + "    return [BROKEN['ties']()]\n")
    code, out, _ = exitbench("plugin", "check", file)
    assert code == 1
    (failed,) = [line for line in out.splitlines() if "failed" in line]
    assert failed.split()[:3] == ["sound", "ties", "failed:"]
    assert f"{len(NAMES) - 1} of {len(NAMES)} checks passed" in out


def test_plugin_check_of_a_plugin_that_does_not_load_fails(exitbench, tmp_path):
    code, _, err = exitbench("plugin", "check", write_plugin(tmp_path / "mine.py", "raise RuntimeError('no')"))
    assert code == 1
    assert "RuntimeError: no" in err


@pytest.mark.parametrize("name", ["margin.py", "absent"])
def test_plugin_check_of_an_unknown_name_is_refused(exitbench, name):
    code, out, err = exitbench("plugin", "check", name)
    assert (code, out) == (2, "")
    assert name in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(("name", "nearest"), [("seen_i", "seenn_i"), ("exitbenhc", "exitbench")])
def test_plugin_check_suggests_the_nearest_name(exitbench, name, nearest):
    code, _, err = exitbench("plugin", "check", name)
    assert code == 2
    assert f"did you mean {nearest!r}" in err


@pytest.mark.parametrize("name", ["seenn_i", "seenn-i", "Seenn.I"])
def test_plugin_check_finds_a_plugin_however_it_is_spelt(exitbench, name):
    code, out, _ = exitbench("plugin", "check", name)
    assert code == 0
    assert out.startswith("seenn-i  runs")


def test_plugin_check_of_a_plugin_without_strategies_is_refused(exitbench):
    code, _, err = exitbench("plugin", "check", "qcfs")
    assert code == 2
    assert "no exit strategy" in err


def test_plugin_new_writes_a_package_that_passes_its_own_checks(exitbench):
    code, out, _ = exitbench("plugin", "new", "my-exit")
    assert code == 0
    assert "pip install -e ./my-exit" in out
    written = sorted(str(path.relative_to("my-exit")) for path in Path("my-exit").rglob("*") if path.is_file())
    assert written == ["README.md", "my_exit/__init__.py", "pyproject.toml", "tests/test_my_exit.py"]
    project = tomllib.loads(Path("my-exit/pyproject.toml").read_text())["project"]
    assert project["name"] == "my-exit"
    assert project["entry-points"]["exitbench"] == {"my_exit": "my_exit"}
    assert exitbench("plugin", "check", "my-exit/my_exit/__init__.py")[0] == 0


@pytest.mark.parametrize(
    "name",
    [
        *("My-Exit", "my_exit", "my exit", "my--exit", "-exit", "exit-", "3-steps", "", ".", "..", "../evil"),
        *("a/b", "/tmp/evil", "my-exit\n", "naïve", "$(touch evil)", "; touch evil", "x" * 65, "%s", "{name}"),
        *("seenn-i", "fixed", "class", "json", "numpy", "bench-core", "tests", "exitbench"),
    ],
)
def test_plugin_new_refuses_a_bad_or_taken_name_and_writes_nothing(exitbench, name):
    code, out, err = exitbench("plugin", "new", "--", name)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert list(Path().iterdir()) == []
    assert not Path("../evil").exists()


def test_plugin_new_leaves_what_is_there_alone(exitbench):
    Path("my-exit").mkdir()
    Path("other").write_text("a file")
    Path("elsewhere").symlink_to("nowhere")
    for name in ("my-exit", "other", "elsewhere"):
        code, _, err = exitbench("plugin", "new", name)
        assert code == 2
        assert f"{name}: is there already" in err
    assert list(Path("my-exit").iterdir()) == []
    assert not Path("nowhere").exists()


def test_plugin_new_leaves_nothing_half_made(exitbench, monkeypatch):
    def full(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    code, _, err = exitbench("plugin", "new", "my-exit")
    assert code == 2
    assert "No space left" in err
    assert list(Path().iterdir()) == []


def test_the_example_is_what_plugin_new_writes():
    files = render("scaled-gap", distribution="exitbench-example", module="exitbench_example")
    for path, text in files.items():
        assert (EXAMPLE / path).read_text(encoding="utf-8") == text, path


# --- in processes of their own ---------------------------------------------------------------------------------------


def process(*command, cwd, path=()):
    """A command in a process of its own, with folders at the front of the module path."""
    places = os.pathsep.join([*map(str, path), str(ROOT), str(ROOT / "plugins")])
    environment = {**os.environ, "PYTHONPATH": places, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_pytest_runs_the_kit_on_an_installed_strategy(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # the installed metadata may be older than the tree
    module = "bench_core.conformance"
    kit = ("-m", "pytest", "-p", "no:cacheprovider", "-p", f"{module}.pytest_plugin", "--pyargs", module)
    named = process(*kit, "--exit-strategy", "fixed", cwd=tmp_path)
    assert named.returncode == 0, named.stdout + named.stderr
    assert f"{len(NAMES)} passed" in named.stdout
    refused = process(*kit, cwd=tmp_path)
    assert refused.returncode != 0
    assert "say which strategy: --exit-strategy NAME" in refused.stdout + refused.stderr


def test_the_pytest_plugin_is_announced():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"exitbench": "bench_core.conformance.pytest_plugin"}


def test_what_pytest_loads_everywhere_is_light(tmp_path):
    code = "import sys, bench_core.conformance.pytest_plugin; sys.exit(not sys.modules.keys().isdisjoint(['torch']))"
    assert process("-c", code, cwd=tmp_path).returncode == 0


def test_the_template_is_in_the_package():
    from importlib.resources import files

    names = {path.name for path in (files("bench_core") / "conformance" / "template").iterdir()}
    assert names == {"README.md.template", "package.py.template", "pyproject.toml.template", "tests.py.template"}
