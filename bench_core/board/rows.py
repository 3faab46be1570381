"""Conversion of scored policies to rows: figures, intervals and ranks, in the columns of the schema."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from bench_core.board.schema import CURVE_COLUMNS, ROW_COLUMNS, WORKLOAD_COLUMNS, cost_columns
from bench_core.costs.models import CostModel
from bench_core.costs.operations import FirstLayer, Overhead
from bench_core.isolation.failures import attempted
from bench_core.knobs import in_json
from bench_core.replay.controller import static_outcome
from bench_core.scoring.comparisons import Comparison, Standing
from bench_core.scoring.metrics import (
    Reliability,
    area_share,
    fixed_hull,
    flips,
    histogram_matched_accuracy,
    reference_points,
    saving_realised,
    static_accuracy,
)
from bench_core.scoring.operating_points import OperatingPoint
from bench_core.scoring.scores import Entry, ScoredPolicy, WorkloadScores, mean_costs, operation_counts, policy_samples
from bench_core.trace.trace import Trace

__all__ = ["curve_table", "row_table", "workload_table"]

DIGITS = 16  # of a sha256, in a row


def row_table(
    suite: str,
    workloads: Sequence[WorkloadScores],
    points: Sequence[OperatingPoint],
    cost_models: Sequence[CostModel],
    comparisons: Mapping[tuple[str, str], Comparison],
    *,
    first_layer: FirstLayer,
    failed: dict[str, str],
) -> pd.DataFrame:
    """Return a row for every strategy at every operating point, ranked within workload and operating point.

    Args:
        suite: name of the suite.
        workloads: scored workloads.
        points: the operating points.
        cost_models: the cost models that give energies.
        comparisons: by workload and operating point.
        first_layer: when a first layer under constant input is charged.
        failed: receives, by cost model, why it gave no result.
    """
    rows: list[dict[str, Any]] = []
    board = partial(_Board, cost_models=cost_models, first_layer=first_layer, failed=failed)
    for workload in workloads:
        for row in _workload_rows(workload, points, comparisons, board):
            rows.append({"suite": suite, "workload": workload.name, **row})
    names = list(ROW_COLUMNS)
    for model in cost_models:
        names[names.index("weights") : names.index("weights")] = _cost_columns(model)
    table = pd.DataFrame(rows, columns=names)
    return table.astype(dict.fromkeys(("rank", "wins", "losses", "ties", "samples"), "Int64"))


def _workload_rows(
    workload: WorkloadScores,
    points: Sequence[OperatingPoint],
    comparisons: Mapping[tuple[str, str], Comparison],
    board: Callable[[WorkloadScores, Trace], "_Board"],
) -> list[dict[str, Any]]:
    if workload.test is None:
        return [_failed(entry, point) for entry in workload.entries for point in points]
    figures = board(workload, workload.test)
    rows = []
    for index, point in enumerate(points):
        standings = comparisons[workload.name, str(point)].standings
        for entry in workload.entries:
            if entry.scores is None:
                rows.append(_failed(entry, point))
            else:
                make = partial(figures.row, entry, entry.scores.policies[index], standings.get(entry.label))
                row = attempted(f"{workload.name}, {entry.label}", make)
                rows.append(_failed(replace(entry, problem=row), point) if isinstance(row, str) else row)
    for row in rows:
        row.update({name: digest[:DIGITS] for name, digest in workload.digests.items()})
    return rows


def _cost_columns(model: CostModel) -> list[str]:
    """Return the columns of energy, its share of static T's, EDP and its share."""
    return list(cost_columns(model.label, model.unit, model.latency_unit))


def _failed(entry: Entry, point: OperatingPoint) -> dict[str, Any]:
    return {"strategy": entry.label, "operating_point": str(point), "status": entry.problem, "knob": entry.knob}


