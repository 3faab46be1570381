"""What import-linter's contracts (pyproject.toml) can't say of imports: circles in packages, names, what is heavy."""

import ast
import sys
from pathlib import Path

import bench_plugins
import pytest

import bench_core

ROOT = Path(bench_core.__file__).parent.parent
CORE = ROOT / "bench_core"
DOCS = Path(__file__).parent.parent / "docs"
PLUGINS = Path(bench_plugins.__file__).parent  # beside bench_core where it is installed, else in plugins/


def name_of(path):
    parts = path.relative_to(CORE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


CORE_FILES = sorted(CORE.rglob("*.py"))
PLUGIN_FILES = sorted(PLUGINS.rglob("*.py"))
MODULES = {name_of(path): path for path in CORE_FILES}
del MODULES[""]  # the public names, imported when used


def imports(path, *, lazy=True):
    """(line, dotted name) of each import of our own; ``lazy`` includes those inside functions. Types are no imports."""
    found = []

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.FunctionDef) and not lazy:
            return
        if isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the absolute name"
            found.extend((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def core_imports(path, *, lazy=True):
    """(line, module of bench_core) of each import, by the longest name that is a module."""
    for line, dotted in imports(path, lazy=lazy):
        if dotted.split(".")[0] != "bench_core":
            continue
        name = dotted.removeprefix("bench_core").strip(".")
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        if name:
            yield line, name


def test_no_two_modules_import_each_other():
    graph = {name: {found for _, found in core_imports(path, lazy=False)} - {name} for name, path in MODULES.items()}
    finished, path = set(), []

    def follow(name):
        if name in path:
            pytest.fail(" -> ".join([*path[path.index(name) :], name]))
        if name not in finished:
            path.append(name)
            for found in sorted(graph[name]):
                follow(found)
            finished.add(path.pop())

    for name in graph:
        follow(name)


@pytest.mark.parametrize("path", CORE_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_harness_goes_to_its_modules_and_not_to_the_public_names(path):
    public = {f"bench_core.{name}" for name in bench_core.__all__} - {"bench_core.hookimpl", "bench_core.__version__"}
    assert [found for found in imports(path) if found[1] in public] == []


def test_shipped_plugins_use_public_names_and_those_for_authors_are_used_or_documented():
    used = {dotted for path in PLUGIN_FILES for _, dotted in imports(path) if dotted.split(".")[0] == "bench_core"}
    public = {f"bench_core.{name}" for name in bench_core.__all__}
    assert used <= public
    documents = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "plugins.md", DOCS / "networks.md"))
    unused = [name for name in bench_core.FOR_AUTHORS if f"bench_core.{name}" not in used and name not in documents]
    assert unused == []


@pytest.mark.parametrize("library", ["tonic", "pynvml", "distributed", "snntorch", "spikingjelly"])
def test_an_optional_library_is_imported_lazily_and_in_one_file(library):
    paths = [*CORE_FILES, *PLUGIN_FILES]
    users = [p for p in paths if any(dotted.split(".")[0] == library for _, dotted in imports(p))]
    eager = [p for p in paths if any(dotted.split(".")[0] == library for _, dotted in imports(p, lazy=False))]
    assert eager == []
    assert len(users) <= 1


def test_the_command_line_and_the_package_import_nothing_heavy():
    light = {*sys.stdlib_module_names, "bench_core", "typer", "pluggy"}
    commands = sorted((CORE / "cli").glob("*.py"))
    assert len(commands) > 5
    for path in (CORE / "__init__.py", CORE / "__main__.py", CORE / "errors.py", *commands):
        for line, dotted in imports(path, lazy=False):
            assert dotted.split(".")[0] in light, f"{path.name}, line {line}: {dotted}"
    for path in commands:
        imported = {name for _, name in core_imports(path, lazy=False)}
        assert all(name in ("errors", "util.version") or name.split(".")[0] == "cli" for name in imported), path.name


@pytest.mark.parametrize("path", [*CORE_FILES, *PLUGIN_FILES], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_in_its_first_line_what_it_is_for(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text
    assert len(text.splitlines()[0]) > 20
