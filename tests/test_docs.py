"""What the documents show is what the project does: board, plugin code, strategies, links, hooks."""

import re
from pathlib import Path

import pytest

from bench_core import hookspecs, load_registry
from bench_core.report.markdown import markdown
from bench_core.report.terminal import terminal
from bench_core.results import read_board

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
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
