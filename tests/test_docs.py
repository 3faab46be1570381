"""What the documents show is what the project does: board, plugin code, strategies, links, hooks."""

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest

import bench_core
from bench_core import hookspecs, load_registry
from bench_core.board.board import read_board
from bench_core.conformance import CHECKS
from bench_core.plugins import GROUP
from bench_core.report.markdown import markdown
from bench_core.report.terminal import terminal
from bench_core.run.run import run_suite
from bench_core.snn.neurons import NEURONS
from bench_core.snn.normalization import NORMALIZATIONS
from bench_core.snn.surrogate import SURROGATES
from bench_core.store.local import Store
from bench_core.training.losses import LOSSES
from tests import newcomer
from tests.helpers.suites import DIRECT, RECIPE, parsed_suite, tiny_registry

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
METHODS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
PLUGINS = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "plugins" / "example" / "exitbench_example" / "__init__.py"
HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("bench_"))
QUICK = ROOT / "results" / "quick"


def python_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_readme_and_the_results_show_the_committed_board():
    board = terminal(read_board(QUICK), ["iso-accuracy:0.5"]).rstrip()
    results = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    whole, rows = (
        re.search(r"<!-- board:.*?-->\n\n```text\n(.*?)\n```", text, re.DOTALL)[1] for text in (results, README)
    )
    assert whole.rstrip() == board
    lines = rows.splitlines()
    assert lines == [line.rstrip() for line in board.splitlines()[: len(lines)]]
    assert len(lines) >= 12


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 130


def test_the_committed_leaderboard_is_rendered_from_the_committed_rows():
    assert (QUICK / "leaderboard.md").read_text(encoding="utf-8") == markdown(read_board(QUICK))


def test_the_board_fits_a_hundred_columns():
    widest = max(terminal(read_board(QUICK), ["iso-accuracy:0.5"]).splitlines(), key=len)
    assert len(widest) <= 100, widest


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_the_plugin_shown_is_the_example_and_has_fifteen_lines(text):
    shown = next(block for block in python_blocks(text) if "hookimpl" in block)
    assert shown in EXAMPLE.read_text(encoding="utf-8")
    assert len([line for line in shown.splitlines() if line.strip()]) <= 15


def test_every_shipped_strategy_stands_in_the_readme():
    registry = load_registry()
    shipped = [n for n in registry.strategies if registry.owners["strategies", n].distribution == "exitbench"]
    assert [name for name in shipped if f"`{name}`" not in README] == []


# --- docs/plugins.md -------------------------------------------------------------------------------------------------


def section(hook):
    """What stands in docs/plugins.md under a hook's heading."""
    parts = re.split(r"^## ", PLUGINS, flags=re.MULTILINE)
    (found,) = [part for part in parts if part.startswith(f"`{hook}`\n")]
    return found


def shown_classes():
    """Name and syntax tree of every class that docs/plugins.md describes: code blocks without an import."""
    blocks = [block for block in python_blocks(PLUGINS) if "import" not in block]
    trees = [ast.parse(block) for block in blocks]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def methods(node):
    """Name to signature of a class's public methods, annotations and defaults included."""
    functions = [item for item in node.body if isinstance(item, ast.FunctionDef) and not item.name.startswith("_")]
    return {item.name: f"({ast.unparse(item.args)}) -> {ast.unparse(item.returns)}" for item in functions}


def attributes(node):
    """Names of a class's public attributes."""
    named = [item.target.id for item in node.body if isinstance(item, ast.AnnAssign)]
    return [name for name in named if not name.startswith("_")]


def written(name):
    """The syntax tree of a public class as it stands in the code."""
    return ast.parse(textwrap.dedent(inspect.getsource(getattr(bench_core, name)))).body[0]


def base_of(hook):
    """Name of the class that a hook promises."""
    return re.search(r"Iterable\[(\w+)\]", inspect.signature(getattr(hookspecs, hook)).return_annotation)[1]


def test_there_are_six_hooks():
    assert len(HOOKS) == 6


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_its_arguments(hook):
    signature = inspect.signature(getattr(hookspecs, hook))
    assert f"def {hook}{signature}: ...".replace("'", "") in section(hook)
    assert f"class {base_of(hook)}" in section(hook)
    assert "Returns objects derived from" in getattr(hookspecs, hook).__doc__


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_an_example_that_works(hook, tmp_path):
    (example,) = [block for block in python_blocks(section(hook)) if "@hookimpl" in block]
    (tmp_path / "shown.py").write_text(example)
    registry = load_registry([tmp_path / "shown.py"])
    (record,) = [plugin for plugin in registry.plugins if plugin.name == "shown"]
    assert record.problem == ""
    assert len(record.provides) == 1
    assert f"def {hook}()" in example


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_named_by_a_test(hook):
    tests = [path for path in (ROOT / "tests").glob("test_*.py") if path.name != "test_docs.py"]
    assert any(f"def {hook}" in path.read_text(encoding="utf-8") or f'"{hook}"' in path.read_text() for path in tests)


@pytest.mark.parametrize("name", shown_classes())
def test_a_documented_class_has_the_attributes_and_signatures_of_the_code(name):
    shown, real = shown_classes()[name], written(name)
    assert {n: methods(shown).get(n) for n in methods(real)} == methods(real)
    assert [n for n in attributes(real) if n not in attributes(shown)] == []
    offered = getattr(bench_core, name)
    inherited = {a for base in offered.__mro__ for a in getattr(base, "__annotations__", {})}
    assert [n for n in [*methods(shown), *attributes(shown)] if n not in inherited and not hasattr(offered, n)] == []


