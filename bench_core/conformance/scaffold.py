"""Scaffold of a plugin package: the output of ``exitbench plugin new NAME``."""

import importlib.metadata
import importlib.util
import keyword
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from string import Template

from bench_core.errors import StoreError, UsageError
from bench_core.exits.strategy import ExitStrategy
from bench_core.plugins import Registry

__all__ = ["new_plugin", "render"]

TEMPLATES = Path(__file__).parent / "template"
LONGEST_NAME = 64
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def new_plugin(name: str, registry: Registry, folder: Path) -> Path:
    """Write the package ``folder``/``name`` with a strategy called ``name``, completely or not at all.

    Raises:
        UsageError: the name is not valid for a package or taken, or the folder exists.
        StoreError: the package cannot be written.
    """
    _refuse_name(name, registry.strategies)
    place = folder / name
    try:
        place.mkdir()
    except FileExistsError:
        raise UsageError(f"{place}: is there already; choose another name, or remove it") from None
    except OSError as error:
        raise StoreError(f"{place}: can't be written ({error}); choose another folder") from error
    try:
        for path, text in render(name, distribution=name, module=_module(name)).items():
            (place / path).parent.mkdir(exist_ok=True)
            (place / path).write_text(text, encoding="utf-8")
    except BaseException as error:  # including Ctrl-C: leave nothing incomplete
        shutil.rmtree(place, ignore_errors=True)
        if isinstance(error, OSError):
            raise StoreError(f"{place}: can't be written ({error}); free space or choose another folder") from error
        raise
    return place


def render(strategy: str, *, distribution: str, module: str) -> dict[str, str]:
    """Return the files of a plugin package: text by path inside it."""
    names = {
        "strategy": strategy,
        "distribution": distribution,
        "module": module,
        "entry_point": _module(strategy),
        "class_name": "".join(word.capitalize() for word in strategy.split("-")),
    }
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{module}/__init__.py": "package.py",
        f"tests/test_{_module(strategy)}.py": "tests.py",
    }
    return {
        path: Template((TEMPLATES / f"{source}.template").read_text(encoding="utf-8")).substitute(names)
        for path, source in files.items()
    }


def _refuse_name(name: str, strategies: Mapping[str, ExitStrategy]) -> None:
    if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise UsageError(
            f"plugin new {name!r:.80}: a name is lower-case letters, digits and single dashes, begins with a letter "
            f"and has at most {LONGEST_NAME} characters, such as my-exit"
        )
    if name in strategies:
        raise UsageError(f"plugin new {name}: a strategy is called so already; `exitbench list strategies` shows them")
    module = _module(name)
    if keyword.iskeyword(module) or module == "tests" or importlib.util.find_spec(module) is not None:
        raise UsageError(f"plugin new {name}: Python has another use for the name {module}; choose another")
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return
    raise UsageError(f"plugin new {name}: a package of that name is installed; choose another")


def _module(name: str) -> str:
    return name.replace("-", "_")
