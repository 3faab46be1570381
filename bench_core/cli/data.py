"""``exitbench data``: data sets, their sources, and whether they are complete."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bench_core.cli.common import app, registry_of, table
from bench_core.errors import ExitBenchError, UsageError, one_line

data_app = typer.Typer(help="Data sets: what is there, and what to put where.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command("list")
def data_list(
    name: Annotated[str | None, typer.Argument(help="A data set; shows everything about its source.")] = None,
) -> None:
    """List the data sets: samples, availability, licences. With NAME, show its files, digests and mirrors."""
    from bench_core.data.fetch.fetch import how_to, state
    from bench_core.data.fetch.sources import SOURCES

    if name is not None:
        print(how_to(source_of(name)))
        return
    rows: list[list[object]] = []
    for dataset in registry_of(None).datasets.values():
        source = SOURCES.get(getattr(dataset, "images", dataset).name)
        samples = source.samples if source and source.samples else ("", "", "")
        where = "its plugin knows" if source is None else state(source)
        if source is not None and source.shipped:
            where = f"{source.shipped}; train {where}"
        rows.append([dataset.name, *samples, where, dataset.licence])
    headers = ["data set", "train", "calibration", "test", "files", "licence"]
    print(table(rows, headers, maxcolwidths=[None] * 5 + [40]))


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="A data set of `exitbench data list`.")],
    folder: Annotated[Path | None, typer.Option(help="Folder to search first, for archives or their content.")] = None,
) -> None:
    """Download a data set, resuming where it stopped, then verify and unpack it."""
    from bench_core.data.fetch.fetch import fetch, how_to

    source = source_of(name)
    try:
        print(f"{source.name}: {fetch(source, folder)}")
    except ExitBenchError:
        print(how_to(source))
        raise


@data_app.command("verify")
def data_verify(
    name: Annotated[str | None, typer.Argument(help="A data set (default: all that are present).")] = None,
) -> None:
    """Compare files with their digests and list what is missing or altered; exit code 1 if anything is."""
    from bench_core.data.fetch.fetch import problems, state, verdict, whereabouts
    from bench_core.data.fetch.sources import SOURCES

    wrong = 0
    here = [source for source in SOURCES.values() if state(source).startswith(("here", "incomplete"))]
    for source in [source_of(name)] if name else here:
        folder = whereabouts(source)
        found = problems(source, folder)
        for problem in found[:20]:
            print(one_line(str(problem)))
        if len(found) > 20:
            print(f"... and {len(found) - 20} more")
        print(verdict(source, folder, found))
        wrong += len(found)
    if wrong:
        print("exitbench: `exitbench data fetch NAME` brings what is missing", file=sys.stderr)
        raise typer.Exit(1)


def source_of(name: str) -> Any:
    """Return the source of a data set; raise UsageError for an unknown name."""
    from bench_core.data.fetch.sources import SOURCES
    from bench_core.knobs import nearest

    known = name.removesuffix("-simulated-saccades")
    if known not in SOURCES:
        raise UsageError(f"no source of a data set {name!r}{nearest(known, SOURCES)}; there are: {', '.join(SOURCES)}")
    return SOURCES[known]
