"""Plugin loading: finds plugins, calls each separately, checks what it returns, and registers the valid objects.

Built-in and third-party plugins load the same way, through the entry-point group ``exitbench``; a single file can be
added with ``--plugin``. A broken plugin is listed as a problem and does not affect the others, unless
``EXITBENCH_STRICT_PLUGINS=1`` is set.
"""

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from bench_core import hookspecs
from bench_core.conversion import Converter
from bench_core.costs import CostModel
from bench_core.data import Dataset
from bench_core.errors import ForeignCodeError, PluginError, UsageError
from bench_core.exits.strategy import ExitStrategy
from bench_core.isolation.foreign_code import STRATEGY_MINUTES, foreign_code
from bench_core.isolation.plugin_code import (
    GROUP,
    SHIPPED_DISTRIBUTION,
    LoadedCode,
    SourceLoader,
    code_of_class,
    load_watched,
    shipped_packages,
)
from bench_core.isolation.tracebacks import described, full_traceback
from bench_core.knobs import Configurable, Knob, nearest
from bench_core.snn.models import Model
from bench_core.training import Regularizer

__all__ = ["PluginRecord", "Registry", "load_registry"]


@dataclass
class PluginRecord:
    """One plugin as ``exitbench list plugins`` shows it.

    Attributes:
        name: of its entry point, or the file's name.
        distribution, version: of the package it came with; for a file, its path and ``file``.
        provides: what it registered, as ``kind: name``.
        problem: empty, or why it (or a part of it) is skipped.
        code: as it was loaded; None for plugins of this package, and for those that can't be loaded.
        traceback: of the error it raised, as Python prints it.
    """

    name: str
    distribution: str
    version: str
    provides: list[str] = field(default_factory=list)
    problem: str = ""
    code: LoadedCode | None = field(default=None, repr=False, compare=False)
    traceback: str = ""


@dataclass
class Registry:
    """Everything the loaded plugins offer, by kind and name."""

    datasets: dict[str, Dataset] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    regularizers: dict[str, Regularizer] = field(default_factory=dict)
    converters: dict[str, Converter] = field(default_factory=dict)
    strategies: dict[str, ExitStrategy] = field(default_factory=dict)
    cost_models: dict[str, CostModel] = field(default_factory=dict)
    plugins: list[PluginRecord] = field(default_factory=list)
    owners: dict[tuple[str, str], PluginRecord] = field(default_factory=dict)

    def find(self, kind: str, name: str) -> Any:
        """Return the object of a kind (``strategies``, ``models`` …) by name. Raises UsageError for an unknown name."""
        known: Mapping[str, Any] = getattr(self, kind)
        if name not in known:
            words = kind.replace("_", " ")
            raise UsageError(
                f"unknown {_SINGULAR[kind]} {name!r}{nearest(name, known)}; `exitbench list {kind.replace('_', '-')}` "
                f"shows the installed {words}"
            )
        return known[name]

    def code_of(self, kind: str, name: str) -> list[LoadedCode]:
        """Return the plugin code that makes an object, as it was loaded; empty for built-in objects."""
        owner = self.owners.get((kind, name))
        own = [owner.code] if owner is not None and owner.code is not None else []
        found = {code.digest: code for code in [*code_of_class(type(getattr(self, kind)[name])), *own]}
        return list(found.values())

    @property
    def problems(self) -> list[PluginError]:
        """Return one error per plugin that is skipped in whole or in part."""
        return [PluginError(plugin.name, plugin.problem) for plugin in self.plugins if plugin.problem]


_SINGULAR = {
    "datasets": "data set",
    "models": "model",
    "regularizers": "regularizer",
    "converters": "converter",
    "strategies": "strategy",
    "cost_models": "cost model",
}
_HOOKS: dict[str, tuple[str, type]] = {
    "bench_datasets": ("datasets", Dataset),
    "bench_models": ("models", Model),
    "bench_regularizers": ("regularizers", Regularizer),
    "bench_converters": ("converters", Converter),
    "bench_exit_strategies": ("strategies", ExitStrategy),
    "bench_cost_models": ("cost_models", CostModel),
}


