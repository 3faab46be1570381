"""The main job: every stage of a suite in order, in this process, and the files of the board."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench_core.costs.models import CostModel
from bench_core.costs.operations import FirstLayer
from bench_core.digests import json_digest
from bench_core.errors import ExitBenchError, StoreError, UsageError
from bench_core.exits import ExitPolicy, ExitStrategy, Requirement, State
from bench_core.hashing import hash_order
from bench_core.latency import measure
from bench_core.live import LiveSamples, run_live
from bench_core.plugin_manager import Registry
from bench_core.progress import note, progress
from bench_core.provenance import environment, manifest
from bench_core.results import Board, make_folder, read_measurements, read_raw, write_board
from bench_core.scoring import Contest, Entry, Recorded, WorkloadScores, halve, score_strategy
from bench_core.selection import OperatingPoint
from bench_core.snn import SpikingNetwork
from bench_core.stages import Workload, recorded_trace, recording_key, spiking_network, trained_weights
from bench_core.store import Artifact, Store, default_root
from bench_core.suite import EVERY_STRATEGY, CostModelSpec, Suite
from bench_core.tables import board_tables
from bench_core.trace import Trace, save_trace

__all__ = ["Competitor", "Plan", "competitors", "plan", "policy_artifacts", "run_suite", "score_workload"]

LATENCY_SALT = 0x4C415445  # which test samples are timed
_SAME = "calibration equals test"


@dataclass(frozen=True)
class Competitor:
    """A strategy with its knobs set, and the label it goes by on the board."""

    label: str
    strategy: ExitStrategy


@dataclass(frozen=True)
class _Recorded:
    """A workload with its network and traces."""

    workload: Workload
    weights: Artifact
    network: SpikingNetwork
    calibration: Trace
    test: Trace


def run_suite(
    suite: Suite,
    *,
    registry: Registry,
    output: Path,
    store: Store | None = None,
    refit: bool = False,
    remeasure: bool = False,
    export_traces: bool = False,
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
        command: as recorded in the manifest.

    Returns:
        The board. Failures are rows with a status; ``Board.failures`` counts them.

    Raises:
        UsageError: before anything is computed, for a name, knob or operating point that can't be.
    """
    store = store or Store(default_root())
    planned = plan(suite, registry)
    make_folder(output)
    recorded: dict[str, _Recorded | str] = {}  # every trace is kept before the first strategy runs
    for workload in planned.workloads:
        recorded[workload.spec.name] = _guarded(f"workload {workload.spec.name}", _record, workload, store)

    scores: list[WorkloadScores] = []
    facts = {}
    for name, ready in recorded.items():
        outcome = (
            ready if isinstance(ready, str) else _guarded(f"workload {name}", _compete, ready, planned, store, refit)
        )
        if isinstance(outcome, str):
            recorded[name] = outcome
            entries = [Entry(e.label, e.strategy.family_knob.name, None, outcome) for e in planned.competitors]
            scores.append(WorkloadScores(name, entries))
        else:
            scores.append(outcome[0])
            facts[name] = outcome[1]

    note("intervals and ranks …")
    tables = board_tables(
        suite.name, scores, planned.points, planned.cost_models, resamples=suite.resamples, seed=suite.seed
    )
    board = Board(
        **tables,
        measurements=None if remeasure else read_measurements(output),
        raw=None if remeasure else read_raw(output),
        manifest=manifest(suite, registry, facts, command),
    )
    for result in scores:
        ready = recorded[result.name]
        if not isinstance(ready, str):
            _measure(board, suite, ready, result)
            if export_traces:
                for trace in (ready.calibration, ready.test):
                    save_trace(trace, output / "traces" / f"{result.name}-{trace.header['split']}.safetensors")
    write_board(board, output)
    return board


@dataclass(frozen=True)
class Plan:
    """A suite with everything that it names looked up."""

    points: list[OperatingPoint]
    cost_models: list[CostModel]
    first_layer: FirstLayer
    competitors: list[Competitor]
    workloads: list[Workload]


def plan(suite: Suite, registry: Registry) -> Plan:
    """Look up everything that a suite names. Raises UsageError for a name, knob or operating point that can't be."""
    return Plan(
        [OperatingPoint.parse(text) for text in suite.operating_points],
        _cost_models(suite, registry),
        suite.first_layer,
        competitors(suite, registry),
        [Workload.resolve(spec, registry) for spec in suite.workloads],
    )


