"""Plugins: whatever one does wrong is reported by name, and everything else goes on."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import bench_core
from bench_core import hookspecs
from bench_core.errors import PluginError, UsageError
from bench_core.plugins import load_registry
from bench_core.run.run import run_suite
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.suites import TINY_PLUGIN, parsed_suite, tiny_registry, trained_store, write_plugin

HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("bench_"))
SHIPPED = {
    "fixed",
    "random",
    "stability",
    "margin",
    "seenn-i",
    "seenn-ii",
    "dt-snn",
    "dynamic-confidence",
    "topk-cutoff",
}

STRATEGY = """
class {name}(ScoreStrategy):
    name = "{label}"
    reference = "the tests"

    def score(self, evidence):
        return evidence.total.amax(1)
"""
HOOK = """
@hookimpl
def bench_exit_strategies():
    return [{items}]
"""


def strategy(label="mine", name="Mine"):
    return STRATEGY.format(name=name, label=label)


def hook(items="Mine()"):
    return HOOK.format(items=items)


def loaded(tmp_path, source, name="suspect"):
    """The registry with a plugin of this source, and that plugin's record."""
    registry = load_registry([write_plugin(tmp_path / f"{name}.py", source), TINY_PLUGIN])
    return registry, next(record for record in registry.plugins if record.name == name)


def check_the_others(registry):
    assert set(registry.strategies) >= SHIPPED
    assert "tiny-conv" in registry.models
    assert [record.name for record in registry.plugins if record.problem] in ([], ["suspect"])


def test_a_sound_plugin_is_in_the_registry_with_its_owner(tmp_path):
    registry, record = loaded(tmp_path, strategy() + hook())
    assert record.problem == ""
    assert record.provides == ["strategy: mine"]
    assert registry.owners["strategies", "mine"] is record
    assert registry.find("strategies", "mine").name == "mine"
    assert registry.problems == []
    check_the_others(registry)


BROKEN = {
    "fails to import": ("raise RuntimeError('out of glue')", "RuntimeError: out of glue"),
    "no such module": ("import absent_module", "No module named 'absent_module'"),
    "does not parse": ("def broken(:\n    pass", "SyntaxError"),
    "leaves while imported": ("raise SystemExit(3)", "called sys.exit(3)"),
    "raises in a hook": (hook("1 / 0"), "ZeroDivisionError"),
    "raises in a lazy list": (hook("").replace("return []", "yield 1 / 0"), "ZeroDivisionError"),
    "leaves in a hook": ("import sys\n" + hook("sys.exit()"), "called sys.exit(None)"),
    "gives None": (hook().replace("return [Mine()]", "pass"), "bench_exit_strategies must return a list, not NoneType"),
    "gives one object": (strategy() + hook().replace("[Mine()]", "Mine()"), "must return a list, not Mine"),
    "gives text": (hook().replace("[Mine()]", "'mine'"), "must return a list, not str"),
    "gives classes": (strategy() + hook("Mine"), "bench_exit_strategies returned <class"),
    "gives numbers": (hook("1.5"), "bench_exit_strategies returned 1.5"),
    "gives another kind": (
        (strategy() + hook()).replace("bench_exit_strategies", "bench_models"),
        "Model object",
    ),
    "abstract": ("class Mine(ScoreStrategy):\n    name = 'mine'\n" + hook(), "abstract"),
    "no name": (strategy().replace("    name =", "    label =") + hook(), "name None"),
    "name of a number": (strategy().replace('"mine"', "7") + hook(), "name 7"),
    "empty name": (strategy("") + hook(), "name ''"),
    "long name": (strategy("x" * 65) + hook(), "no short text"),
    "name of two lines": (strategy("a\\nb") + hook(), "no short text"),
    "no family knob": (
        "class Mine(ExitStrategy):\n    name = reference = 'mine'\n    def fit(self, calibration): ...\n" + hook(),
        "family_knob",
    ),
    "takes a taken name": (strategy("seenn-i") + hook(), "'seenn-i' is taken by plugin seenn_i (exitbench)"),
    "takes its own name twice": (strategy() + hook("Mine(), Mine()"), "'mine' is taken by plugin suspect"),
    "unknown hook": (hook().replace("bench_exit_strategies", "bench_exit_stategies"), "bench_exit_stategies"),
    "hook with an argument": (strategy() + hook().replace("strategies()", "strategies(suite)"), "suite"),
    "no mark": (strategy() + hook().replace("@hookimpl\n", ""), "registers nothing; is @hookimpl missing?"),
    "nothing at all": ("", "registers nothing; is @hookimpl missing?"),
    "several lines": ("raise ValueError('first\\nsecond')", "first"),
}