class _Board:
    """The rows of one workload and the values they share."""

    def __init__(
        self,
        workload: WorkloadScores,
        test: Trace,
        cost_models: Sequence[CostModel],
        first_layer: FirstLayer,
        failed: dict[str, str],
    ) -> None:
        """Compute the values that all rows share."""
        self._workload, self._test = workload, test
        self._cost_models, self._first_layer, self._failed = cost_models, first_layer, failed
        self._static = static_accuracy(test)
        counts = operation_counts(test, static_outcome(test), Overhead(), first_layer)
        self._static_costs = {model.label: mean_costs(model, counts, failed) for model in cost_models}
        self._lower_bound = reference_points(test.correct).lower_bound
        self._area_shares = {
            entry.label: area_share([(average, accuracy) for _, average, accuracy in entry.scores.curve], test.correct)
            for entry in workload.entries
            if entry.scores
        }

    def row(self, entry: Entry, policy: ScoredPolicy, standing: Standing | None) -> dict[str, Any]:
        """Return the row of one strategy at one operating point; without figures if the policy has no outcome."""
        assert entry.scores is not None
        row: dict[str, Any] = {
            "strategy": entry.label,
            "operating_point": str(policy.point),
            "status": "fallback: static T" if policy.status == "fallback" else policy.status,
            "note": self._workload.note,
            "knob": entry.knob,
            "value": policy.value,
            "parameters": json.dumps(in_json(entry.scores.parameters), sort_keys=True),
        }
        if policy.outcome is None or standing is None:
            return row
        did = policy_samples(self._test, policy.outcome)
        right, exits = did.right, did.exit_timesteps
        samples, timesteps = len(right), self._test.timesteps
        accuracy, average = int(right.sum()) / samples, int(exits.sum()) / samples
        histogram = np.bincount(exits, minlength=timesteps + 1)[1:]
        saves = policy.point.kind != "budget" and not standing.missed
        assert policy.select_accuracy is not None and policy.select_timestep is not None
        row |= {
            "rank": standing.rank,
            "wins": standing.wins,
            "losses": standing.losses,
            "ties": standing.ties,
            "samples": samples,
            "accuracy": accuracy,
            "delta_points": 100 * (int(right.sum()) - int(self._test.correct[:, -1].sum())) / samples,
            "average_exit_timestep": average,
            "same_histogram_accuracy": histogram_matched_accuracy(policy.outcome.exit_timesteps, self._static),
            "fixed_hull_accuracy": fixed_hull(self._static, average),
            "saving_realised": saving_realised(average, self._lower_bound, timesteps) if saves else None,
            "area_share": self._area_shares[entry.label],
            "harmed_share": int(did.harmed.sum()) / samples,
            "helped_share": int(did.helped.sum()) / samples,
            "forced_share": int(policy.outcome.forced.sum()) / samples,
            "exit_histogram": json.dumps(histogram.tolist()),
            "select_accuracy": policy.select_accuracy,
            "select_average_exit_timestep": policy.select_timestep,
            "gap_points": 100 * (policy.select_accuracy - accuracy),
            "gap_timesteps": policy.select_timestep - average,
        }
        row["accuracy_low"], row["accuracy_high"] = standing.accuracy
        row["average_exit_timestep_low"], row["average_exit_timestep_high"] = standing.exit_timestep
        if policy.status == "fallback" and policy.point.kind == "risk":
            _annotate(row, "nothing certified")
        if standing.missed:
            _annotate(row, "over budget on test" if policy.point.kind == "budget" else "missed target")
        counts = operation_counts(self._test, policy.outcome, policy.overhead, self._first_layer)
        row["first_layer"] = self._first_layer
        for model in self._cost_models:
            if (costs := mean_costs(model, counts, self._failed)) is not None:
                static = self._static_costs[model.label] or (0.0, 0.0)
                shares = [
                    cost / of_static if of_static else None for cost, of_static in zip(costs, static, strict=True)
                ]
                row |= zip(_cost_columns(model), (costs[0], shares[0], costs[1], shares[1]), strict=True)
        return row


def _annotate(row: dict[str, Any], text: str) -> None:
    row["note"] = f"{row['note']}; {text}" if row["note"] else text


def workload_table(workloads: Sequence[WorkloadScores], diagrams: Mapping[str, Reliability]) -> pd.DataFrame:
    """Return static accuracy and reference points of every recorded workload; ``diagrams``: reliability by name."""
    rows = []
    for workload in workloads:
        if workload.test is not None:
            to_wrong, to_right = flips(workload.test.correct)
            rows.append(
                {
                    "workload": workload.name,
                    "timesteps": workload.test.timesteps,
                    "samples": len(workload.test),
                    "static_accuracy": json.dumps(static_accuracy(workload.test).tolist()),
                    **vars(reference_points(workload.test.correct)),
                    "calibration_error": json.dumps(diagrams[workload.name].calibration_error.tolist()),
                    "flips_to_wrong": json.dumps(to_wrong.tolist()),
                    "flips_to_right": json.dumps(to_right.tolist()),
                }
            )
    return pd.DataFrame(rows, columns=list(WORKLOAD_COLUMNS))


def curve_table(workloads: Sequence[WorkloadScores]) -> pd.DataFrame:
    """Return the curve of every strategy on test, at most 100 policies each."""
    rows = [
        (workload.name, entry.label, entry.knob, value, average, accuracy)
        for workload in workloads
        for entry in workload.entries
        if entry.scores
        for value, average, accuracy in entry.scores.curve
    ]
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS))