def competitors(suite: Suite, registry: Registry) -> list[Competitor]:
    """The strategies of a suite in order, ``*`` replaced by every registered one. Raises UsageError."""
    found: dict[str, Competitor] = {}
    for spec in suite.strategies:
        names = list(registry.strategies) if spec.name == EVERY_STRATEGY else [spec.name]
        for name in names:
            strategy = registry.find("strategies", name)
            if strategy.family_knob.name in spec.parameters:
                raise UsageError(
                    f"{name}: {strategy.family_knob.name} is chosen by the operating points, not by the suite"
                )
            strategy = strategy.with_parameters(spec.parameters)
            found.setdefault(strategy.label, Competitor(strategy.label, strategy))
    return list(found.values())


def _cost_models(suite: Suite, registry: Registry) -> list[CostModel]:
    found: dict[str, CostModel] = {}
    for wanted in suite.cost_models:
        spec = CostModelSpec(name=wanted) if isinstance(wanted, str) else wanted
        model = registry.find("cost_models", spec.name)
        if spec.parameters:
            model = model.with_parameters(spec.parameters)
        found.setdefault(model.label, model)
    return list(found.values())


def _guarded(what: str, stage: Callable[..., Any], *arguments: Any) -> Any:
    """The stage's result, or in words why it has none: a failure is a row, never the end of the run.

    Only a store that can't or mayn't be written to ends it: that fails for everything, and is soon put right.
    """
    try:
        return stage(*arguments)
    except StoreError:
        raise
    except ExitBenchError as error:
        note(f"{what}: failed: {error}")
        return f"failed: {error}"
    except Exception as error:  # plugins may raise anything
        note(f"{what}: failed\n{traceback.format_exc()}")
        return f"failed: {type(error).__name__}: {error}"


def _record(workload: Workload, store: Store) -> _Recorded:
    weights = trained_weights(workload, store)
    network = spiking_network(workload, weights)
    calibration, test = (
        recorded_trace(workload, weights, split, store, network=network) for split in ("calibration", "test")
    )
    return _Recorded(workload, weights, network, calibration, test)


def _compete(ready: _Recorded, planned: Plan, store: Store, refit: bool) -> tuple[WorkloadScores, dict[str, Any]]:
    """All competitors on one recorded workload, and the facts about it that the manifest holds."""
    contest = _contest(ready, store, planned.first_layer, refit=refit)
    name = ready.workload.spec.name
    return score_workload(name, planned.competitors, planned.points, contest, _digests(ready)), _facts(ready)


def _contest(ready: _Recorded, store: Store, first_layer: FirstLayer, *, refit: bool) -> Contest:
    workload = ready.workload
    dataset, timesteps = workload.dataset, workload.spec.timesteps
    calibration, test = (
        Recorded(trace, dataset.frames(dataset.split(trace.header["split"]), timesteps))
        for trace in (ready.calibration, ready.test)
    )
    fit, select = halve(calibration)
    key = recording_key(workload, ready.weights, "calibration")
    artifacts = policy_artifacts(store, {"trace": key, "half": "fit"}, refit=refit)
    return Contest(fit, select, test, artifacts, first_layer)


def policy_artifacts(
    store: Store, calibration: Mapping[str, Any], *, refit: bool = False
) -> Callable[[Mapping[str, Any], Callable[[], State]], State]:
    """What ``Calibration.artifact`` calls: policies from the store (or the package's zoo), else built and kept.

    Args:
        calibration: JSON-able identity of the calibration data.
    """

    def artifact(made_from: Mapping[str, Any], build: Callable[[], State]) -> State:
        record = {"calibration": dict(calibration), "made_from": dict(made_from)}
        key = json_digest({"stage": "fit", **record})
        return store.obtain("policies", key, lambda: store.put("policies", key, build(), record), again=refit).tensors

    return artifact


