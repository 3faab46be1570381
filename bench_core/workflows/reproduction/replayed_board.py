"""A board that was made before, replayed from the traces beside it: its suite, its strategies, what they scored."""

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
    """The suite that the board in ``folder`` was made from."""
    return parse_suite(board.manifest["suite"], f"in {folder}/manifest.json")


def briefly(suite: Suite) -> Suite:
    """The suite with as little wall clock as can be."""
    return suite.model_copy(update={"latency": LatencySpec(samples=1, repetitions=1, batch_samples=0)})


@dataclass(frozen=True)
class Tested:
    """What the traces beside a board hold of one workload: all strategies scored, and what they were scored on."""

    scores: WorkloadScores
    contest: Contest

    @property
    def test(self) -> Recorded:
        """The test samples."""
        return self.contest.test


def tested(committed: Board, suite: Suite, folder: Path, registry: Registry, store: Store) -> dict[str, Tested]:
    """Every strategy of a board replayed on the traces beside it, by workload.

    Args:
        suite: the board's own, or some workloads of it.
        store: where policy networks are taken from; what is missing there is fitted again.

    Raises:
        TraceError, UsageError: for a trace that is missing, or is not the one that the manifest names.
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
    """Return the strategies that a board has rows of."""
    labels = set(committed.rows["strategy"])
    return [one for one in competitors if one.label in labels]


def contest_of_traces(
    calibration: Trace, test: Trace, facts: Mapping[str, Any], registry: Registry, store: Store
) -> Contest:
    """Return what strategies are compared on, from two traces.

    Args:
        facts: what the manifest of the board says of the workload.
        store: where policy networks are.
    """
    fit, select = halve(Recorded(calibration, resolve_inputs(calibration, registry)))
    artifacts = policy_artifacts(store, {"trace": facts["recording"]["calibration"], "half": "fit"})
    return Contest(fit, select, Recorded(test, resolve_inputs(test, registry)), artifacts)
