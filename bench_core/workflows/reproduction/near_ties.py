"""Differences of two boards made from the same logits that are due to samples with a score close to a threshold.

Kernels round differently, so a sample whose score is within ``RELATIVE`` of a threshold may stop elsewhere. Such a row
may differ by as many samples as are that close, and so may everything derived from it: its pairs, its classes, ranks.
A policy network rounds too: its decisions are held to the contract for networks.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench_core.board.board import Board
from bench_core.replay.controller import Outcome
from bench_core.workflows.reproduction.committed_policies import ReplayedPolicies, looks_at_inputs
from bench_core.workflows.reproduction.contract import accuracy_allowance, is_empty, timestep_allowance
from bench_core.workflows.reproduction.differences import Difference

__all__ = ["Excuses", "excuse"]

RowKey = tuple[str, str, str]
_STANDING = frozenset({"rank", "wins", "losses", "ties"})
_ADJUSTED = frozenset({"accuracy_p_holm", "timesteps_p_holm"})  # over all pairs of a workload and an operating point


@dataclass(frozen=True)
class Excuses:
    """The allowed and the remaining differences.

    Attributes:
        drift: differences that rounding does not explain.
        rows: number of rows that rounding explains.
        samples: number of samples concerned, over all of these rows.
        networks: number of rows that differ by a policy network's decisions.
    """

    drift: list[Difference]
    rows: int = 0
    samples: int = 0
    networks: int = 0


def excuse(
    found: Sequence[Difference],
    committed: Board,
    sides: Callable[[str], Mapping[str, ReplayedPolicies]],
) -> Excuses:
    """Separate differences that rounding explains from drift.

    Args:
        found: between the committed board and one recomputed from the same traces.
        committed: the committed board.
        sides: (workload) -> its policies on ``fit``, ``select`` and ``test``.
    """
    by_row: dict[RowKey, list[Difference]] = {}
    by_curve: dict[tuple[str, str], list[Difference]] = {}
    for one in found:
        if one.table == "rows":
            by_row.setdefault(_row_key(one.row), []).append(one)
        elif one.table == "curves":
            by_curve.setdefault((str(one.row["workload"]), str(one.row["strategy"])), []).append(one)
    curves = {key for key in by_curve if _curve_may_differ(key, committed, sides(key[0])["test"])}
    rows: dict[RowKey, int] = {}
    networks: set[RowKey] = set()
    for key, lines in by_row.items():
        columns = {one.column for one in lines} - _STANDING
        if "" in columns:
            continue  # the row is missing or new
        if columns <= {"area_share"}:
            if not columns or key[:2] in curves:
                rows[key] = 0
            continue
        samples = _samples_that_may_differ(lines[0], sides(key[0]))
        if samples is not None:
            rows[key] = samples
        elif _network_may_differ(lines[0].row, sides(key[0])["test"]):
            networks.add(key)
    moved = {key for key, lines in by_row.items() if {one.column for one in lines} - _STANDING}
    excused = (rows.keys() & moved) | networks
    places = {(workload, point) for workload, _, point in excused}
    drift = [one for one in found if not _follows(one, excused, curves, places)]
    return Excuses(drift, len(rows.keys() & moved), sum(rows.values()), len(networks))


def _row_key(row: Mapping[str, Any]) -> RowKey:
    return str(row["workload"]), str(row["strategy"]), str(row["operating_point"])


def _follows(
    one: Difference, rows: Iterable[RowKey], curves: set[tuple[str, str]], places: set[tuple[str, str]]
) -> bool:
    """Return whether a difference belongs to, or is derived from, excused rows or curves."""
    row, rows = one.row, set(rows)
    workload, point = str(row.get("workload")), str(row.get("operating_point"))
    if one.table == "curves":
        return (workload, str(row["strategy"])) in curves
    if one.table in ("summary", "seeds"):
        return any(known[1] == point for known in places)
    if one.table == "pairwise" and (workload, str(row["rival"]), point) in rows:
        return True
    if one.table in ("rows", "pairwise", "classes", "shift") and (workload, str(row["strategy"]), point) in rows:
        return True
    standing = one.table == "rows" and one.column in _STANDING
    adjusted = one.table == "pairwise" and one.column in _ADJUSTED
    return (standing or adjusted) and (workload, point) in places


def _samples_that_may_differ(one: Difference, sides: Mapping[str, ReplayedPolicies]) -> int | None:
    """Return how many test samples are near the threshold if that explains a row's difference, otherwise None.

    It does if, on any side, samples are near the threshold of the committed policy or of the one chosen instead, and
    the committed policy does what its row says, apart from such samples on test.
    """
    row, found = one.row, one.found
    if found is None or not (_ran(row) and _ran(found)):
        return None
    near = {name: side.undecided(row) for name, side in sides.items()}
    if not any(near.values()) and not any(side.undecided(found) for side in sides.values()):
        return None
    outcome = sides["test"].outcome(row)
    if isinstance(outcome, str) or not _within(outcome, row, sides["test"], near["test"]):
        return None
    return near["test"]


def _within(outcome: Outcome, row: Mapping[str, Any], side: ReplayedPolicies, samples: int) -> bool:
    """Return whether an outcome differs from a row's figures by at most ``samples`` samples."""
    trace = side.recorded.trace
    histogram = np.bincount(outcome.exit_timesteps.numpy(), minlength=trace.timesteps + 1)[1:]
    committed = np.array(json.loads(row["exit_histogram"]))
    right = int((outcome.predictions == trace.labels).sum())
    moved = np.abs(histogram - committed).sum() / 2
    return bool(moved <= samples and abs(right - round(float(row["accuracy"]) * len(trace))) <= samples)