def score_workload(
    name: str,
    entrants: Sequence[Competitor],
    points: Sequence[OperatingPoint],
    contest: Contest,
    digests: Mapping[str, str],
) -> WorkloadScores:
    """Every competitor on one contest; one that fails gets a row that says so."""
    same = digests.get("calibration_trace") == digests.get("test_trace")
    entries = []
    with progress(f"replay {name}", len(entrants), "strategies") as advance:
        for entrant in entrants:
            knob = entrant.strategy.family_knob.name
            if Requirement.INPUTS in entrant.strategy.requires and contest.test.inputs is None:
                entries.append(Entry(entrant.label, knob, None, "unavailable: needs inputs"))
            else:
                result = _guarded(f"{name}, {entrant.label}", score_strategy, entrant.strategy, contest, points)
                failed = isinstance(result, str)
                entries.append(Entry(entrant.label, knob, None if failed else result, result if failed else ""))
            advance(1, entrant.label)
    remark = _SAME if same else ""
    return WorkloadScores(name, entries, contest.test.trace, digests, remark, contest.first_layer)


def _digests(ready: _Recorded) -> dict[str, str]:
    return {
        "weights": ready.weights.digest,
        "calibration_trace": ready.calibration.digest,
        "test_trace": ready.test.digest,
    }


def _facts(ready: _Recorded) -> dict[str, Any]:
    splits = {name: ready.workload.dataset.split(name).digest for name in ("calibration", "test")}
    dataset = ready.workload.dataset
    return {
        **_digests(ready),
        "data": splits,
        "licence": dataset.licence,
        "simulated": dataset.simulated,
        "milliseconds_per_step": dataset.milliseconds_per_step(ready.workload.spec.timesteps),
        "recording": {s: recording_key(ready.workload, ready.weights, s) for s in ("calibration", "test")},
    }


def _measure(board: Board, suite: Suite, ready: _Recorded, result: WorkloadScores) -> None:
    """Add wall clock to the board for every policy that has none yet."""
    wanted: dict[str, ExitPolicy] = {}
    rows: list[dict[str, Any]] = []
    for entry in result.entries:
        if entry.scores is None:
            continue
        for scored in entry.scores.policies:
            if scored.policy is None:
                continue
            made_of = [ready.weights.digest, entry.label, scored.value, entry.scores.parameters]
            digest = json_digest(made_of)[:16]
            place = {"workload": result.name, "strategy": entry.label, "operating_point": str(scored.point)}
            rows.append({**place, "policy": digest})
            if not board.is_measured(digest):
                wanted[digest] = scored.policy
    timing = suite.latency
    timed = _timed_samples(ready, max(timing.samples, timing.batch_samples))
    for digest, policy in list(wanted.items()):
        if isinstance(_guarded(f"{result.name}, live", _try_live, ready.network, timed, policy), str):
            del wanted[digest]  # its wall clock is n/a
    if wanted:
        place = environment()
        facts = {
            "samples": min(timing.samples, len(timed)),
            "batch": timing.batch,
            "batch_samples": min(timing.batch_samples, len(timed)),
            "repetitions": timing.repetitions,
            "threads": timing.threads,
            "device": f"{place['device']} {place['machine']} {place['cpu_capability']}",
        }
        for batch, count in ((1, timing.samples), (timing.batch, timing.batch_samples)):
            if count == 0:
                continue
            some = timed.at(torch.arange(min(count, len(timed))))
            units = len(some) if batch == 1 else (len(wanted) + 1) * timing.repetitions
            title, unit = f"measure {result.name}, batch {batch}", "samples" if batch == 1 else "passes"
            with progress(title, units, unit) as advance:
                board.add_timings(
                    result.name,
                    measure(
                        ready.network,
                        some,
                        wanted,
                        batch=batch,
                        repetitions=timing.repetitions,
                        threads=timing.threads,
                        advance=advance,
                    ),
                    facts,
                )
    board.place_measurements(rows)


def _timed_samples(ready: _Recorded, count: int) -> LiveSamples:
    """Test samples for the wall clock, drawn by hash."""
    dataset, timesteps = ready.workload.dataset, ready.workload.spec.timesteps
    split = dataset.split("test")
    order = torch.from_numpy(hash_order(split.sample_ids, LATENCY_SALT).argsort())[:count]
    return LiveSamples.of_split(dataset, split, order, timesteps)


def _try_live(network: SpikingNetwork, samples: LiveSamples, policy: ExitPolicy) -> None:
    """Raises whatever a policy raises in a live run, alone and in a batch that is refilled."""
    few = samples.at(torch.arange(min(4, len(samples))))
    run_live(network, few, policy, batch=1)
    run_live(network, few, policy, batch=2, refill=True)
