"""Agreement of re-run networks with the committed ones: their logits, and the committed policies on them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bench_core.board.board import Board
from bench_core.board.traces import kept_trace, trace_path
from bench_core.errors import UsageError
from bench_core.plugins import Registry
from bench_core.run.plan import plan
from bench_core.run.score_cache import SCORED_SPLITS
from bench_core.run.shift_traces import read_conditions
from bench_core.run.suite import Suite
from bench_core.scoring.metrics import static_accuracy
from bench_core.scoring.scores import Recorded
from bench_core.store.local import Store
from bench_core.trace.trace import Trace, trace_from_tensors
from bench_core.workflows.reproduction.agreement import (
    Reproduction,
    changed_tables,
    compare_exactly,
    numerics_remark,
    tolerances,
)
from bench_core.workflows.reproduction.committed_policies import CommittedPolicies, ReplayedPolicies
from bench_core.workflows.reproduction.contract import (
    FLIPPED_SHARE,
    LOGIT,
    accuracy_allowance,
    is_empty,
    same_numerics,
    timestep_allowance,
)
from bench_core.workflows.reproduction.replayed_board import contest_of_traces, strategies_of

__all__ = ["TwoBoards", "compare_networks"]


@dataclass(frozen=True)
class TwoBoards:
    """A committed board and a new one from the same weights, each with its folder.

    Attributes:
        committed: the committed board.
        folder: of the committed board.
        made: the new board.
        place: folder of the new board.
        suite: of both boards.
        registry: the loaded plugins.
        store: holds policy networks, and the new traces if they are not stored with the new board.
        partly: both boards are a ``part_of`` those in their folders.
    """

    committed: Board
    folder: Path
    made: Board
    place: Path
    suite: Suite
    registry: Registry
    store: Store
    partly: bool = False

    def facts(self, board: Board, workload: str) -> Mapping[str, Any]:
        """Return the facts about a workload in a board's manifest."""
        found: Mapping[str, Any] = board.manifest["workloads"].get(workload, {})
        return found

    def new_trace(self, workload: str, split: str) -> Trace:
        """Return the trace of the new board; raise UsageError if there is none."""
        facts, path = self.facts(self.made, workload), trace_path(self.place, workload, split)
        digest = facts.get(f"{split}_trace")
        if path.exists():
            return kept_trace(path, digest)
        artifact = self.store.get("traces", str(facts.get("recording", {}).get(split)))
        if artifact is None or artifact.digest != digest:
            raise UsageError(f"{path}: no trace, and none in the store; `exitbench run --traces` keeps it there")
        return trace_from_tensors(artifact.tensors, artifact.header, str(path))

    def old_trace(self, workload: str, split: str) -> Trace | None:
        """Return the trace stored with the committed board, or None."""
        path = trace_path(self.folder, workload, split)
        return kept_trace(path, self.facts(self.committed, workload).get(f"{split}_trace")) if path.exists() else None


def compare_networks(result: Reproduction, sides: TwoBoards) -> None:
    """Compare a board whose networks were run again; adds to ``result``."""
    committed, made = sides.committed, sides.made
    _, changed = changed_tables(result, committed, made, sides.folder)
    environments = list(_environments(sides))
    strict = all(same_numerics(old, new, threads=True) for old, new in environments)
    if changed or not strict:
        old, new = next((pair for pair in environments if not same_numerics(*pair, threads=True)), environments[0])
        result.remarks.append(numerics_remark(old, new, strict=strict))
    if strict:
        compare_exactly(result, committed, made, changed, partly=sides.partly)
        result.drift += _other_digests(sides, ("weights", "data", "calibration_trace", "test_trace"))
        return
    result.drift += _other_digests(sides, ("weights", "data"))
    if result.drift:
        return
    largest = _Largest()
    for spec in sides.suite.workloads:
        result.drift += _compare_workload(result, sides, spec.name, largest)
    result.remarks.append(f"{largest}; allowed: {tolerances()}")
    result.remarks += _chosen_anew(committed, made)


