"""Which plugins a run has: name, version and code as loaded, told to workers, which refuse where theirs are others."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench_core.errors import UsageError, one_line
from bench_core.isolation.plugin_code import LoadedCode, code_of, shipped_packages
from bench_core.plugins import PluginRecord, Registry
from bench_core.util.digests import json_digest

__all__ = ["described", "files_of", "outdated", "refuse_others"]

_FILE = "file"  # the version of a plugin that is a file
_SHOWN = 8  # digits of a digest
_loaded: dict[tuple[str, str], PluginRecord] = {}  # of this process's last registry that a worker made


def described(registry: Registry) -> list[dict[str, str]]:
    """Return name, distribution, version and code digest of every plugin that could be loaded.

    The digest is that of the code as it was loaded; of a file, ``distribution`` is its path.
    """
    return [_described(record) for record in registry.plugins if not record.problem]


def files_of(plugins: Sequence[Mapping[str, str]]) -> list[Path]:
    """Return the plugins that are files. Raises UsageError for one that isn't here."""
    paths = [Path(plugin["distribution"]) for plugin in plugins if plugin["version"] == _FILE]
    for path in paths:
        if not path.is_file():
            raise UsageError(f"plugin {path}: the worker has no such file; put it where all machines see it")
    return paths


def refuse_others(plugins: Sequence[Mapping[str, str]], registry: Registry) -> None:
    """Raise UsageError where this process lacks one of a run's plugins, or has it with other code.

    Args:
        plugins: of the run, as ``described`` returns them.
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
    """Return which plugin was edited after this process had loaded it, so that a new process has what is wanted.

    Empty where there is none: then this process either has what is wanted, or a new one wouldn't have it either.
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
    """The code that a plugin comes from; shipped ones come from this project's packages."""
    if record.code is not None:
        return [record.code]
    return [code for name in sorted(shipped_packages()) if (code := code_of(name)) is not None]


def _identity(plugin: Mapping[str, str]) -> tuple[str, str]:
    return plugin["name"], plugin["distribution"]


def _shown(plugin: Mapping[str, str]) -> str:
    if plugin["version"] == _FILE:
        return f"{plugin['distribution']} (code {plugin['code'][:_SHOWN]})"
    return f"{plugin['name']} ({plugin['distribution']} {plugin['version']}, code {plugin['code'][:_SHOWN]})"
