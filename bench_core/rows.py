"""Scored policies to rows: figures, intervals and ranks, in the columns of the dictionary."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from bench_core.columns import CURVE_COLUMNS, ROW_COLUMNS, WORKLOAD_COLUMNS, energy_columns
from bench_core.costs.models import CostModel
from bench_core.costs.operations import Array
from bench_core.exits import NeverExit
from bench_core.metrics import fixed_hull, histogram_matched_accuracy, reference_points, static_accuracy
from bench_core.replay import replay_policy
from bench_core.scoring import ScoredPolicy, StrategyScores, mean_energy, operation_counts
from bench_core.selection import OperatingPoint
from bench_core.statistics import bootstrap_means, interval, significantly_less, significantly_more
from bench_core.trace import Trace

__all__ = ["Entry", "WorkloadScores", "curve_table", "row_table", "workload_table"]

DIGITS = 16  # of a sha256, in a row


@dataclass(frozen=True)
class Entry:
    """One strategy on one workload: what it scored, or why it has no scores."""

    label: str
    knob: str
    scores: StrategyScores | None
    problem: str = ""


@dataclass(frozen=True)
class WorkloadScores:
    """All entries of one workload; ``test`` is None where the workload itself failed."""

    name: str
    entries: Sequence[Entry]
    test: Trace | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def row_table(
    suite: str,
    workloads: Sequence[WorkloadScores],
    points: Sequence[OperatingPoint],
    cost_models: Sequence[CostModel],
    *,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Every strategy at every operating point, a row each, ranked within workload and operating point."""
    rows: list[dict[str, Any]] = []
    for workload in workloads:
        for row in _workload_rows(workload, points, cost_models, resamples, seed):
            rows.append({"suite": suite, "workload": workload.name, **row})
    names = list(ROW_COLUMNS)
    for model in cost_models:
        names[names.index("weights") : names.index("weights")] = energy_columns(model.name)
    table = pd.DataFrame(rows, columns=names)
    return table.astype({"rank": "Int64", "samples": "Int64"})