@pytest.mark.parametrize(("source", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_plugin_is_a_problem_in_one_line_and_the_others_go_on(tmp_path, source, words):
    try:
        registry, record = loaded(tmp_path, source)
    except SystemExit:
        pytest.fail("a plugin ended the program")
    assert words in record.problem
    assert "\n" not in record.problem
    assert [error.plugin for error in registry.problems] == ["suspect"]
    check_the_others(registry)


def test_an_unknown_hook_suggests_the_nearest(tmp_path):
    _, record = loaded(tmp_path, hook().replace("bench_exit_strategies", "bench_exit_stategies"))
    assert "did you mean 'bench_exit_strategies'" in record.problem


def test_a_name_clash_names_both_plugins_and_the_first_keeps_it(tmp_path):
    first = write_plugin(tmp_path / "first.py", strategy("contested") + hook())
    second = write_plugin(
        tmp_path / "second.py", strategy("contested") + strategy("free", "Free") + hook("Mine(), Free()")
    )
    registry = load_registry([first, second])
    (problem,) = registry.problems
    assert "first" in str(problem)
    assert "second" in str(problem)
    assert "'contested'" in str(problem)
    assert registry.owners["strategies", "contested"].name == "first"
    assert registry.owners["strategies", "free"].name == "second"


def test_the_same_name_may_be_used_for_another_kind(tmp_path):
    source = (
        "class Priced(CostModel):\n    name = 'seenn-i'\n    reference = ''\n    def energy(self, counts): ...\n"
        "@hookimpl\ndef bench_cost_models():\n    return [Priced()]\n"
    )
    registry, record = loaded(tmp_path, source)
    assert record.problem == ""
    assert "seenn-i" in registry.cost_models


@pytest.mark.parametrize("case", ["fails to import", "raises in a hook", "gives None", "takes a taken name"])
def test_strict_mode_raises_what_went_wrong(tmp_path, monkeypatch, case):
    monkeypatch.setenv("EXITBENCH_STRICT_PLUGINS", "1")
    source, words = BROKEN[case][0], BROKEN[case][1].split(": ")[-1].replace("ZeroDivisionError", "division by zero")
    with pytest.raises((PluginError, RuntimeError, ZeroDivisionError), match=re.escape(words)):
        loaded(tmp_path, source)


def test_a_plugin_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"absent\.py: no such file"):
        load_registry([tmp_path / "absent.py"])


@pytest.mark.parametrize("name", ["notes.txt", "notes"])
def test_a_plugin_file_of_another_kind_is_refused(tmp_path, name):
    (tmp_path / name).write_text("hello")
    with pytest.raises(UsageError, match=rf"--plugin .*{re.escape(name)}: not a Python file; .*\.py"):
        load_registry([tmp_path / name])


def test_a_hook_that_returns_an_empty_list_is_no_problem(tmp_path):
    registry, record = loaded(tmp_path, hook(""))
    assert (record.provides, record.problem, registry.problems) == ([], "", [])


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path):
    registry = load_registry()
    for kind, name, nearest in (
        ("strategies", "senn-i", "seenn-i"),
        ("strategies", "SEENN-I", "'seenn-i'"),
        ("models", "Small-Conv", "'small-conv'"),
        ("models", "small-con", "small-conv"),
        ("datasets", "fashion", ""),
        ("cost_models", "cmos", ""),
        ("converters", "qcf", "qcfs"),
        ("regularizers", "any", ""),
    ):
        with pytest.raises(UsageError, match=f"exitbench list {kind.replace('_', '-')}") as refused:
            registry.find(kind, name)
        assert repr(name) in str(refused.value)
        assert nearest in str(refused.value)


