"""A committed board replayed from the traces stored with it: its suite, its strategies, their scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_core.board.board import Board
from bench_core.board.traces import kept_trace, trace_path
from bench_core.plugins import Registry
from bench_core.run.evaluate import policy_artifacts, score_workload
from bench_core.run.plan import Competitor, plan
from bench_core.run.score_cache import SCORED_SPLITS
from bench_core.run.suite import LatencySpec, Suite, parse_suite
from bench_core.scoring.scores import Contest, Recorded, WorkloadScores, halve
from bench_core.store.local import Store
from bench_core.trace.trace import Trace
from bench_core.workflows.replay_files import resolve_inputs

__all__ = ["Tested", "briefly", "contest_of_traces", "strategies_of", "suite_of", "tested"]


def suite_of(board: Board, folder: Path) -> Suite:
    """Return the suite from which the board in ``folder`` was made."""
    return parse_suite(board.manifest["suite"], f"in {folder}/manifest.json")


def briefly(suite: Suite) -> Suite:
    """Return the suite with minimal wall-clock measurement."""
    return suite.model_copy(update={"latency": LatencySpec(samples=1, repetitions=1, batch_samples=0)})


@dataclass(frozen=True)
class Tested:
    """All strategies of one workload scored on the traces stored with a board, and the data they were scored on."""

    scores: WorkloadScores
    contest: Contest

    @property
    def test(self) -> Recorded:
        """The test samples."""
        return self.contest.test


def tested(committed: Board, suite: Suite, folder: Path, registry: Registry, store: Store) -> dict[str, Tested]:
    """Replay every strategy of a board on the traces stored with it; return the results by workload.

    Args:
        committed: the board.
        suite: the board's own, or some workloads of it.
        folder: of the board.
        registry: the loaded plugins.
        store: source of policy networks; missing ones are fitted again.

    Raises:
        TraceError: a trace is missing.
        UsageError: a trace differs from the manifest's.
    """
    planned = plan(suite, registry)
    entrants = strategies_of(committed, planned.competitors)
    found = {}
    for spec in suite.workloads:
        facts: Mapping[str, Any] = committed.manifest["workloads"].get(spec.name, {})
        sides = [
            kept_trace(trace_path(folder, spec.name, split), facts.get(f"{split}_trace")) for split in SCORED_SPLITS
        ]
        contest = contest_of_traces(sides[0], sides[1], facts, registry, store)
        digests = {name: str(facts[name]) for name in ("weights", "calibration_trace", "test_trace")}
        found[spec.name] = Tested(score_workload(spec.name, entrants, planned.points, contest, digests), contest)
    return found


def strategies_of(committed: Board, competitors: Sequence[Competitor]) -> list[Competitor]:
    """Return the strategies for which a board has rows."""
    labels = set(committed.rows["strategy"])
    return [one for one in competitors if one.label in labels]


def contest_of_traces(
    calibration: Trace, test: Trace, facts: Mapping[str, Any], registry: Registry, store: Store
) -> Contest:
    """Return the data on which strategies are compared, from two traces.

    Args:
        calibration: the calibration trace.
        test: the test trace.
        facts: about the workload, from the board's manifest.
        registry: the loaded plugins.
        store: source of policy networks.
    """
    fit, select = halve(Recorded(calibration, resolve_inputs(calibration, registry)))
    artifacts = policy_artifacts(store, {"trace": facts["recording"]["calibration"], "half": "fit"})
    return Contest(fit, select, Recorded(test, resolve_inputs(test, registry)), artifacts)
