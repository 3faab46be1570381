"""The main job: every stage of a suite, in this process or on workers, and the files of the board."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench_core.competition import RecordedWorkload, contest_of, policy_artifacts, recorded_workload, score_workload
from bench_core.errors import UsageError
from bench_core.failures import guarded
from bench_core.planning import Competitor, Plan, competitors, plan
from bench_core.plugin_manager import Registry
from bench_core.progress import note
from bench_core.provenance import manifest
from bench_core.published import read_published
from bench_core.results import Board, make_folder, read_measurements, read_raw, write_board
from bench_core.scoring import Entry, WorkloadScores
from bench_core.seeds import seed_table
from bench_core.shift import Condition, shift_table
from bench_core.shift_recording import condition_digests, recorded_conditions, save_conditions
from bench_core.stages import recording_key
from bench_core.store import Store, default_store
from bench_core.suite import Suite, seed_groups
from bench_core.tables import board_tables
from bench_core.timing import measure_policies
from bench_core.trace import save_trace
from bench_core.training.log import TRAINING_COLUMNS, training_log

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Competitor", "Plan", "competitors", "plan", "policy_artifacts", "run_suite", "score_workload"]


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
    command: str = "exitbench run",
) -> Board:
    """Run a suite and write its board: whatever is missing is trained, converted, recorded; then replay and reports.

    Args:
        suite: what to run.
        registry: the loaded plugins.
        output: folder of the results; made if need be.
        store: where artifacts are kept; default the user's.
        refit: train policy networks again instead of taking them from the store or the package.
        remeasure: measure wall clock again instead of keeping what stands in ``output``.
        export_traces: copy the traces to ``output/traces``.
        jobs: spread the stages over so many processes of this machine. The calling script needs the usual
            ``if __name__ == "__main__":``, since these processes import it.
        scheduler: address of a Dask scheduler, over whose workers the stages are spread.
        command: as recorded in the manifest.

    Returns:
        The board. Failures are rows with a status; ``Board.failures`` counts them.

    Raises:
        UsageError: before anything is computed, for a name, knob or operating point that can't be.
        ClusterError: Dask or the scheduler can't be had, or went away.
    """
    store = store or default_store()
    planned = plan(suite, registry)
    make_folder(output)
    published = read_published(output, {workload.dataset.name for workload in planned.workloads})
    failed: dict[str, str] = {}
    if jobs is not None or scheduler is not None:
        failed = _run_elsewhere(suite, planned, registry, store, jobs=jobs, scheduler=scheduler, refit=refit)
        refit = False  # it is done
    recorded: dict[str, RecordedWorkload | str] = {}  # every trace is kept before the first strategy runs
    shifted: dict[str, list[Condition] | str] = {}
    for workload in planned.workloads:
        name = workload.spec.name
        ready = recorded[name] = failed.get(name) or guarded(f"workload {name}", recorded_workload, workload, store)
        if suite.shift and not isinstance(ready, str):
            shifted[name] = guarded(f"{name} under corruption", recorded_conditions, ready, suite.shift, store)

    scores: list[WorkloadScores] = []
    facts = {}
    for name, ready in recorded.items():
        outcome = (
            ready
            if isinstance(ready, str)
            else guarded(f"workload {name}", _compete, ready, planned, store, refit, failed)
        )
        if isinstance(outcome, str):
            recorded[name] = outcome
            entries = [Entry(e.label, e.strategy.family_knob.name, None, outcome) for e in planned.competitors]
            scores.append(WorkloadScores(name, entries))
        else:
            scores.append(outcome[0])
            facts[name] = outcome[1]
            if isinstance(conditions := shifted.get(name), list):
                facts[name]["shift"] = condition_digests(conditions)

    note("intervals and ranks …")
    tables = board_tables(
        suite.name, scores, planned.points, planned.cost_models, resamples=suite.resamples, seed=suite.seed
    )
    board = Board(
        **tables,
        measurements=None if remeasure else read_measurements(output),
        raw=None if remeasure else read_raw(output),
        manifest=manifest(suite, registry, facts, command),
        seeds=seed_table(tables["rows"], seed_groups(suite)),
        training=_training(recorded),
        published=published,
    )
    if suite.shift:
        board.shift = shift_table(scores, shifted, resamples=suite.resamples, seed=suite.seed)
    for result in scores:
        ready = recorded[result.name]
        if not isinstance(ready, str):
            measure_policies(board, suite.latency, ready, result)
            if export_traces:
                _export(ready, shifted.get(result.name, ""), output / "traces")
    write_board(board, output)
    return board


def _export(ready: RecordedWorkload, conditions: list[Condition] | str, folder: Path) -> None:
    """Copy a workload's traces to ``folder``, those under corruption too, where there are any."""
    name = ready.workload.spec.name
    for trace in (ready.calibration, ready.test):
        save_trace(trace, folder / f"{name}-{trace.header['split']}.safetensors")
    if not isinstance(conditions, str):
        save_conditions(conditions, folder, name)