def _workload_rows(
    workload: WorkloadScores,
    points: Sequence[OperatingPoint],
    cost_models: Sequence[CostModel],
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    if workload.test is None:
        return [_failed(entry, point) for entry in workload.entries for point in points]
    board = _Board(workload, workload.test, cost_models, resamples, seed)
    rows = []
    for index, point in enumerate(points):
        contenders: list[tuple[dict[str, Any], ScoredPolicy | None]] = []
        for entry in workload.entries:
            if entry.scores is None:
                contenders.append((_failed(entry, point), None))
            else:
                policy = entry.scores.policies[index]
                contenders.append((board.row(entry, policy), policy))
        board.rank(point, contenders)
        rows += [row for row, _ in contenders]
    for row in rows:
        row.update({name: digest[:DIGITS] for name, digest in workload.digests.items()})
    return rows


def _failed(entry: Entry, point: OperatingPoint) -> dict[str, Any]:
    return {"strategy": entry.label, "operating_point": str(point), "status": entry.problem, "knob": entry.knob}


class _Board:
    """The rows of one workload: bootstrap means are drawn once for all of its policies."""

    def __init__(
        self, workload: WorkloadScores, test: Trace, cost_models: Sequence[CostModel], resamples: int, seed: int
    ) -> None:
        self._workload, self._test, self._cost_models = workload, test, cost_models
        self._static = static_accuracy(test)
        outcome = replay_policy(NeverExit(), test)
        counts = operation_counts(test, outcome, NeverExit())
        self._static_energy = {model.name: mean_energy(model, counts) for model in cost_models}
        policies = [p for e in workload.entries if e.scores for p in e.scores.policies if p.outcome is not None]
        columns: dict[bytes, Array] = {}
        for policy in policies:
            for values in self._columns(policy):
                columns.setdefault(values.tobytes(), values)
        last = test.correct[:, -1].numpy().astype(np.int64)
        columns.setdefault(last.tobytes(), last)
        means = bootstrap_means(np.stack(list(columns.values()), axis=1), resamples=resamples, seed=seed)
        self._means = dict(zip(columns, means.T, strict=True))
        self._static_means = self._means[last.tobytes()]

    def _columns(self, policy: ScoredPolicy) -> tuple[Array, Array]:
        """Right or wrong, and exit timestep, of every sample, int64 [N] each."""
        assert policy.outcome is not None
        right = (policy.outcome.predictions == self._test.labels).numpy().astype(np.int64)
        return right, policy.outcome.exit_timesteps.numpy()

    def _bootstrapped(self, policy: ScoredPolicy) -> tuple[Array, Array]:
        """Bootstrap means of accuracy and average exit timestep, [R] each."""
        right, exits = self._columns(policy)
        return self._means[right.tobytes()], self._means[exits.tobytes()]

    def row(self, entry: Entry, policy: ScoredPolicy) -> dict[str, Any]:
        assert entry.scores is not None
        row: dict[str, Any] = {
            "strategy": entry.label,
            "operating_point": str(policy.point),
            "status": "fallback: static T" if policy.status == "fallback" else policy.status,
            "note": self._workload.note,
            "knob": entry.knob,
            "value": policy.value,
            "parameters": json.dumps(entry.scores.parameters, sort_keys=True),
        }
        if policy.outcome is None or policy.policy is None:
            return row
        right, exits = self._columns(policy)
        samples = len(right)
        accuracy, average = int(right.sum()) / samples, int(exits.sum()) / samples
        accuracy_means, exit_means = self._bootstrapped(policy)
        histogram = np.bincount(exits, minlength=self._test.timesteps + 1)[1:]
        assert policy.select_accuracy is not None and policy.select_timestep is not None
        row |= {
            "samples": samples,
            "accuracy": accuracy,
            "delta_points": 100 * (int(right.sum()) - int(self._test.correct[:, -1].sum())) / samples,
            "average_exit_timestep": average,
            "same_histogram_accuracy": histogram_matched_accuracy(policy.outcome.exit_timesteps, self._static),
            "fixed_hull_accuracy": fixed_hull(self._static, average),
            "forced_share": int(policy.outcome.forced.sum()) / samples,
            "exit_histogram": json.dumps(histogram.tolist()),
            "select_accuracy": policy.select_accuracy,
            "select_average_exit_timestep": policy.select_timestep,
            "gap_points": 100 * (policy.select_accuracy - accuracy),
            "gap_timesteps": policy.select_timestep - average,
        }
        row["accuracy_low"], row["accuracy_high"] = interval(accuracy_means)
        row["average_exit_timestep_low"], row["average_exit_timestep_high"] = interval(exit_means)
        assert policy.counts is not None
        for model in self._cost_models:
            energy, static = mean_energy(model, policy.counts), self._static_energy[model.name]
            joules, share = energy_columns(model.name)
            row[joules] = energy
            row[share] = energy / static if energy is not None and static else None
        return row

    def rank(self, point: OperatingPoint, contenders: Sequence[tuple[dict[str, Any], ScoredPolicy | None]]) -> None:
        """Fill in rank and note of the rows that have figures.

        Iso-accuracy: rows that are significantly below static T minus d missed the target and come after the others,
        which are ranked by average exit timestep. Budget: by accuracy.
        """
        playing = [(row, policy) for row, policy in contenders if policy is not None and policy.outcome is not None]
        means = [self._bootstrapped(policy) for _, policy in playing]
        if point.kind == "budget":
            allowance = point.value * self._test.timesteps
            for i, (row, _) in enumerate(playing):
                row["rank"] = 1 + sum(significantly_more(other, means[i][0]) for other, _ in means)
                if interval(means[i][1])[0] > allowance:
                    _annotate(row, "over budget on test")
            return
        target = self._static_means - point.value / 100
        missed = [significantly_less(accuracy, target) for accuracy, _ in means]
        kept = missed.count(False)
        for i, (row, _) in enumerate(playing):
            rivals = [exits for (_, exits), other in zip(means, missed, strict=True) if other == missed[i]]
            row["rank"] = 1 + sum(significantly_less(exits, means[i][1]) for exits in rivals)
            if missed[i]:
                row["rank"] += kept
                _annotate(row, "missed target")


def _annotate(row: dict[str, Any], text: str) -> None:
    row["note"] = f"{row['note']}; {text}" if row["note"] else text


def workload_table(workloads: Sequence[WorkloadScores]) -> pd.DataFrame:
    """Static accuracy and reference points of every workload that was recorded."""
    rows = []
    for workload in workloads:
        if workload.test is not None:
            static = [float(x) for x in static_accuracy(workload.test)]
            rows.append(
                {
                    "workload": workload.name,
                    "timesteps": workload.test.timesteps,
                    "samples": len(workload.test),
                    "static_accuracy": json.dumps(static),
                    **vars(reference_points(workload.test.correct)),
                }
            )
    return pd.DataFrame(rows, columns=list(WORKLOAD_COLUMNS))


def curve_table(workloads: Sequence[WorkloadScores]) -> pd.DataFrame:
    """The curve of every strategy on test, at most 100 policies each."""
    rows = [
        (workload.name, entry.label, entry.knob, value, average, accuracy)
        for workload in workloads
        for entry in workload.entries
        if entry.scores
        for value, average, accuracy in entry.scores.curve
    ]
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS))
