"""``exitbench list``: installed strategies, models, data sets, suites, plugins and more."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from bench_core.cli.common import PluginFiles, app, registry_of, table


class Listing(StrEnum):
    """What ``exitbench list`` can list."""

    STRATEGIES = "strategies"
    MODELS = "models"
    DATASETS = "datasets"
    CONVERTERS = "converters"
    REGULARIZERS = "regularizers"
    COST_MODELS = "cost-models"
    SUITES = "suites"
    PLUGINS = "plugins"


@app.command("list")
def list_(what: Annotated[Listing, typer.Argument(help="What to list.")], plugin: PluginFiles = None) -> None:
    """List what is installed: strategies with their knobs, models, data sets, plugins with versions."""
    if what is Listing.SUITES:
        from bench_core.run.suite import SHIPPED, load_suite

        suites = [load_suite(path.stem) for path in sorted(SHIPPED.glob("*.toml"))]
        print(table([[s.name, len(s.workloads), s.title] for s in suites], ["suite", "workloads", "title"]))
        return
    registry = registry_of(plugin)
    if what is Listing.PLUGINS:
        rows = [[p.name, p.distribution, p.version, p.problem or ", ".join(p.provides)] for p in registry.plugins]
        print(table(rows, ["plugin", "distribution", "version", "provides"], maxcolwidths=[None, None, None, 70]))
        if registry.problems:
            raise typer.Exit(1)
        return
    found: dict[str, Any] = getattr(registry, what.value.replace("-", "_"))
    rows = [[name, _knobs(item), getattr(item, "reference", "")] for name, item in found.items()]
    print(table(rows, [what.value, "knobs", "reference"], maxcolwidths=[None, 48, 36]))


def _knobs(item: Any) -> str:
    family = getattr(item, "family_knob", None)
    knobs = ([family] if family else []) + list(getattr(item, "knobs", ()))
    return ", ".join(
        f"{knob.name} {knob.range_text}" + ("" if knob.default is None else f" = {knob.default}") for knob in knobs
    )
