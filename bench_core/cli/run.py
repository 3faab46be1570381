"""``exitbench run``: train, record, replay and write the leaderboard of a suite."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench_core.cli.common import (
    DeviceOption,
    Only,
    PluginFiles,
    SuiteName,
    app,
    refuse_file,
    registry_of,
    shown_points,
    suite_of,
    use_device,
)
from bench_core.errors import UsageError


@app.command()
def run(
    suite: SuiteName = "quick",
    plugin: PluginFiles = None,
    only: Only = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the results (default: exitbench-results/SUITE, or SUITE-only with --only)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done without doing it.")] = False,
    remeasure: Annotated[bool, typer.Option("--remeasure", help="Measure wall clock again.")] = False,
    refit: Annotated[bool, typer.Option("--refit", help="Train policy networks again, and score again.")] = False,
    traces: Annotated[bool, typer.Option("--traces", help="Copy the traces into the results.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Number of worker processes on this machine.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address of a Dask scheduler whose workers share the work.")
    ] = None,
    limit_minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="MINUTES",
            help="Time limit for a stage and for a strategy on a workload (default: the suite's limit, else 1440 for a "
            "stage and 60 for a strategy).",
        ),
    ] = None,
    device: DeviceOption = None,
    offline_store: Annotated[
        bool, typer.Option("--offline-store", help="Use only stored artifacts; fail if one is missing or damaged.")
    ] = False,
) -> None:
    """Train, convert and record what is missing, then replay and write the leaderboard."""
    from bench_core.report.terminal import terminal
    from bench_core.run.artifacts import stored_weights
    from bench_core.run.run import check_workers, plan, run_suite
    from bench_core.store.local import default_store

    if offline_store and refit:
        raise UsageError("--offline-store makes nothing, --refit makes policies again; leave one out")
    use_device(device, here=scheduler is None)
    if limit_minutes is not None and not limit_minutes > 0:
        raise UsageError(f"--limit-minutes {limit_minutes:g}: must be above 0")
    registry = registry_of(plugin, limit_minutes)
    chosen = suite_of(suite, only, registry)
    place = output or Path("exitbench-results") / (f"{chosen.name}-only" if only else chosen.name)
    refuse_file(place)
    store = default_store(offline=offline_store)
    if dry_run:
        check_workers(store, jobs=jobs, scheduler=scheduler)
        planned = plan(chosen, registry)
        for workload in planned.workloads:
            trained = stored_weights(workload, store) is not None
            print(f"{workload.spec.name}: {'record with trained weights' if trained else 'train, then record'}")
        print(f"replay: {', '.join(entrant.label for entrant in planned.competitors)}")
        print(f"results: {place}")
        return
    board = run_suite(
        chosen,
        registry=registry,
        output=place,
        store=store,
        refit=refit,
        remeasure=remeasure,
        export_traces=traces,
        jobs=jobs,
        scheduler=scheduler,
        limit_minutes=limit_minutes,
        command=shlex.join(["exitbench", "run", suite, *(part for name in only or [] for part in ("--only", name))]),
    )
    print(terminal(board, shown_points(chosen.operating_points)))
    print(f"All operating points: {place}/leaderboard.md; figures: {place}/rows.csv")
    if board.failures:
        for problem in board.problems:
            print(f"exitbench: {problem}", file=sys.stderr)
        if rows := board.failures - len(board.problems):
            print(f"exitbench: {rows} rows failed; their status says why", file=sys.stderr)
    if board.failures or registry.problems:
        raise typer.Exit(1)
