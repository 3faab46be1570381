"""Shared parts of the commands: the application, options, and parsing of names and flags."""

import os
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bench_core.errors import NoHomeError, UsageError, visible

__all__ = [
    "DeviceOption",
    "Only",
    "PluginFiles",
    "SuiteName",
    "SuiteOption",
    "app",
    "refuse_file",
    "refuse_output",
    "registry_of",
    "settings_of",
    "shown_points",
    "store_or_none",
    "suite_of",
    "table",
    "use_device",
    "workload_of",
]


_TO_LOAD = 1.0  # minimum minutes for a plugin to load, since it may import large libraries
_DEBUG = "--debug"


class _Commands(TyperGroup):
    """All commands. Empty arguments are rejected, since an empty path would be the current folder.

    ``--debug`` is accepted anywhere.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, taking out ``--debug`` and rejecting empty ones."""
        options = args[: args.index("--")] if "--" in args else args
        from bench_core.isolation.tracebacks import show_tracebacks

        show_tracebacks(_DEBUG in options)
        args = [given for given in options if given != _DEBUG] + args[len(options) :]
        for before, given in pairwise(["exitbench", *args]):
            flag, sign, value = given.partition("=")
            if not given or (sign and not value and flag.startswith("--")):
                raise UsageError(f"{flag or before} '': is empty; give a value, or leave it out")
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Commands,
    name="exitbench",
    help="Compare dynamic-exit methods for spiking neural networks on the same traces.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

PluginFiles = Annotated[list[Path] | None, typer.Option("--plugin", help="A plugin in a single file; repeatable.")]
SuiteName = Annotated[str, typer.Argument(help="Name of a built-in suite, or a .toml file.")]
SuiteOption = Annotated[str, typer.Option(help="Name of a built-in suite, or a .toml file.")]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", help="Only these workloads or strategies; repeatable or separated by commas."),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Device for training and recording: cpu, cuda or cuda:NUMBER (default: $EXITBENCH_DEVICE, else cpu).",
    ),
]


def use_device(name: str | None, *, here: bool = True) -> None:
    """Set the ``--device`` of this process and its workers; with ``here``, reject one that this machine lacks."""
    from bench_core.util.device import VARIABLE, compute_device

    if name is not None:
        os.environ[VARIABLE] = name
    if here:
        compute_device()


def registry_of(files: list[Path] | None, limit_minutes: float | None = None) -> Any:
    """Load the plugins, including those in ``files``; print their problems to stderr."""
    from bench_core.isolation.foreign_code import STRATEGY_MINUTES
    from bench_core.isolation.tracebacks import debugging
    from bench_core.plugins import load_registry

    minutes = STRATEGY_MINUTES if limit_minutes is None else max(limit_minutes, _TO_LOAD)
    registry = load_registry(files or [], minutes=minutes)
    for plugin in registry.plugins if debugging() else ():
        print(plugin.traceback, end="", file=sys.stderr)
    for problem in registry.problems:
        print(f"exitbench: {problem}; everything else goes on", file=sys.stderr)
    return registry


def table(rows: Iterable[Iterable[object]], headers: list[str], **options: Any) -> str:
    """Return rows as a text table made by tabulate; control characters in names are escaped."""
    from tabulate import tabulate

    shown = [[visible(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    return tabulate(shown, [visible(name) for name in headers], **options)


def store_or_none() -> Any:
    """Return the default store, or None, with a note, if no home folder is known."""
    from bench_core.store.local import default_store
    from bench_core.util.progress import note

    try:
        return default_store()
    except NoHomeError as error:
        note(f"nothing is kept: {error}")
        return None


def names_of(only: list[str] | None, kinds: str) -> list[str]:
    """Return the names given with ``--only``; raise UsageError, listing the ``kinds`` allowed, for an empty one."""
    names = []
    for text in only or []:
        parts = [part for part in text.split(",") if part]
        if not parts:
            raise UsageError(f"--only {text!r}: names nothing; name {kinds}, or leave it out")
        names += parts
    return names


def suite_of(name: str, only: list[str] | None, registry: Any) -> Any:
    """Return a suite, reduced by ``--only``; raise UsageError for an empty or unknown name."""
    from bench_core.knobs import nearest
    from bench_core.run.suite import EVERY_STRATEGY, load_suite

    suite = load_suite(name)
    workloads = dict.fromkeys(known for spec in suite.workloads for known in (spec.name, spec.base_name))
    names = names_of(only, "workloads or strategies")
    known = [*workloads, *registry.strategies]
    for wanted in names:
        if wanted not in (*known, EVERY_STRATEGY):
            close = nearest(wanted, known)
            raise UsageError(
                f"--only {wanted!r}: no workload or strategy{close}; "
                f"suite {suite.name} has {', '.join(workloads)}, `exitbench list strategies` shows the strategies"
            )
    return suite.only(names) if names else suite


def workload_of(suite: str, name: str, registry: Any) -> Any:
    """Return a workload of a suite; raise UsageError for an unknown name."""
    from bench_core.knobs import nearest
    from bench_core.run.artifacts import Workload
    from bench_core.run.suite import load_suite

    specs = {spec.name: spec for spec in load_suite(suite).workloads}
    if name not in specs:
        raise UsageError(f"suite {suite} has no workload {name!r}{nearest(name, specs)}; it has: {', '.join(specs)}")
    return Workload.resolve(specs[name], registry)


def settings_of(pairs: list[str] | None) -> dict[str, object]:
    """Parse the KEY=VALUE pairs of ``--set``; raise UsageError for an invalid or repeated one."""
    settings: dict[str, object] = {}
    for pair in pairs or []:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise UsageError(f"--set {pair}: write KEY=VALUE")
        if key in settings:
            raise UsageError(f"--set {pair}: {key} is set twice")
        settings[key] = value
    return settings


def shown_points(operating_points: list[str]) -> list[str]:
    """Return the operating point shown in a terminal: iso-accuracy:0.5 if present, otherwise the first."""
    return ["iso-accuracy:0.5"] if "iso-accuracy:0.5" in operating_points else operating_points[:1]


def refuse_file(folder: Path, flag: str = "--output") -> None:
    """Raise UsageError if an output folder or one of its parents is a file."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise UsageError(f"{flag} {folder}: {place} is a file")


def refuse_output(
    output: Path | None,
    flag: str = "--output",
    *,
    suite: str = "",
    plugin: Iterable[Path] | None = None,
    read: Iterable[Path] = (),
) -> None:
    """Reject an output that cannot be written, or is an input or a file of the store, before any work is done."""
    if output is None:
        return
    from bench_core.store.local import default_store
    from bench_core.util.files import refuse_outputs

    suites = [Path(suite)] if suite.endswith(".toml") else []
    refuse_outputs({flag: output}, [*read, *suites, *(plugin or []), *default_store().places])