def _compete(
    ready: RecordedWorkload, planned: Plan, store: Store, refit: bool, failed: Mapping[str, str]
) -> tuple[WorkloadScores, dict[str, Any]]:
    """All competitors on one recorded workload, and the facts about it that the manifest holds."""
    contest = contest_of(ready, store, planned.first_layer, refit=refit)
    name = ready.workload.spec.name
    problems = {e.label: failed[key] for e in planned.competitors if (key := f"{name} {e.label}") in failed}
    scores = score_workload(name, planned.competitors, planned.points, contest, ready.digests, problems=problems)
    return scores, _facts(ready)


def _run_elsewhere(
    suite: Suite,
    planned: Plan,
    registry: Registry,
    store: Store,
    *,
    jobs: int | None,
    scheduler: str | None,
    refit: bool,
) -> dict[str, str]:
    """Have workers fill the store; why a workload, or ``WORKLOAD STRATEGY``, failed there."""
    from bench_core.cluster import local_workers, require_dask, run_stages, scheduler_at
    from bench_core.graph import Order, missing_stages

    if jobs is not None and scheduler is not None:
        raise UsageError("--jobs starts workers, --scheduler finds them; leave one out")
    if store.offline:
        raise UsageError("--offline-store makes nothing; leave out --jobs and --scheduler")
    require_dask("--jobs" if scheduler is None else "--scheduler")
    stages, failed = missing_stages(planned, store, refit=refit)
    if not stages:
        return failed
    workers: AbstractContextManager[Client]
    workers = local_workers(jobs or 1) if scheduler is None else scheduler_at(scheduler)
    with workers as client:
        problems = run_stages(client, stages, Order.of(suite, registry, store, refit=refit), store)
    for stage in stages:
        if stage.name in problems:
            what = f"{stage.workload} {stage.strategy}".rstrip()
            failed.setdefault(what, problems[stage.name])
    return failed


def _training(recorded: Mapping[str, RecordedWorkload | str]) -> pd.DataFrame:
    """What training took, of every workload that has weights."""
    ready = {name: one for name, one in recorded.items() if not isinstance(one, str)}
    rows = [row for name, one in ready.items() for row in training_log(name, one.weights.metadata)]
    return pd.DataFrame(rows, columns=list(TRAINING_COLUMNS))


def _facts(ready: RecordedWorkload) -> dict[str, Any]:
    splits = {name: ready.workload.dataset.split(name).digest for name in ("calibration", "test")}
    dataset = ready.workload.dataset
    return {
        **ready.digests,
        "data": splits,
        "licence": dataset.licence,
        "simulated": dataset.simulated,
        "milliseconds_per_step": dataset.milliseconds_per_step(ready.workload.spec.timesteps),
        "recording": {s: recording_key(ready.workload, ready.weights, s) for s in ("calibration", "test")},
    }