@pytest.mark.parametrize("hook", HOOKS)
def test_what_a_base_class_demands_is_marked_as_a_must(hook):
    base = getattr(bench_core, base_of(hook))
    lines = section(hook).splitlines()
    for name in base.__abstractmethods__:
        assert any(line.startswith(f"    def {name}(") and "# must" in line for line in lines), name


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_every_check_of_the_conformance_kit_is_documented(check):
    assert f"| `{check.name}` | {check.rule.replace('``', '`')} |\n" in PLUGINS


def test_the_ways_into_the_harness_are_documented():
    assert f"[project.entry-points.{GROUP}]" in PLUGINS
    assert "--plugin FILE.py" in PLUGINS
    assert "EXITBENCH_STRICT_PLUGINS=1" in PLUGINS
    assert "exitbench plugin new" in PLUGINS
    assert "exitbench plugin check" in PLUGINS
    assert "--exit-strategy" in PLUGINS


def shipped(kind):
    registry = load_registry()
    return [n for n in getattr(registry, kind) if registry.owners[kind, n].distribution == "exitbench"]


@pytest.mark.parametrize("kind", ["strategies", "converters", "regularizers", "models"])
def test_every_shipped_method_has_a_row_in_the_docs(kind):
    rows = [line for line in METHODS.splitlines() if line.startswith("|")]
    assert shipped(kind)
    assert [n for n in shipped(kind) if not any(f"`{n}`" in row or f'name = "{n}"' in row for row in rows)] == []


def test_every_loss_and_normalisation_has_a_row_in_the_docs():
    names = [f'loss = "{name}"' for name in LOSSES] + [f'normalization = "{name}"' for name in NORMALIZATIONS]
    names += [f'neuron = "{name}"' for name in NEURONS] + [f'surrogate = "{name}"' for name in SURROGATES]
    assert [name for name in names if name not in METHODS] == []


def test_every_strategy_says_which_knob_and_paper_it_has_in_the_docs():
    table = METHODS.split("## Exit strategies")[1].split("###")[0]
    for name in shipped("strategies"):
        strategy = load_registry().strategies[name]
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"`{strategy.family_knob.name}`" in row
        assert re.sub(r":.*", "", strategy.reference) in row


def test_every_link_to_a_file_leads_somewhere():
    results = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    for folder, text in ((ROOT, README + CONTRIBUTING), (ROOT / "results", results)):
        links = re.findall(r"\]\((?!https?://)([^)#]+)\)", text)
        assert links
        assert [link for link in links if not (folder / link).exists()] == []


def test_the_readmes_own_logits_make_a_trace(tmp_path, monkeypatch):
    import torch

    block = next(block for block in python_blocks(README) if "save_trace" in block)
    monkeypatch.chdir(tmp_path)
    exec(block, {"logits": torch.randn(5, 3, 4), "labels": torch.randint(0, 4, (5,))})
    assert (tmp_path / "test.safetensors").is_file()


def test_the_readmes_first_command_is_what_tox_runs():
    assert newcomer.first_commands() == [
        ["pip", "install", "-c", "constraints.txt", "."],
        ["exitbench", "run"],
    ]
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    assert "newcomer" in re.search(r"^env_list = (.*)$", tox, flags=re.MULTILINE)[1].split(", ")


# --- every plugin that is shown makes a board ------------------------------------------------------------------------

SHOWN = {
    f"{page.name}-{number}": block
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, block in enumerate(
        block for block in python_blocks(page.read_text(encoding="utf-8")) if "@hookimpl" in block
    )
}


def suite_around(registry, record):
    """A tiny suite that uses everything that a plugin provides."""
    provided = dict(text.split(": ") for text in record.provides)
    workload = {**DIRECT, "recipe": {**RECIPE, "epochs": 1}}
    workload |= {kind: name for kind, name in (("model", provided.get("model")),) if name}
    if (name := provided.get("data set")) is not None:
        workload |= {"dataset": name, "model": "small-conv"}
    if (name := provided.get("regularizer")) is not None:
        workload["recipe"] = {**workload["recipe"], "regularizer": {"name": name, "weight": 0.01}}
    if (name := provided.get("converter")) is not None:
        workload["conversion"] = {"converter": name}
    cost_models = ["cmos45", *([provided["cost model"]] if "cost model" in provided else [])]
    strategies = [{"name": name} for name in ("fixed", provided.get("strategy")) if name]
    return parsed_suite(workloads=[workload], cost_models=cost_models, strategies=strategies)


@pytest.mark.parametrize("name", SHOWN)
def test_a_plugin_that_is_shown_makes_a_board(name, tmp_path):
    (tmp_path / "shown.py").write_text(SHOWN[name])
    registry = tiny_registry(tmp_path / "shown.py")
    (record,) = [plugin for plugin in registry.plugins if plugin.name == "shown"]
    suite = suite_around(registry, record)
    board = run_suite(suite, registry=registry, output=tmp_path / "board", store=Store(tmp_path / "store"))
    assert board.problems == []
    assert set(board.rows["status"]) <= {"ok", "fallback: static T", "infeasible"}
    assert len(board.rows) == 2 * len(suite.strategies)
    assert read_board(tmp_path / "board").rows["status"].tolist() == board.rows["status"].tolist()


@pytest.mark.parametrize("name", [name for name, block in SHOWN.items() if "bench_exit_strategies" in block])
def test_a_strategy_that_is_shown_passes_the_kit(name, tmp_path, exitbench):
    (tmp_path / "shown.py").write_text(SHOWN[name])
    answer = exitbench("plugin", "check", tmp_path / "shown.py")
    assert answer.code == 0, answer.out
