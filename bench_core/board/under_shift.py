"""Policies under corruption: fitted and chosen on clean data, replayed on corrupted test samples.

A policy's promise is judged on the same corrupted samples, with the same test as on the board: iso-accuracy d promises
at least the accuracy of static T minus d points, a budget b at most b T timesteps, risk d at most d points harmed. It
counts as broken if the 95 % interval excludes it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench_core.board.schema import SHIFT_COLUMNS
from bench_core.isolation.failures import guarded
from bench_core.replay.controller import Outcome, replay_policy
from bench_core.scoring.comparisons import Drawn, missed, right_at_end
from bench_core.scoring.scores import Entry, PolicySamples, Recorded, ScoredPolicy, WorkloadScores, policy_samples
from bench_core.scoring.statistics import interval
from bench_core.util.progress import progress

__all__ = ["CLEAN", "REMARK", "Condition", "shift_table"]

CLEAN = "clean"  # the unmodified samples, severity 0
REMARK = (
    "The same policies, chosen on clean calibration data, on {samples} test samples under corruption; severity 0 is "
    "the same samples as they are. A promise is broken where it is significantly missed on these samples: accuracy at "
    "least that of static T under the same corruption less d points (iso-accuracy), at most b T timesteps (budget), at "
    "most d points harmed (risk). Δ is accuracy minus that of static T, in points. Where several policies stand in one "
    "line, figures are their means, and “broken” counts them. shift.csv has every policy."
)
_DIGITS = 16


@dataclass(frozen=True)
class Condition:
    """Test samples under one corruption: their trace and inputs."""

    corruption: str
    severity: int
    recorded: Recorded

    @property
    def name(self) -> str:
        """Name in file names and manifests."""
        return f"{self.corruption}-{self.severity}"


@dataclass(frozen=True)
class _Replayed:
    """One policy under one condition: its per-sample results, or why they are unknown."""

    entry: Entry
    policy: ScoredPolicy
    samples: PolicySamples | None
    problem: str = ""


def shift_table(
    workloads: Sequence[WorkloadScores],
    conditions: Mapping[str, Sequence[Condition] | str],
    *,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Return a row for every policy of the board under every condition.

    Args:
        workloads: scored on clean data; policies not chosen there have no row.
        conditions: by workload: the conditions to replay its policies on, or a message why there are none.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
    """
    rows: list[dict[str, Any]] = []
    for workload in workloads:
        found = conditions.get(workload.name, ())
        if isinstance(found, str):
            rows.append({"workload": workload.name, "status": found})
            continue
        with progress(f"shift {workload.name}", len(found), "conditions") as advance:
            for condition in found:
                rows += _rows(workload, condition, resamples=resamples, seed=seed)
                advance(1, condition.name)
    table = pd.DataFrame(rows, columns=list(SHIFT_COLUMNS))
    return table.astype(dict.fromkeys(("severity", "samples"), "Int64"))


def _rows(workload: WorkloadScores, condition: Condition, *, resamples: int, seed: int) -> Iterator[dict[str, Any]]:
    trace = condition.recorded.trace
    replayed = list(_replay(workload, condition))
    at_end = right_at_end(trace)
    columns = [(at_end, False)]
    for one in replayed:
        if one.samples is not None:
            did = one.samples
            columns += [(did.right, False), (did.exit_timesteps, False), (did.harmed, False)]
    drawn = Drawn(columns, resamples=resamples, seed=seed)
    static = int(at_end.sum())
    for one in replayed:
        row = {
            "workload": workload.name,
            "strategy": one.entry.label,
            "operating_point": str(one.policy.point),
            "corruption": condition.corruption,
            "severity": condition.severity,
            "status": one.problem or ("fallback: static T" if one.policy.status == "fallback" else one.policy.status),
            "samples": len(trace),
            "static_accuracy": static / len(trace),
            "trace": trace.digest[:_DIGITS],
        }
        if one.samples is not None:
            did = one.samples
            change = interval(drawn.means(did.right) - drawn.means(at_end))
            exits = interval(drawn.means(did.exit_timesteps))
            row |= {
                "accuracy": int(did.right.sum()) / len(trace),
                "delta_points": 100 * (int(did.right.sum()) - static) / len(trace),
                "delta_points_low": 100 * change[0],
                "delta_points_high": 100 * change[1],
                "average_exit_timestep": int(did.exit_timesteps.sum()) / len(trace),
                "average_exit_timestep_low": exits[0],
                "average_exit_timestep_high": exits[1],
                "harmed_share": int(did.harmed.sum()) / len(trace),
                "promise": "broken" if missed(one.policy.point, trace, did, drawn) else "kept",
            }
        yield row


def _replay(workload: WorkloadScores, condition: Condition) -> Iterator[_Replayed]:
    trace = condition.recorded.trace
    for entry in workload.entries:
        done: dict[Any, Outcome | str] = {}  # operating points often choose the same policy
        for policy in entry.scores.policies if entry.scores else ():
            if policy.make is None:
                continue
            key = (policy.status, policy.value)
            if key not in done:
                done[key] = _outcome(f"{workload.name}, {entry.label}, {condition.name}", policy, condition)
            outcome = done[key]
            if isinstance(outcome, str):
                yield _Replayed(entry, policy, None, outcome)
            else:
                yield _Replayed(entry, policy, policy_samples(trace, outcome))


def _outcome(what: str, scored: ScoredPolicy, condition: Condition) -> Outcome | str:
    """Return where the policy stopped each sample, or a message why that is unknown."""

    def replay() -> Outcome:
        assert scored.policy is not None
        return replay_policy(scored.policy, condition.recorded.trace, condition.recorded.inputs)

    found: Outcome | str = guarded(what, replay)
    return found
