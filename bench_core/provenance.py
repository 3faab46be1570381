"""What produced a board: code, plugins, the command. No time, path or host name."""

import hashlib
import sys
from collections.abc import Iterable
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from bench_core.columns import SCHEMA
from bench_core.digests import file_digest
from bench_core.environment import environment
from bench_core.plugin_manager import Registry
from bench_core.suite import Suite

__all__ = ["code_digest", "manifest"]

_VERSIONED = frozenset({"torch", "numpy", "scipy"}) | sys.stdlib_module_names  # stand in the environment


@cache
def code_digest(made: type) -> str | None:
    """sha256 of the Python files that a class and its bases come from.

    Of a module in a package that is the whole package, of a single file the files of its folder and of the folders in
    that, since it may import them; and always this package. Code that they import from elsewhere is not covered. It is
    taken once for a class: ``plan`` asks for it when plugins have just been loaded.

    Returns:
        None for a class that isn't found by its name, or whose files can't be read.
    """
    packages, folders = {Path(__file__).parent}, set()
    for base in made.__mro__:
        module = sys.modules.get(base.__module__)
        top = base.__module__.partition(".")[0]
        if top in _VERSIONED:
            continue
        try:
            if attrgetter(base.__qualname__)(module) is not base:
                return None
        except AttributeError:
            return None
        owner = sys.modules.get(top, module)
        if inside := getattr(owner, "__path__", None):
            packages.update(map(Path, inside))
        elif file := getattr(owner, "__file__", None):
            folders.add(Path(file).parent)
        else:
            return None
    try:
        digests = [_package_digest(package) for package in packages]
        digests += [_files_digest(folder, (*folder.glob("*.py"), *folder.glob("*/*.py"))) for folder in folders]
    except OSError:
        return None
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()  # wherever they are


@cache
def _package_digest(package: Path) -> str:
    return _files_digest(package, package.rglob("*.py"))


def _files_digest(root: Path, files: Iterable[Path]) -> str:
    """sha256 over names and contents of files below ``root``."""
    found = sorted(file for file in files if file.is_file())
    lines = [f"{file.relative_to(root).as_posix()} {file_digest(file)}\n" for file in found]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def manifest(suite: Suite, registry: Registry, workloads: dict[str, dict[str, Any]], command: str) -> dict[str, Any]:
    """The record that stands beside a board."""
    return {
        "schema": SCHEMA,
        "suite": suite.model_dump(by_alias=True),
        "command": command,
        "environment": environment(),
        "plugins": [
            {"name": plugin.name, "distribution": plugin.distribution, "version": plugin.version}
            for plugin in registry.plugins
            if not plugin.problem
        ],
        "workloads": workloads,
    }