def load_registry(files: Iterable[Path] = (), *, minutes: float = STRATEGY_MINUTES) -> Registry:
    """Load every installed plugin and the given single-file ones, each as foreign code (``isolation.foreign_code``).

    Args:
        files: single-file plugins.
        minutes: time limit for loading each plugin.

    Raises UsageError for a file that doesn't exist or isn't a Python file. Raises PluginError for a broken plugin only
    if ``EXITBENCH_STRICT_PLUGINS=1`` is set; otherwise it is listed in ``Registry.problems``.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    registry = Registry()
    for record, load in [*_installed(), *_from_files(files)]:
        registry.plugins.append(record)
        try:
            with foreign_code(f"plugin {record.name}", minutes=minutes):
                plugin = load()
                manager.register(plugin, name=f"{record.distribution}:{record.name}")
                _refuse_unknown_hooks(plugin)
                _collect(registry, record, manager, plugin)
            if not manager.get_hookcallers(plugin):
                raise PluginError(record.name, "registers nothing; is @hookimpl missing?")
        except Exception as error:  # a plugin's failure must not end the run
            if os.environ.get("EXITBENCH_STRICT_PLUGINS") == "1":
                raise
            record.problem = record.problem or _last_line(error)
            record.traceback = full_traceback(error)
    return registry


def _installed() -> list[tuple[PluginRecord, Callable[[], Any]]]:
    found = []
    for entry in importlib.metadata.entry_points(group=GROUP):
        distribution = entry.dist.name if entry.dist else "unknown"
        version = entry.dist.version if entry.dist else "unknown"
        record = PluginRecord(entry.name, distribution, version)
        shipped = distribution == SHIPPED_DISTRIBUTION and entry.module.partition(".")[0] in shipped_packages()
        found.append((record, entry.load if shipped else partial(_watched, record, entry.module, entry.load)))
    return sorted(
        found, key=lambda pair: (pair[0].distribution != SHIPPED_DISTRIBUTION, pair[0].distribution, pair[0].name)
    )


def _from_files(files: Iterable[Path]) -> list[tuple[PluginRecord, Callable[[], Any]]]:
    found: list[tuple[PluginRecord, Callable[[], Any]]] = []
    names: set[str] = set()
    for path in files:
        if not path.is_file():
            raise UsageError(f"--plugin {path}: no such file")
        name = f"exitbench_file_{path.stem}"
        while name in names:  # same file name in another folder
            name += "_"
        names.add(name)
        spec = importlib.util.spec_from_file_location(name, path.resolve())
        if spec is None or spec.loader is None:
            raise UsageError(f"--plugin {path}: not a Python file; its name has to end in .py")

        if type(spec.loader) is SourceFileLoader:
            spec.loader = SourceLoader(spec.name, str(path.resolve()))

        def load(spec: ModuleSpec = spec, loader: Loader = spec.loader) -> ModuleType:
            module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            loader.exec_module(module)
            return module

        record = PluginRecord(path.stem, str(path), "file")
        found.append((record, partial(_watched, record, spec.name, load, file=path.resolve())))
    return found


def _watched(record: PluginRecord, module: str, load: Callable[[], Any], *, file: Path | None = None) -> Any:
    """Load a third-party plugin, and record its code."""
    plugin, record.code = load_watched(record.name, module, load, file=file)
    return plugin


def _refuse_unknown_hooks(plugin: object) -> None:
    for name in dir(plugin):
        if (
            name.startswith("bench_")
            and hasattr(getattr(plugin, name), f"{hookspecs.PROJECT}_impl")
            and name not in _HOOKS
        ):
            raise PluginError(getattr(plugin, "__name__", "?"), f"unknown hook {name}{nearest(name, _HOOKS)}")


def _collect(registry: Registry, record: PluginRecord, manager: pluggy.PluginManager, plugin: object) -> None:
    """Call this plugin's hooks, one by one, and register what they return."""
    problems = []
    for hook, (kind, base) in _HOOKS.items():
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            if implementation.plugin is not plugin:
                continue
            for item in _checked(hook, base, implementation.function()):
                known: dict[str, Any] = getattr(registry, kind)
                if item.name in known:
                    owner = registry.owners[kind, item.name]
                    by = f"plugin {owner.name} ({owner.distribution})"
                    problems.append(f"the {_SINGULAR[kind]} name {item.name!r} is taken by {by}")
                    continue
                known[item.name] = item
                code_of_class(type(item))  # now, while its modules are still those just loaded
                registry.owners[kind, item.name] = record
                record.provides.append(f"{_SINGULAR[kind]}: {item.name}")
    if problems:
        raise PluginError(record.name, "; ".join(problems))


def _checked(hook: str, base: type, returned: object) -> list[Any]:
    if not isinstance(returned, Iterable) or isinstance(returned, str | bytes):
        raise PluginError(hook, f"{hook} must return a list, not {type(returned).__name__}")
    items = list(returned)
    for item in items:
        if not isinstance(item, base):
            raise PluginError(hook, f"{hook} returned {item!r:.60}, which is no {base.__name__} object")
        name = getattr(item, "name", None)
        if not isinstance(name, str) or not 1 <= len(name) <= 64 or not name.isprintable():
            raise PluginError(hook, f"{hook} returned {type(item).__name__}, whose name {name!r:.60} is no short text")
        if isinstance(item, ExitStrategy) and not isinstance(getattr(item, "family_knob", None), Knob):
            raise PluginError(hook, f"strategy {name} has no family_knob, a bench_core.Knob")
        if isinstance(item, Configurable):
            _check_configurable(hook, item)
        if isinstance(item, CostModel) and not (item.unit in ("J", "E(1)") and item.latency_unit in ("s", "timestep")):
            offered = "unit is J or E(1), latency_unit s or timestep"
            raise PluginError(hook, f"cost model {name} is in {item.unit!r} and {item.latency_unit!r}; {offered}")
    return items


def _check_configurable(hook: str, item: Configurable) -> None:
    """Recreate the object as a run does. Raises PluginError if that fails, or if its label is not text."""
    try:
        twin = item.with_parameters({})
    except Exception as error:
        raise PluginError(hook, f"{item.name} can't be made with its defaults ({_last_line(error)})") from error
    if type(twin) is not type(item) or not isinstance(twin.label, str) or not twin.label.isprintable():
        raise PluginError(hook, f"{item.name} made with its defaults is {twin!r:.60}, which has no label")


def _last_line(error: BaseException) -> str:
    if isinstance(error, PluginError | ForeignCodeError):
        return error.message
    return described(error)
