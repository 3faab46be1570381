"""The plugins of a run: name, version and code as loaded. Workers compare them with theirs and reject a mismatch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench_core.errors import UsageError, one_line
from bench_core.isolation.plugin_code import LoadedCode, code_of, shipped_packages
from bench_core.plugins import PluginRecord, Registry
from bench_core.util.digests import json_digest

__all__ = ["described", "files_of", "outdated", "refuse_others"]

_FILE = "file"  # the version of a plugin that is a file
_SHOWN = 8  # digits of a digest
_loaded: dict[tuple[str, str], PluginRecord] = {}  # from the last registry made by a worker in this process


def described(registry: Registry) -> list[dict[str, str]]:
    """Return name, distribution, version and code digest of every plugin that could be loaded.

    The digest is of the code as it was loaded; for a file, ``distribution`` is its path.
    """
    return [_described(record) for record in registry.plugins if not record.problem]


def files_of(plugins: Sequence[Mapping[str, str]]) -> list[Path]:
    """Return the plugins that are files; raise UsageError for one that does not exist here."""
    paths = [Path(plugin["distribution"]) for plugin in plugins if plugin["version"] == _FILE]
    for path in paths:
        if not path.is_file():
            raise UsageError(f"plugin {path}: the worker has no such file; put it where all machines see it")
    return paths


def refuse_others(plugins: Sequence[Mapping[str, str]], registry: Registry) -> None:
    """Raise UsageError if this process lacks one of a run's plugins or has it with different code.

    Args:
        plugins: of the run, as returned by ``described``.
        registry: of this process.
    """
    _loaded.clear()
    ours = {_identity(_described(record)): record for record in registry.plugins}
    for plugin in plugins:
        record = ours.get(_identity(plugin))
        if record is None:
            raise UsageError(one_line(f"plugin {_shown(plugin)}: the worker lacks it; install it there too"))
        mine = _described(record)
        if record.problem:
            raise UsageError(one_line(f"plugin {_shown(plugin)}: the worker can't load it ({record.problem:.200})"))
        if mine != plugin:
            place = "is not the same file" if plugin["version"] == _FILE else f"is {_shown(mine)}"
            raise UsageError(
                one_line(f"plugin {_shown(plugin)}: on the worker it {place}; give both the same, then run it again")
            )
        _loaded[_identity(plugin)] = record


def outdated(plugins: Sequence[Mapping[str, str]]) -> str:
    """Return which plugin was edited after this process loaded it, so that a new process would have the required code.

    Empty if there is none: then this process has the required code, or a new one would not have it either.
    """
    for plugin in plugins:
        record = _loaded.get(_identity(plugin))
        if record is None or _digest(record) == plugin["code"]:
            continue
        if any(code.changed() for code in _codes(record)):
            return one_line(f"plugin {_shown(plugin)} was edited after it had been loaded")
    return ""


def _described(record: PluginRecord) -> dict[str, str]:
    place = str(Path(record.distribution).resolve()) if record.version == _FILE else record.distribution
    return {"name": record.name, "distribution": place, "version": record.version, "code": _digest(record)}


def _digest(record: PluginRecord) -> str:
    return json_digest([code.digest for code in _codes(record)])


def _codes(record: PluginRecord) -> list[LoadedCode]:
    """Return the code of a plugin; shipped plugins are covered by this project's packages."""
    if record.code is not None:
        return [record.code]
    return [code for name in sorted(shipped_packages()) if (code := code_of(name)) is not None]


def _identity(plugin: Mapping[str, str]) -> tuple[str, str]:
    return plugin["name"], plugin["distribution"]


def _shown(plugin: Mapping[str, str]) -> str:
    if plugin["version"] == _FILE:
        return f"{plugin['distribution']} (code {plugin['code'][:_SHOWN]})"
    return f"{plugin['name']} ({plugin['distribution']} {plugin['version']}, code {plugin['code'][:_SHOWN]})"
