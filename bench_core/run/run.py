"""Running a suite: run every missing stage, locally or on workers; then compute scores, wall clock and the board."""

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench_core.board.board import Board, make_folder, read_kept, write_board
from bench_core.board.files import LEADERBOARD
from bench_core.board.published import read_published
from bench_core.board.schema import TRAINING_COLUMNS
from bench_core.board.traces import trace_name
from bench_core.board.under_shift import Condition, shift_table
from bench_core.errors import StoreError, UsageError
from bench_core.isolation.failures import guarded
from bench_core.plugins import Registry
from bench_core.report.markdown import markdown
from bench_core.run.artifacts import recording_key
from bench_core.run.evaluate import (
    RecordedWorkload,
    contest_of,
    kept_scores_of,
    policy_artifacts,
    recorded_workload,
    score_workload,
    suite_tables,
)
from bench_core.run.plan import Competitor, Limits, Plan, competitors, plan
from bench_core.run.provenance import manifest
from bench_core.run.shift_traces import condition_digests, condition_traces, recorded_conditions
from bench_core.run.stages import Order, missing_stages, perform_here
from bench_core.run.suite import Suite
from bench_core.run.wall_clock import measure_policies
from bench_core.scoring.scores import Entry, WorkloadScores
from bench_core.store.local import Store, default_store
from bench_core.trace.trace import Trace
from bench_core.training.history import training_log

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "Competitor",
    "Plan",
    "check_workers",
    "competitors",
    "plan",
    "policy_artifacts",
    "run_suite",
    "score_workload",
]


def run_suite(
    suite: Suite,
    *,
    registry: Registry,
    output: Path,
    store: Store | None = None,
    refit: bool = False,
    remeasure: bool = False,
    export_traces: bool = False,
    jobs: int | None = None,
    scheduler: str | None = None,
    limit_minutes: float | None = None,
    command: str = "exitbench run",
) -> Board:
    """Run a suite and write its board: train, convert and record what is missing, then replay and report.

    Args:
        suite: what to run.
        registry: the loaded plugins.
        output: folder of the results; created if necessary.
        store: where artifacts are stored; default the user's.
        refit: train policy networks again instead of taking them from the store or the package, and score again.
        remeasure: measure wall clock again instead of keeping the measurements in ``output``.
        export_traces: copy the traces to ``output/traces``.
        jobs: distribute the stages over this many local processes. The calling script needs the usual
            ``if __name__ == "__main__":``, since these processes import it.
        scheduler: address of a Dask scheduler over whose workers the stages are distributed.
        limit_minutes: time limit for a stage, or a strategy on a workload, whose rows then report it; default the
            suite's, otherwise 60 minutes for a strategy and 1440 for a stage that trains, converts or records.
        command: as recorded in the manifest.

    Returns:
        The board. Failures are rows with a status; ``Board.failures`` counts them.

    Raises:
        UsageError: before anything is computed, for an invalid name, knob, operating point or address.
        StoreError: the store cannot be written to, or lacks something and is offline.
        ClusterError: Dask or the scheduler is unavailable or the connection is lost.
    """
    store = store or default_store()
    planned = plan(suite, registry)
    if limit_minutes is not None:
        planned = replace(planned, limits=Limits.of(limit_minutes))
    check_workers(store, jobs=jobs, scheduler=scheduler)
    with _results_folder(output):
        published = read_published(output, {workload.dataset.name for workload in planned.workloads})
        failed = _fill(store, suite, planned, registry, jobs=jobs, scheduler=scheduler, refit=refit)
        recorded: dict[str, RecordedWorkload | str] = {}
        shifted: dict[str, list[Condition] | str] = {}
        for workload in planned.workloads:
            name = workload.spec.name
            what = f"workload {name}"
            stage = partial(guarded, minutes=planned.limits.stage, ours=workload.is_ours)
            ready = recorded[name] = failed.get(what) or stage(what, recorded_workload, workload, store)
            if suite.shift and not isinstance(ready, str):
                what = f"{name} under corruption"
                shifted[name] = failed.get(what) or stage(what, recorded_conditions, ready, suite.shift, store)

        scores: list[WorkloadScores] = []
        facts = {}
        for name, ready in recorded.items():
            what = f"workload {name}"
            all_of_them = partial(guarded, minutes=math.inf, ours=True)  # each has its own limit
            outcome = ready if isinstance(ready, str) else all_of_them(what, _compete, ready, planned, failed, refit)
            if isinstance(outcome, str):
                recorded[name] = outcome
                entries = [Entry(e.label, e.strategy.family_knob.name, None, outcome) for e in planned.competitors]
                scores.append(WorkloadScores(name, entries))
            else:
                scores.append(outcome[0])
                facts[name] = outcome[1]
                if isinstance(conditions := shifted.get(name), list):
                    facts[name]["shift"] = condition_digests(conditions)

        problems: list[str] = []
        board = Board(
            **suite_tables(suite, planned, scores, problems),
            measurements=None if remeasure else read_kept(output, "measurements"),
            raw=None if remeasure else read_kept(output, "measurements-raw"),
            manifest=manifest(suite, registry, facts, command),
            training=_training(recorded),
            published=published,
            problems=problems,
        )
        if suite.shift:
            board.shift = shift_table(scores, shifted, resamples=suite.resamples, seed=suite.seed)
        traces: dict[str, Trace] = {}
        for result in scores:
            ready = recorded[result.name]
            if not isinstance(ready, str):
                measure_policies(board, suite.latency, ready, result, minutes=planned.limits.strategy)
                if export_traces:
                    traces |= _traces(ready, shifted.get(result.name, ""))
        if board.problems:
            board.manifest["problems"] = board.problems
        write_board(board, output, {LEADERBOARD: markdown(board)}, traces)
        return board


