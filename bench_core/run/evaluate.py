"""Evaluation of strategies on a recorded workload: fit, choose, replay; a failing strategy becomes a row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from bench_core.board.over_seeds import seed_table
from bench_core.board.tables import board_tables
from bench_core.exits.strategy import ExitStrategy, Requirement, State
from bench_core.isolation.failures import guarded
from bench_core.isolation.foreign_code import STRATEGY_MINUTES, is_ours
from bench_core.run.artifacts import Workload, recorded_trace, recording_key, spiking_network, trained_weights
from bench_core.run.plan import Competitor, Plan
from bench_core.run.reuse import name_other_policies
from bench_core.run.score_cache import SCORED_SPLITS, KeptScores
from bench_core.run.suite import Suite, seed_groups
from bench_core.scoring.operating_points import OperatingPoint
from bench_core.scoring.scores import (
    Artifacts,
    Contest,
    Entry,
    Recorded,
    StrategyScores,
    WorkloadScores,
    halve,
    score_alone,
    score_together,
)
from bench_core.snn import SpikingNetwork
from bench_core.store.local import Artifact, Store
from bench_core.trace.trace import Trace
from bench_core.util.digests import json_digest
from bench_core.util.progress import progress

__all__ = [
    "RecordedWorkload",
    "contest_of",
    "fitted_artifacts",
    "kept_scores_of",
    "needs_missing_inputs",
    "policy_artifacts",
    "recorded_workload",
    "score_workload",
    "suite_tables",
]

_SAME = "calibration equals test"


@dataclass(frozen=True)
class RecordedWorkload:
    """A workload with its trained weights and traces, and the store that holds them."""

    workload: Workload
    weights: Artifact
    calibration: Trace
    test: Trace
    store: Store

    @cached_property
    def network(self) -> SpikingNetwork:
        """The spiking network, created on first access."""
        return spiking_network(self.workload, self.weights, self.store)

    @property
    def digests(self) -> dict[str, str]:
        """Digests of the weights and of both traces."""
        return {
            "weights": self.weights.digest,
            "calibration_trace": self.calibration.digest,
            "test_trace": self.test.digest,
        }


def recorded_workload(workload: Workload, store: Store) -> RecordedWorkload:
    """Return a workload from the store, training and recording what is missing or damaged."""
    weights = trained_weights(workload, store)
    calibration, test = (recorded_trace(workload, weights, split, store) for split in SCORED_SPLITS)
    return RecordedWorkload(workload, weights, calibration, test, store)


def contest_of(ready: RecordedWorkload) -> Contest:
    """Return the data on which strategies are compared for a recorded workload."""
    workload = ready.workload
    dataset, timesteps = workload.dataset, workload.spec.timesteps
    calibration, test = (
        Recorded(trace, dataset.frames(dataset.split(trace.header["split"]), timesteps))
        for trace in (ready.calibration, ready.test)
    )
    fit, select = halve(calibration)
    artifacts = fitted_artifacts(workload, ready.weights, ready.store)
    return Contest(fit, select, test, artifacts)


def kept_scores_of(
    ready: RecordedWorkload, contest: Contest, points: Sequence[OperatingPoint], *, again: bool = False
) -> KeptScores:
    """Return the store of a recorded workload's scores; with ``again`` existing scores are ignored."""
    return KeptScores(ready.workload, ready.weights, ready.digests, contest, points, ready.store, again)


def fitted_artifacts(workload: Workload, weights: Artifact, store: Store, *, refit: bool = False) -> Artifacts:
    """Return the artifact store for policies fitted on the ``fit`` half of a workload's calibration trace."""
    key = recording_key(workload, weights, "calibration")
    return policy_artifacts(store, {"trace": key, "half": "fit"}, refit=refit)


