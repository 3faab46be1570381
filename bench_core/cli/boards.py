"""``exitbench leaderboard``, ``report``, ``compare`` and ``reproduce``: commands on existing boards."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from bench_core.cli.common import PluginFiles, app, names_of, refuse_file, registry_of, shown_points
from bench_core.errors import ExitBenchError, UsageError


@contextmanager
def refusing_odd_cells(*folders: Path) -> Iterator[None]:
    """Raise UsageError if a board cannot be shown because its files hold something that no run writes."""
    try:
        yield
    except (ExitBenchError, OSError):
        raise
    except Exception as error:
        from bench_core.isolation.tracebacks import described

        names = " and ".join(map(str, folders))
        raise UsageError(
            f"results {names}: a file does not hold what it should ({described(error)}); run the suite again"
        ) from error


Unverified = Annotated[
    bool,
    typer.Option("--unverified", help="Read tables even if they differ from the sha256 in the manifest."),
]


@app.command()
def leaderboard(
    results: Annotated[Path, typer.Argument(help="Folder of a board.")] = Path("exitbench-results/quick"),
    operating_point: Annotated[
        list[str] | None, typer.Option(help="Operating points to show; repeatable; `all` shows every one.")
    ] = None,
    unverified: Unverified = False,
) -> None:
    """Print an existing board."""
    from bench_core.board.board import read_board
    from bench_core.board.consistency import refuse_contradictions
    from bench_core.report.terminal import terminal

    board = read_board(results, verified=not unverified)
    refuse_contradictions(board, str(results))
    offered = list(dict.fromkeys(board.rows["operating_point"]))
    wanted = operating_point or shown_points(offered)
    for name in wanted:
        if name not in (*offered, "all"):
            raise UsageError(f"no operating point {name!r} on this board; it has: {', '.join(offered)}, all")
    with refusing_odd_cells(results):
        print(terminal(board, offered if "all" in wanted else wanted))


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="Folder of a board.")] = Path("exitbench-results/quick"),
    output: Annotated[Path | None, typer.Option(help="Folder for the report (default: the board's folder).")] = None,
    formats: Annotated[
        str, typer.Option("--format", help="Formats, separated by commas: html, tex, svg, png, md.")
    ] = "html,tex,svg,png,md",
    plugin: PluginFiles = None,
    unverified: Unverified = False,
) -> None:
    """Write a board as an html page, LaTeX, plots and markdown."""
    from bench_core.board.board import read_board
    from bench_core.board.consistency import refuse_contradictions
    from bench_core.report.write import check_formats, needs_extras, write_report

    wanted = check_formats(part.strip() for part in formats.split(",") if part.strip())
    place = output or results
    refuse_file(place)
    board = read_board(results, verified=not unverified)
    refuse_contradictions(board, str(results))
    point = shown_points(list(dict.fromkeys(board.rows["operating_point"])))[0]
    extras = {}
    if needs_extras(wanted):
        from bench_core.report.gallery import read_extras

        registry = registry_of(plugin)
        extras = read_extras(results, board, point, registry.strategies, registry.datasets)
    with refusing_odd_cells(results):
        written = write_report(board, extras, place, wanted, point)
    for path in written:
        if path.parent == place:
            print(path)
    if plots := [path for path in written if path.parent != place]:
        print(f"{plots[0].parent}: {len(plots)} plots")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of a board.")],
    second: Annotated[Path, typer.Argument(help="Folder of another board of the same suite.")],
    unverified: Unverified = False,
) -> None:
    """Compare two boards of one suite row by row; list what changed and what is not comparable."""
    from bench_core.board.board import read_board
    from bench_core.board.consistency import refuse_contradictions
    from bench_core.board.differences import compare_boards

    boards = [read_board(folder, verified=not unverified) for folder in (first, second)]
    for board, folder in zip(boards, (first, second), strict=True):
        refuse_contradictions(board, str(folder))
    with refusing_odd_cells(first, second):
        print(compare_boards(*boards).text)


@app.command()
def reproduce(
    results: Annotated[Path, typer.Argument(help="Folder of a committed board.")],
    source: Annotated[
        str,
        typer.Option(
            "--from", help="traces (seconds), weights (minutes), or scratch (trains again and reports differences)."
        ),
    ] = "traces",
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Compare only these workloads; repeatable or separated by commas."),
    ] = None,
    board: Annotated[
        Path | None, typer.Option(help="Compare this board, made by the same suite, instead of recomputing.")
    ] = None,
    tables: Annotated[Path | None, typer.Option(help="Folder to write the recomputed board to.")] = None,
    plugin: PluginFiles = None,
    unverified: Unverified = False,
) -> None:
    """Recompute a board and compare; if it drifted, list the differences and exit with code 1.

    Tolerances are those of the contract for numbers (docs/reproducing.md): if rounding differs, decisions from traces
    must still be the same, and networks from weights must agree to 0.15 points and 1 % of the average exit timestep.

    With --only, ranks and tables across workloads are omitted.

    With --from scratch, every network is trained again; differences are reported with intervals, and exit code 1 means
    that something failed to run.
    """
    if source not in ("traces", "weights", "scratch"):
        raise UsageError(f"--from {source}: it is traces, weights or scratch")
    if board is not None and (source != "traces" or tables is not None or only):
        raise UsageError("--board compares two boards and recomputes nothing; leave out --from, --only and --tables")
    if source == "scratch" and only:
        raise UsageError("--from scratch trains every network of the board; leave out --only")
    if tables is not None:
        refuse_file(tables, "--tables")
    registry = registry_of(plugin)
    if source == "scratch":
        from bench_core.workflows.retrain import retrain_board

        again = retrain_board(results, registry, keep=tables, verified=not unverified)
        print(again.text)
        failed = bool(again.problems)
    else:
        from bench_core.workflows.reproduction.reproduce import compare_with, reproduce_board

        if board is not None:
            report = compare_with(results, board, registry, verified=not unverified)
        else:
            report = reproduce_board(
                results,
                registry,
                from_weights=source == "weights",
                only=names_of(only, "workloads"),
                keep=tables,
                verified=not unverified,
            )
        print(report.text)
        failed = bool(report.drift)
    if failed:
        raise typer.Exit(1)
