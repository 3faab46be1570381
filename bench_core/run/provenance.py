"""Provenance of a board: code, plugins and the command, but no time, path or host name."""

import sys
from functools import cache
from operator import attrgetter
from typing import Any

from bench_core.board.schema import SCHEMA
from bench_core.isolation.plugin_code import code_of, code_of_class, shipped_packages
from bench_core.plugins import Registry
from bench_core.run.suite import Suite
from bench_core.util.digests import json_digest
from bench_core.util.environment import environment

__all__ = ["code_digest", "manifest"]


@cache
def code_digest(made: type) -> str | None:
    """Return the sha256 of the Python files that a class and its bases come from.

    For a module in a package this covers the whole package; for a single file, the files of its folder and the folders
    in it, since it may import them; and always this package. Code imported from elsewhere is not covered. Plugins' code
    is digested as loaded, other code as it is when ``plan`` asks for it.

    Returns:
        The digest, or None if the class cannot be found by its name or its files cannot be read.
    """
    found = [code_of(__name__), *code_of_class(made)]
    for base in made.__mro__:
        top = base.__module__.partition(".")[0]
        if top in shipped_packages():
            found.append(code_of(top))
        if top in sys.stdlib_module_names:
            continue
        try:
            named = attrgetter(base.__qualname__)(sys.modules.get(base.__module__)) is base
        except AttributeError:
            named = False
        if not named:
            return None
    if any(code is None or code.token for code in found):
        return None
    return json_digest(sorted({code.digest for code in found if code is not None}))


def manifest(suite: Suite, registry: Registry, workloads: dict[str, dict[str, Any]], command: str) -> dict[str, Any]:
    """Return the manifest of a board."""
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