def policy_artifacts(store: Store, calibration: Mapping[str, Any], *, refit: bool = False) -> Artifacts:
    """Return the function behind ``Calibration.artifact``: policies from the store (or the package's zoo), else built.

    Args:
        store: where policies are stored.
        calibration: JSON-able identity of the calibration data.
        refit: build policies again even if they are stored.
    """

    def artifact(made_from: Mapping[str, Any], build: Callable[[], State]) -> State:
        record = {"calibration": dict(calibration), "made_from": dict(made_from)}
        key = json_digest({"stage": "fit", **record})

        def make() -> Artifact:
            name_other_policies(store, record)
            return store.put("policies", key, build(), record)

        return store.obtain("policies", key, make, again=refit).tensors

    return artifact


def score_workload(
    name: str,
    entrants: Sequence[Competitor],
    points: Sequence[OperatingPoint],
    contest: Contest,
    digests: Mapping[str, str],
    *,
    problems: Mapping[str, str] | None = None,
    kept: KeptScores | None = None,
    minutes: float = STRATEGY_MINUTES,
) -> WorkloadScores:
    """Score every strategy on one workload; a failing strategy gets a row that says so.

    Args:
        name: of the workload.
        entrants: the strategies with their labels.
        points: the operating points.
        contest: the data to compare on.
        digests: of the weights and the traces.
        problems: by label, why a strategy is skipped: it failed elsewhere.
        kept: stored scores, which are reused and extended.
        minutes: time limit for a strategy that is not shipped.
    """
    same = digests.get("calibration_trace") == digests.get("test_trace")
    reasons = [_excluded(entrant, contest, problems or {}) for entrant in entrants]
    known = [
        None if reason or kept is None else kept.get(entrant.strategy)
        for entrant, reason in zip(entrants, reasons, strict=True)
    ]
    tried = [
        entrant for entrant, reason, found in zip(entrants, reasons, known, strict=True) if not reason and found is None
    ]
    together = [entrant for entrant in tried if is_ours(entrant.strategy)]
    entries = []
    with progress(f"replay {name}", len(entrants), "strategies") as advance:
        given = score_together([entrant.strategy for entrant in together], contest, points)
        scores = {entrant.label: give for entrant, give in zip(together, given, strict=True)}
        for entrant, reason, found in zip(entrants, reasons, known, strict=True):
            label, knob = entrant.label, entrant.strategy.family_knob.name
            give = scores.get(label) or partial(score_alone, entrant.strategy, contest, points)
            result: Any = (
                reason or found or guarded(f"{name}, {label}", give, minutes=minutes, ours=is_ours(entrant.strategy))
            )
            if kept is not None and isinstance(result, StrategyScores) and found is None:
                kept.put(entrant.strategy, result)
            failed = isinstance(result, str)
            entries.append(Entry(label, knob, None if failed else result, result if failed else ""))
            advance(1, label)
    remark = _SAME if same else ""
    return WorkloadScores(name, entries, contest.test.trace, digests, remark)


def suite_tables(
    suite: Suite, planned: Plan, scores: Sequence[WorkloadScores], problems: list[str] | None = None
) -> dict[str, Any]:
    """Return every table of a suite's board that is computed from its scores, by name; None for seeds without any.

    Args:
        suite: the suite.
        planned: its plan.
        scores: of every workload.
        problems: receives why tables are empty.
    """
    tables = board_tables(
        suite.name,
        scores,
        planned.points,
        planned.cost_models,
        first_layer=planned.first_layer,
        resamples=suite.resamples,
        seed=suite.seed,
        problems=problems,
    )
    return {**tables, "seeds": seed_table(tables["rows"], seed_groups(suite))}


def needs_missing_inputs(strategy: ExitStrategy, contest: Contest) -> bool:
    """Return whether a strategy requires inputs that are unavailable."""
    return Requirement.INPUTS in strategy.requires and contest.test.inputs is None


def _excluded(entrant: Competitor, contest: Contest, problems: Mapping[str, str]) -> str:
    """Return why a strategy is skipped, or ""."""
    if needs_missing_inputs(entrant.strategy, contest):
        return "unavailable: needs inputs"
    return problems.get(entrant.label, "")
