"""``exitbench plugin``: create a plugin, or check one."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from bench_core.cli.common import app, registry_of
from bench_core.errors import UsageError, one_line

plugin_app = typer.Typer(help="Plugins of your own: start one, check one.", no_args_is_help=True)
app.add_typer(plugin_app, name="plugin")


@plugin_app.command("new")
def plugin_new(
    name: Annotated[
        str, typer.Argument(help="Name of the package and its strategy: lower-case letters, digits, dashes.")
    ],
) -> None:
    """Write ./NAME, an installable package with one exit strategy called NAME, its tests and a README."""
    from bench_core.conformance.scaffold import new_plugin

    place = new_plugin(name, registry_of(None), Path())
    print(f"{place}/: a package with the exit strategy {name}; next:")
    print(f"    pip install -e ./{place}\n    exitbench plugin check {name}\n    exitbench run")


@plugin_app.command("check")
def plugin_check(
    plugin: Annotated[str, typer.Argument(metavar="DIST", help="A distribution, a plugin, or a plugin's .py file.")],
) -> None:
    """Run the conformance kit on every exit strategy that a plugin registers; exit code 1 if a check fails."""
    from bench_core.conformance.runner import examine, plugin_file, plugins_of, strategies_of
    from bench_core.isolation.tracebacks import debugging

    file = plugin_file(plugin)
    registry = registry_of([file] if file else None)
    plugins = plugins_of(str(file or plugin), registry)
    broken = [found for found in plugins if found.problem]
    strategies = strategies_of(plugins, registry)
    if not strategies and not broken:
        raise UsageError(f"{plugin} registers no exit strategy; the kit checks nothing else")
    passed = total = 0
    for strategy in strategies:
        for verdict in examine(strategy):
            print(one_line(str(verdict)), flush=True)
            if verdict.traceback and debugging():
                print(verdict.traceback, end="", file=sys.stderr)
            passed, total = passed + verdict.passed, total + 1
    print(f"{passed} of {total} checks passed")
    if broken or passed < total:
        raise typer.Exit(1)