# --- strategies that fail while they are compared --------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path_factory, tmp_path):
    """A store of this test's own with trained networks and nothing else."""
    return trained_store(tmp_path_factory, tmp_path / "store")


FAILING = {
    "crashes in fit": (
        "    def learn(self, calibration):\n        raise RuntimeError('no fit')\n",
        "failed: RuntimeError: no fit",
    ),
    "scores NaN": (
        "    def score(self, evidence):\n        return evidence.total.amax(1) * float('nan')\n",
        "score is NaN at timestep 1",
    ),
    "scores a wrong shape": (
        "    def score(self, evidence):\n        return evidence.total\n",
        "score must be a tensor [",
    ),
    "scores a list": (
        "    def score(self, evidence):\n        return evidence.total.amax(1).tolist()\n",
        "score must be a tensor [",
    ),
    "looks at inputs undeclared": (
        "    def score(self, evidence):\n        return evidence.inputs.flatten(1).sum(1)\n",
        "Requirement.INPUTS",
    ),
    "crashes in overhead": (
        "    def overhead(self, classes):\n        raise RuntimeError('priceless')\n",
        "priceless",
    ),
    "crashes live": (  # replay starts with all samples, a live run at batch 1 with one
        "    def score(self, evidence):\n"
        "        if evidence.t == 1 and len(evidence.total) == 1:\n"
        "            raise RuntimeError('alone')\n"
        "        return evidence.total.amax(1)\n",
        "alone",
    ),
}


@pytest.mark.parametrize(("body", "words"), FAILING.values(), ids=FAILING.keys())
def test_a_strategy_that_fails_leaves_the_other_rows_complete(tmp_path, trained, capfd, body, words):
    plugin = write_plugin(tmp_path / "suspect.py", strategy() + body + hook())
    suite = parsed_suite(strategies=[{"name": "mine"}, {"name": "fixed"}, {"name": "seenn-i"}])
    board = run_suite(suite, registry=tiny_registry(plugin), output=tmp_path / "board", store=trained)
    others = board.rows[board.rows["strategy"] != "mine"]
    assert len(others) == 4
    assert (others["status"] == "ok").all()
    assert others[["accuracy", "average_exit_timestep", "energy_cmos45_joules"]].notna().all(axis=None)
    assert (tmp_path / "board" / "rows.csv").is_file()
    mine = board.rows[board.rows["strategy"] == "mine"]
    assert len(mine) == 2
    failed = mine["status"].str.startswith("failed: ")
    assert words in " ".join(mine["status"]) or words in capfd.readouterr().err
    assert failed.all() == bool(board.failures - len(board.problems))
    assert mine.loc[failed, ["accuracy", "rank"]].isna().all(axis=None)


@pytest.mark.parametrize("case", ["crashes in fit", "scores NaN", "scores a wrong shape", "looks at inputs undeclared"])
def test_a_failed_strategy_has_no_figures_and_says_why(tmp_path, trained, case):
    body, words = FAILING[case]
    plugin = write_plugin(tmp_path / "suspect.py", strategy() + body + hook())
    board = run_suite(
        parsed_suite(strategies=[{"name": "mine"}]),
        registry=tiny_registry(plugin),
        output=tmp_path / "board",
        store=trained,
    )
    assert board.failures == 2
    for row in board.rows.to_dict("records"):
        assert row["status"].startswith("failed: ")
        assert words in row["status"]
    figures = [
        "rank",
        "value",
        "samples",
        "accuracy",
        "average_exit_timestep",
        "select_accuracy",
        "energy_cmos45_joules",
    ]
    assert board.rows[figures].isna().all(axis=None)


