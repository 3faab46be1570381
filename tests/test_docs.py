"""What the documents show is what the project does: board, plugin code, strategies, links, hooks."""

import re
from pathlib import Path

import pytest

from bench_core import hookspecs, load_registry
from bench_core.report.markdown import markdown
from bench_core.report.terminal import terminal
from bench_core.results import read_board
from bench_core.snn.normalization import NORMALIZATIONS
from bench_core.training.losses import LOSSES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
METHODS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
QUICK = ROOT / "results" / "quick"


def python_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_readme_shows_the_committed_board():
    shown = re.search(r"<!-- board:.*?-->\n\n```text\n(.*?)```\n\n<!-- /board -->", README, flags=re.DOTALL)
    assert shown is not None
    assert shown[1].rstrip() == terminal(read_board(QUICK), ["iso-accuracy:0.5"]).rstrip()


def test_the_committed_leaderboard_is_rendered_from_the_committed_rows():
    assert (QUICK / "leaderboard.md").read_text(encoding="utf-8") == markdown(read_board(QUICK))


def test_the_board_fits_a_hundred_columns():
    widest = max(terminal(read_board(QUICK), ["iso-accuracy:0.5"]).splitlines(), key=len)
    assert len(widest) <= 100, widest


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_the_plugin_shown_is_the_example_and_has_fifteen_lines(text):
    shown = next(block for block in python_blocks(text) if "hookimpl" in block)
    example = (ROOT / "plugins" / "example" / "exitbench_example" / "__init__.py").read_text(encoding="utf-8")
    assert shown in example
    assert len([line for line in shown.splitlines() if line.strip()]) <= 15


def test_every_shipped_strategy_stands_in_the_readme():
    registry = load_registry()
    shipped = [n for n in registry.strategies if registry.owners["strategies", n].distribution == "exitbench"]
    assert [name for name in shipped if f"`{name}`" not in README] == []


def test_every_hook_is_documented():
    hooks = [name for name in dir(hookspecs) if name.startswith("bench_")]
    assert len(hooks) == 6
    for name in hooks:
        assert "Returns objects derived from" in getattr(hookspecs, name).__doc__


def shipped(kind):
    registry = load_registry()
    return [n for n in getattr(registry, kind) if registry.owners[kind, n].distribution == "exitbench"]


@pytest.mark.parametrize("kind", ["strategies", "converters", "regularizers"])
def test_every_shipped_method_has_a_row_in_the_docs(kind):
    rows = [line for line in METHODS.splitlines() if line.startswith("|")]
    assert shipped(kind)
    assert [n for n in shipped(kind) if not any(f"`{n}`" in row or f'name = "{n}"' in row for row in rows)] == []


def test_every_loss_and_normalisation_has_a_row_in_the_docs():
    names = [f'loss = "{name}"' for name in LOSSES] + [f'normalization = "{name}"' for name in NORMALIZATIONS]
    assert [name for name in names if name not in METHODS] == []


def test_every_strategy_says_which_knob_and_paper_it_has_in_the_docs():
    table = METHODS.split("## Exit strategies")[1].split("###")[0]
    for name in shipped("strategies"):
        strategy = load_registry().strategies[name]
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"`{strategy.family_knob.name}`" in row
        assert re.sub(r":.*", "", strategy.reference) in row


def test_every_link_to_a_file_leads_somewhere():
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README + CONTRIBUTING)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readmes_own_logits_make_a_trace(tmp_path, monkeypatch):
    import torch

    block = next(block for block in python_blocks(README) if "save_trace" in block)
    monkeypatch.chdir(tmp_path)
    exec(block, {"logits": torch.randn(5, 3, 4), "labels": torch.randint(0, 4, (5,))})
    assert (tmp_path / "test.safetensors").is_file()