def _environments(sides: TwoBoards) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yield the environments of both boards, and of each pair of their traces."""
    yield sides.committed.manifest["environment"], sides.made.manifest["environment"]
    for spec in sides.suite.workloads:
        both = [sides.facts(board, spec.name).get("recorded_with", {}) for board in (sides.committed, sides.made)]
        for split in SCORED_SPLITS if sides.facts(sides.committed, spec.name) else ():
            old, new = (side.get(split) or {} for side in both)
            yield old, new


def _other_digests(sides: TwoBoards, names: Sequence[str]) -> Iterator[str]:
    """Yield a line for each of these manifest entries that differs on the new board."""
    for spec in sides.suite.workloads:
        old, new = (sides.facts(board, spec.name) for board in (sides.committed, sides.made))
        for name in names if old else ():
            if old.get(name) != new.get(name):
                yield f"{spec.name}: {name}: expected {old.get(name)}, found {new.get(name)}"


@dataclass
class _Largest:
    """The largest differences seen: in points, and as a share of the average exit timestep."""

    static: float = 0.0
    accuracy: float = 0.0
    timesteps: float = 0.0
    rows: int = 0

    def __str__(self) -> str:
        """Return the differences as text."""
        return (
            f"committed policies at their committed knobs, {self.rows} rows: static accuracy differs by at most "
            f"{self.static:.2f} points, accuracy by {self.accuracy:.2f}, average exit timestep by {self.timesteps:.2%}"
        )


def _compare_workload(result: Reproduction, sides: TwoBoards, name: str, largest: _Largest) -> Iterator[str]:
    """Yield a line for every difference that networks with the same weights must not have."""
    old = sides.facts(sides.committed, name)
    if not old:
        return  # it failed when the board was made
    traces = {split: sides.new_trace(name, split) for split in SCORED_SPLITS}
    before = {split: sides.old_trace(name, split) for split in SCORED_SPLITS}
    for split, trace in traces.items():
        if (known := before[split]) is not None:
            for part in ("labels", "sample_ids"):
                if not torch.equal(getattr(known, part), getattr(trace, part)):
                    yield f"{name}: {part} of the {split} trace are other ones"
                    return
    if (known := before["test"]) is not None:
        flipped = _flipped(known, traces["test"])
        said = f"{name}: spikes flipped on {flipped} of {len(known)} test samples (a logit moved by over {LOGIT:g})"
        result.remarks.append(said)
        if flipped > max(1, FLIPPED_SHARE * len(known)):
            yield f"{said}, more than the {FLIPPED_SHARE:.0%} that rounding explains"
    yield from _compare_static(sides.committed, name, traces["test"], largest)
    if before["calibration"] is None:
        result.remarks.append(f"{name}: strategies are fitted anew, since the board has no calibration trace")
    contest = contest_of_traces(
        before["calibration"] or traces["calibration"], traces["test"], old, sides.registry, sides.store
    )
    entrants = strategies_of(sides.committed, plan(sides.suite, sides.registry).competitors)
    policies = CommittedPolicies.fitted(entrants, contest.fit, contest.artifacts)
    rows = _records(sides.committed.rows, name)
    yield from _compare_rows(rows, policies.on(contest.test), largest)
    if sides.committed.shift is not None:
        yield from _compare_conditions(result, sides, name, contest.test, policies, largest=largest)


def _compare_static(committed: Board, name: str, trace: Trace, largest: _Largest) -> Iterator[str]:
    table = committed.workloads[committed.workloads["workload"] == name]
    expected = json.loads(table["static_accuracy"].iloc[0])
    found = static_accuracy(trace).tolist()
    if len(expected) != len(found) or int(table["samples"].iloc[0]) != len(trace):
        yield f"{name}: the test trace is {trace!r:.60}, expected {len(expected)} timesteps"
        return
    for t, (before, after) in enumerate(zip(expected, found, strict=True), start=1):
        largest.static = max(largest.static, 100 * abs(before - after))
        if abs(before - after) > accuracy_allowance(len(trace)):
            yield f"{name}: static accuracy at t = {t}: expected {before}, found {after}"


def _compare_conditions(
    result: Reproduction,
    sides: TwoBoards,
    name: str,
    test: Recorded,
    policies: CommittedPolicies,
    *,
    largest: _Largest,
) -> Iterator[str]:
    """Yield a line for every row of shift.csv whose committed policy behaves differently on the new traces."""
    assert sides.suite.shift is not None and sides.committed.shift is not None
    (spec,) = (spec for spec in sides.suite.workloads if spec.name == name)
    conditions = read_conditions(
        sides.place,
        name,
        test,
        spec=sides.suite.shift,
        dataset=sides.registry.find("datasets", spec.dataset),
        digests=sides.facts(sides.made, name).get("shift", {}),
    )
    if conditions is None:
        result.remarks.append(
            f"{name}: shift.csv is not compared: traces under corruption are not in {sides.place}/traces"
        )
        return
    chosen = {(row["strategy"], row["operating_point"]): row["value"] for row in _records(sides.committed.rows, name)}
    rows = _records(sides.committed.shift, name)
    for condition in conditions:
        mine = [
            {**row, "value": chosen.get((row["strategy"], row["operating_point"]))}
            for row in rows
            if (row["corruption"], row["severity"]) == (condition.corruption, condition.severity)
        ]
        yield from _compare_rows(mine, policies.on(condition.recorded), largest, f", {condition.name}")


def _records(table: pd.DataFrame, workload: str) -> list[dict[str, Any]]:
    """Return the rows of a workload."""
    found = table[table["workload"] == workload].to_dict("records")
    return [{str(name): cell for name, cell in row.items()} for row in found]


def _compare_rows(
    rows: Sequence[Mapping[str, Any]], replayed: ReplayedPolicies, largest: _Largest, where: str = ""
) -> Iterator[str]:
    """Yield a line for every row whose committed policy behaves differently on the new trace."""
    trace = replayed.recorded.trace
    samples, timesteps = len(trace), trace.timesteps
    for row in rows:
        if is_empty(row["accuracy"]):
            continue
        key = f"{row['workload']}, {row['strategy']}, {row['operating_point']}{where}"
        outcome = replayed.outcome(row)
        if isinstance(outcome, str):
            yield f"{key}: at its committed knob: {outcome}"
            continue
        accuracy = int((outcome.predictions == trace.labels).sum()) / samples
        average = int(outcome.exit_timesteps.sum()) / samples
        expected = float(row["accuracy"]), float(row["average_exit_timestep"])
        apart = abs(accuracy - expected[0]), abs(average - expected[1])
        largest.rows += 1
        largest.accuracy = max(largest.accuracy, 100 * apart[0])
        largest.timesteps = max(largest.timesteps, apart[1] / expected[1])
        if apart[0] > accuracy_allowance(samples):
            yield f"{key}: accuracy at its committed knob: expected {expected[0]}, found {accuracy}"
        if apart[1] > timestep_allowance(expected[1], samples, timesteps):
            yield f"{key}: average exit timestep at its committed knob: expected {expected[1]}, found {average}"


def _flipped(before: Trace, after: Trace) -> int:
    """Return the number of samples with a logit that differs by more than rounding alone explains."""
    count = 0
    for start, logits in before.pieces():
        here = after.rows.read(start, start + len(logits)).double()
        count += int(((here - logits.double()).abs().amax((1, 2)) > LOGIT).sum())
    return count


def _chosen_anew(committed: Board, made: Board) -> Iterator[str]:
    """Describe new choices of operating points: not drift, since single spikes move the cheapest policy."""
    both = committed.rows.merge(
        made.rows, on=["workload", "strategy", "operating_point"], suffixes=("_before", "_after")
    )
    both = both[both["accuracy_before"].notna() & both["accuracy_after"].notna()]
    points = 100 * (both["accuracy_after"] - both["accuracy_before"]).abs()
    steps = (both["average_exit_timestep_after"] - both["average_exit_timestep_before"]).abs()
    for workload in dict.fromkeys(both["workload"]):
        mine = both["workload"] == workload
        other = mine & ((points > 0) | (steps > 0))
        if other.any():
            yield (
                f"{workload}: chosen anew, {int(other.sum())} of {int(mine.sum())} rows have other figures (up to "
                f"{points[other].max():.2f} points, {steps[other].max():.3f} timesteps): information, since a rule "
                "that takes the cheapest policy amplifies a flipped spike"
            )