def _network_may_differ(row: Mapping[str, Any], side: ReplayedPolicies) -> bool:
    strategy = side.committed.strategies.get(str(row["strategy"]))
    if strategy is None or not looks_at_inputs(strategy) or not _ran(row):
        return False
    outcome = side.outcome(row)
    return not isinstance(outcome, str) and _agrees(outcome, row, side)


def _agrees(outcome: Outcome, row: Mapping[str, Any], side: ReplayedPolicies) -> bool:
    """Return whether an outcome agrees with a row's figures under the contract for networks."""
    trace = side.recorded.trace
    accuracy = float((outcome.predictions == trace.labels).double().mean())
    average = float(outcome.exit_timesteps.double().mean())
    expected = float(row["accuracy"]), float(row["average_exit_timestep"])
    close = abs(accuracy - expected[0]) <= accuracy_allowance(len(trace))
    return close and abs(average - expected[1]) <= timestep_allowance(expected[1], len(trace), trace.timesteps)


def _curve_may_differ(key: tuple[str, str], committed: Board, side: ReplayedPolicies) -> bool:
    """Return whether every committed point of a curve is what its knob gives, apart from samples near the threshold."""
    table = committed.curves
    mine = table[(table["workload"] == key[0]) & (table["strategy"] == key[1])].to_dict("records")
    points = [{str(name): cell for name, cell in point.items()} for point in mine]
    samples, near = len(side.recorded.trace), 0
    for point in points:
        outcome = side.outcome(point)
        if isinstance(outcome, str):
            return False
        undecided = side.undecided(point)
        near += undecided
        right = int((outcome.predictions == side.recorded.trace.labels).sum())
        average = float(outcome.exit_timesteps.double().mean())
        steps = undecided * (side.recorded.trace.timesteps - 1) / samples
        if abs(right / samples - float(point["accuracy"])) > undecided / samples + 1e-12:
            return False
        if abs(average - float(point["average_exit_timestep"])) > steps + 1e-9:
            return False
    return near > 0 or looks_at_inputs(side.committed.strategies[key[1]])


def _ran(row: Mapping[str, Any]) -> bool:
    """Return whether a row has figures."""
    return not is_empty(row["accuracy"])
