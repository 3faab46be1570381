"""The documentation site, the picture, and the versions that are promised: made from what the project is."""

import importlib.util
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
import yaml

from bench_core.cli import app
from bench_core.run.suite import load_suite

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def script(name):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages():
    return script("site_pages")


@pytest.fixture(scope="module")
def command_line(pages):
    return pages.command_line()


def sources(pages):
    """Every page of the site: name and markdown as it is shown."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")}
    texts |= {name: pages.page_source(name) for name in pages.GENERATED if name != "commands.md"}
    return {name: pages.standing_alone(text) for name, text in texts.items()}


def commands(command=None, words=("exitbench",)):
    """(words, command) of every command and group."""
    command = command or typer.main.get_command(app)
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


def test_every_page_is_in_the_navigation_once_and_every_entry_is_a_page(pages):
    def listed(part):
        return [part] if isinstance(part, str) else [page for entry in part for page in listed(*entry.values())]

    entries = listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(entries) == sorted({path.name for path in DOCS.glob("*.md")} | pages.GENERATED.keys())


def test_the_page_of_suite_files_is_what_suites_are_checked_with(tmp_path):
    reference = script("suite_reference")
    assert reference.PLACE.read_text(encoding="utf-8") == reference.reference()
    (tmp_path / "mine.toml").write_text(reference.EXAMPLE)
    assert [workload.name for workload in load_suite(str(tmp_path / "mine.toml")).workloads] == ["direct", "converted"]


def test_every_command_and_option_is_on_the_page_of_commands(command_line):
    parts = re.split(r"^#+ `(exitbench.*)`$", command_line, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    found = {" ".join(words): command for words, command in commands() if len(words) > 1}
    assert sections.keys() == found.keys()
    for name, command in found.items():
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        assert [option for option in options if f"`{option}" not in sections[name]] == [], name
    assert len(found) > 20


def test_no_page_links_to_what_is_no_page(pages):
    """mkdocs checks the same, and anchors too; this is for who changes a link and doesn't build the site."""
    texts = sources(pages)
    for name, text in texts.items():
        targets = [found["target"] for found in pages._LINK.finditer(re.sub(r"```.*?```", "", text, flags=re.DOTALL))]
        files = [target.partition("#")[0] for target in targets if "://" not in target and not target.startswith("#")]
        assert [file for file in files if file not in (*texts, "commands.md") and not (DOCS / file).exists()] == [], (
            name
        )


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("[a](../README.md#b-c)", "[a](index.md#b-c)"),
        ("[a](../CHANGELOG.md)", "[a](changelog.md)"),
        ("[ledger](../bench_core/recording/ledger.py)", "ledger (`bench_core/recording/ledger.py`)"),
        ("[a](costs.md#b) [c](https://d.org/e)", "[a](costs.md#b) [c](https://d.org/e)"),
    ],
)
def test_links_lead_to_pages_or_become_names(pages, source, shown):
    assert pages.standing_alone(source) == shown


def test_the_site_asks_nobody_for_anything():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert settings["theme"]["font"] is False
    assert not [
        value for name in ("extra_css", "extra_javascript") for value in settings.get(name, []) if "//" in value
    ]


def test_the_picture_is_drawn_from_the_committed_board():
    pinned = re.search(r"^matplotlib==(.*)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)[1]
    if version("matplotlib") != pinned:
        pytest.skip(f"other versions of matplotlib than {pinned} may draw otherwise")
    drawing = script("picture")
    assert drawing.PLACE.read_bytes() == drawing.picture()
    assert f"](docs/pictures/{drawing.PLACE.name})" in (ROOT / "README.md").read_text(encoding="utf-8")


def release(text):
    """A version as numbers, without zeros at its end."""
    numbers = [int(part) for part in text.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers


@pytest.mark.parametrize("extra", ["", "remote", "report"])
def test_the_lowest_versions_are_those_that_are_tested(extra):
    pins = dict(
        line.lower().split("==")
        for line in (ROOT / "constraints-lowest.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    wanted = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    bounds = dict(requirement.lower().split(">=") for requirement in wanted)
    assert {name: release(bound) for name, bound in bounds.items()} == {name: release(pins[name]) for name in bounds}