def check_workers(store: Store, *, jobs: int | None, scheduler: str | None) -> None:
    """Reject invalid ``jobs`` and ``scheduler``, even if there is nothing to distribute.

    Raises:
        UsageError: they contradict each other or the store, or the scheduler's address is invalid.
        ClusterError: Dask is not installed.
    """
    if jobs is None and scheduler is None:
        return
    if jobs is not None and scheduler is not None:
        raise UsageError("--jobs starts workers, --scheduler finds them; leave one out")
    if store.offline:
        raise UsageError("--offline-store makes nothing; leave out --jobs and --scheduler")
    from bench_core.run.dask.client import check_address, require_dask

    require_dask("--jobs" if scheduler is None else "--scheduler")
    if scheduler is not None:
        check_address(scheduler)


@contextmanager
def _results_folder(folder: Path) -> Iterator[None]:
    """Create a folder for results; after an error, remove the folders created here that are empty."""
    new = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        make_folder(folder)
        yield
    except BaseException:
        with suppress(OSError):  # it is not empty
            for place in new:
                place.rmdir()
        raise


def _traces(ready: RecordedWorkload, conditions: list[Condition] | str) -> dict[str, Trace]:
    """Return a workload's traces by file name, including those under corruption if there are any."""
    name = ready.workload.spec.name
    traces = {trace_name(name, trace.header["split"]): trace for trace in (ready.calibration, ready.test)}
    return traces if isinstance(conditions, str) else traces | condition_traces(conditions, name)


def _compete(
    ready: RecordedWorkload, planned: Plan, failed: Mapping[str, str], refit: bool
) -> tuple[WorkloadScores, dict[str, Any]]:
    """Return all strategies' scores on one recorded workload, and the facts about it for the manifest."""
    contest = contest_of(ready)
    kept = kept_scores_of(ready, contest, planned.points, again=refit)
    name = ready.workload.spec.name
    problems = {e.label: failed[what] for e in planned.competitors if (what := f"{name}, {e.label}") in failed}
    scores = score_workload(
        name,
        planned.competitors,
        planned.points,
        contest,
        ready.digests,
        problems=problems,
        kept=kept,
        minutes=planned.limits.strategy,
    )
    return scores, _facts(ready)


def _fill(
    store: Store,
    suite: Suite,
    planned: Plan,
    registry: Registry,
    *,
    jobs: int | None,
    scheduler: str | None,
    refit: bool,
) -> dict[str, str]:
    """Run every stage whose artifact the store lacks; return why workloads, or parts of them, failed."""
    stages, failed = missing_stages(planned, store, refit=refit)
    if scheduler is None and any(stage.kind in ("train", "record") for stage in stages):
        _refuse_unwritable(store)
    if jobs is None and scheduler is None:
        return failed | perform_here(stages, planned, store, refit=refit)
    if not stages:
        return failed
    from bench_core.run.dask.client import local_workers, run_stages, scheduler_at

    workers: AbstractContextManager[Client]
    workers = local_workers(jobs or 1) if scheduler is None else scheduler_at(scheduler)
    with workers as client:
        order = Order.of(suite, registry, store, refit=refit)
        return failed | run_stages(client, stages, order, store, limits=planned.limits)


def _refuse_unwritable(store: Store) -> None:
    """Raise StoreError if the store cannot be written to, before any lengthy computation; leave no files behind."""
    if store.offline:
        return
    place = next(place for place in (store.root, *store.root.absolute().parents) if os.path.lexists(place))
    try:
        with tempfile.TemporaryDirectory(prefix=".exitbench-probe-", dir=place):
            pass
    except OSError as error:
        raise StoreError(
            f"store {store.root}: can't be written ({error.strerror}); set EXITBENCH_HOME to another folder"
        ) from error


def _training(recorded: Mapping[str, RecordedWorkload | str]) -> pd.DataFrame:
    """Return the training log of every workload that has weights."""
    ready = {name: one for name, one in recorded.items() if not isinstance(one, str)}
    rows = [row for name, one in ready.items() for row in training_log(name, one.weights.metadata)]
    return pd.DataFrame(rows, columns=list(TRAINING_COLUMNS))


def _facts(ready: RecordedWorkload) -> dict[str, Any]:
    dataset = ready.workload.dataset
    splits = {name: ready.workload.split_digest(name) for name in ("calibration", "test")}
    return {
        **ready.digests,
        "data": splits,
        "licence": dataset.licence,
        "simulated": dataset.simulated,
        "milliseconds_per_step": dataset.milliseconds_per_step(ready.workload.spec.timesteps),
        "recording": {s: recording_key(ready.workload, ready.weights, s) for s in ("calibration", "test")},
        "recorded_with": {"calibration": ready.calibration.environment, "test": ready.test.environment},
    }
