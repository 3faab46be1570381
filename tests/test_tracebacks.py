"""A plugin that raises is one line with file and line of its own code; ``--debug`` shows the traceback."""

import pytest

from bench_core.isolation.tracebacks import described, raised_at
from bench_core.trace.files import save_trace
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.suites import write_plugin
from tests.traces import make_trace

STRATEGY = """
class Own(ScoreStrategy):
    name = "own"
    reference = "the tests"
    family_knob = Knob("threshold")

    {body}


@hookimpl
def bench_exit_strategies():
    return [Own()]
"""
SCORE = "def score(self, evidence):\n        "
RAISING = {
    "by hand": (SCORE + "raise ValueError('boom')", "ValueError: boom"),
    "several lines": (SCORE + "raise ValueError('one\\n\\ntwo\\x1b[31m')", "ValueError: one two?[31m"),
    "in torch": (SCORE + "return torch.zeros(2) @ torch.zeros(3)", "RuntimeError: "),
    "in numpy": (SCORE + "return np.zeros(3).reshape(7)", "ValueError: cannot reshape"),
    "no message": (SCORE + "raise KeyError", "KeyError"),
    "deep": (SCORE + "return self.score(evidence)", "RecursionError: "),
    "exit": (SCORE + "raise SystemExit(0)", "called sys.exit(0)"),
    "base": (SCORE + "raise BaseException('base')", "raised BaseException: base"),
    "generator": (SCORE + "raise GeneratorExit", "raised GeneratorExit"),
    "assertion": (SCORE + "assert not evidence.t", "AssertionError"),
    "file": (SCORE + "return open('/nowhere/at/all')", "No such file"),
}


@pytest.fixture
def traces(tmp_path, monkeypatch):
    """A folder with two traces, the current one."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("cal", 1), ("test", 2)):
        save_trace(make_trace("strong", seed, 30, 4, 5), tmp_path / f"{name}.safetensors")
    return tmp_path


def replayed(exitbench, plugin, *options):
    files = ("--calibration", "cal.safetensors", "--test", "test.safetensors")
    return exitbench("replay", *files, "--strategy", "own", "--plugin", plugin, *options)


@pytest.mark.parametrize(("body", "words"), RAISING.values(), ids=RAISING.keys())
def test_replay_names_their_file_and_line(traces, exitbench, body, words):
    plugin = write_plugin(traces / "own.py", STRATEGY.format(body=body))
    number = 1 + next(n for n, line in enumerate(plugin.read_text().splitlines()) if "def score" in line) + 1
    answer = replayed(exitbench, plugin)
    assert (answer.code, answer.out) == (2, "")
    (line,) = answer.err.splitlines()
    assert line.isprintable()
    assert line.startswith("exitbench: ")
    assert f"{plugin}:{number}" in line
    assert words in line
    answer = replayed(exitbench, plugin, "--debug")
    assert answer.code == 2
    assert "Traceback (most recent call last)" in answer.err
    assert answer.err.splitlines()[-1].startswith("exitbench: ")


def test_plugin_check_names_their_file_and_line(traces, exitbench):
    plugin = write_plugin(traces / "own.py", STRATEGY.format(body=SCORE + "raise ValueError('one\\ntwo\\x1b[2J')"))
    number = 1 + next(n for n, line in enumerate(plugin.read_text().splitlines()) if "raise ValueError" in line)
    answer = exitbench("plugin", "check", plugin)
    assert answer.code == 1
    first = answer.out.splitlines()[0]
    assert first.isprintable()
    assert first.endswith(f"failed: raises {plugin}:{number}: ValueError: one two?[2J")
    assert "Traceback" not in answer.out + answer.err
    answer = exitbench("--debug", "plugin", "check", plugin)
    assert "Traceback (most recent call last)" in answer.err
    assert answer.out.splitlines()[0] == first


@pytest.mark.parametrize(
    ("source", "place", "words"),
    [
        ("x = 1\nraise ValueError('at import')", 6, "ValueError: at import"),
        ("def broken(:", 5, "SyntaxError: "),
        ("import no_such_module_here", 5, "ModuleNotFoundError: No module named"),
        ("@hookimpl\ndef bench_models():\n    return 1 / 0", 7, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_plugin_that_does_not_load_is_named_with_file_and_line(traces, exitbench, source, place, words):
    plugin = write_plugin(traces / "own.py", source)
    answer = exitbench("list", "cost-models", "--plugin", plugin)
    (line,) = answer.err.splitlines()
    assert f"{plugin}:{place}: {words}" in line
    assert "Traceback" in exitbench("list", "cost-models", "--plugin", plugin, "--debug").err


def test_an_error_without_a_traceback_has_no_place():
    assert raised_at(ValueError("x")) == ""
    assert described(ValueError("x")) == "ValueError: x"

    class Rude(Exception):
        def __str__(self):
            raise RuntimeError

    assert described(Rude()) == "Rude: (its message can't be shown)"