def test_a_cost_model_that_fails_leaves_the_accuracies(tmp_path, trained):
    source = (
        "class Priced(CostModel):\n    name = 'priced'\n    reference = ''\n"
        "    def energy(self, counts):\n        raise RuntimeError('sold out')\n"
        "@hookimpl\ndef bench_cost_models():\n    return [Priced()]\n"
    )
    board = run_suite(
        parsed_suite(cost_models=["cmos45", "priced"]),
        registry=tiny_registry(write_plugin(tmp_path / "suspect.py", source)),
        output=tmp_path / "board",
        store=trained,
    )
    assert board.rows["accuracy"].notna().all()
    assert board.rows["energy_cmos45_joules"].notna().all()
    assert board.rows["energy_priced_joules"].isna().all()


# --- the hooks themselves --------------------------------------------------------------------------------------------

ITEMS = {
    "bench_datasets": ("datasets", "from tests.helpers.tiny_plugin import TinyShapes\nclass Mine(TinyShapes):"),
    "bench_models": ("models", "from tests.helpers.tiny_plugin import TinyConv\nclass Mine(TinyConv):"),
    "bench_regularizers": (
        "regularizers",
        "class Mine(Regularizer):\n    def loss(self, batch):\n        return batch.logits.sum()\n",
    ),
    "bench_converters": (
        "converters",
        "class Mine(Converter):\n    activation = None\n    def convert(self, ann, inputs):\n        return ann\n",
    ),
    "bench_exit_strategies": (
        "strategies",
        "class Mine(ScoreStrategy):\n    def score(self, evidence):\n        return evidence.total.amax(1)\n",
    ),
    "bench_cost_models": (
        "cost_models",
        "class Mine(CostModel):\n    def energy(self, counts):\n        return counts.timesteps * 1.0\n",
    ),
}


def test_every_hook_has_a_test_here():
    assert sorted(ITEMS) == HOOKS


@pytest.mark.parametrize(("name", "kind", "source"), [(hook, *item) for hook, item in ITEMS.items()], ids=ITEMS)
def test_what_a_hook_returns_is_in_the_registry(tmp_path, name, kind, source):
    body = f"{source}\n    name = reference = 'mine'\n@hookimpl\ndef {name}():\n    return [Mine()]\n"
    registry, record = loaded(tmp_path, body)
    assert record.problem == ""
    assert getattr(registry, kind)["mine"].name == "mine"
    assert registry.find(kind, "mine") is getattr(registry, kind)["mine"]


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented_and_takes_no_argument(name):
    function = getattr(hookspecs, name)
    text = inspect.getdoc(function)
    assert text.endswith(".")
    assert "Returns objects derived from" in text
    assert inspect.signature(function).parameters == {}


@pytest.mark.parametrize("name", HOOKS)
def test_the_base_class_that_a_hook_promises_is_public(name):
    (returned,) = re.findall(r"Iterable\[(\w+)\]", inspect.signature(getattr(hookspecs, name)).return_annotation)
    assert returned in bench_core.__all__
    assert inspect.getdoc(getattr(bench_core, returned))


# --- the harness knows no method by name -----------------------------------------------------------------------------

CORE = Path(bench_core.__file__).parent
METHODS = (
    *("seenn-i", "seenn_i", "seenn-ii", "seenn_ii", "seenn-ii-joint", "dt-snn", "dt_snn"),
    *("topk-cutoff", "topk_cutoff", "topk"),
    *("dynamic-confidence", "dynamic_confidence", "spikecp", "qcfs", "bench_plugins"),
    *("rcs", "rcs-ann", "rcs-snn", "max-norm", "percentile-norm", "threshold-balancing", "normalized_conversion"),
)


def code_of(path):
    """A module's code without comments and docstrings, in lower case."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(module):
        if isinstance(getattr(node, "body", None), list):
            node.body = [line for line in node.body if not is_text(line)] or [ast.Pass()]
    return ast.unparse(module).lower()


def is_text(line):
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_the_harness_names_no_shipped_method(path):
    assert [name for name in METHODS if re.search(rf"\b{name}\b", code_of(path))] == []


def test_the_names_that_are_looked_for_are_those_that_are_shipped():
    registry = load_registry()
    methods = {*registry.strategies, *registry.converters, *registry.regularizers}
    assert methods - {"fixed", "random", "stability", "margin"} <= set(METHODS)
