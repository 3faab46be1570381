"""All deterministic tables of a board from scored workloads: rows, curves, pairs, classes, reliability, summary."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench_core.board.rows import curve_table, row_table, workload_table
from bench_core.board.schema import (
    CLASS_COLUMNS,
    CURVE_COLUMNS,
    PAIRWISE_COLUMNS,
    RELIABILITY_COLUMNS,
    SUMMARY_COLUMNS,
    WORKLOAD_COLUMNS,
)
from bench_core.costs.models import CostModel
from bench_core.costs.operations import FirstLayer
from bench_core.isolation.failures import attempted
from bench_core.scoring.comparisons import Comparison, compare_workloads
from bench_core.scoring.metrics import BINS, Reliability, reliability
from bench_core.scoring.operating_points import OperatingPoint
from bench_core.scoring.scores import WorkloadScores, policy_samples

__all__ = ["board_tables", "class_table", "pairwise_table", "reliability_table", "summary_table"]

_OUTCOMES = ("wins", "losses", "ties")


def board_tables(
    suite: str,
    workloads: Sequence[WorkloadScores],
    points: Sequence[OperatingPoint],
    cost_models: Sequence[CostModel],
    *,
    first_layer: FirstLayer = "once",
    resamples: int,
    seed: int,
    problems: list[str] | None = None,
) -> dict[str, pd.DataFrame]:
    """Return every table that is a function of traces and policies, by name. A table that fails is empty.

    Args:
        suite: name of the suite.
        workloads: scored workloads.
        points: the operating points.
        cost_models: the cost models that give energies.
        first_layer: when a first layer under constant input is charged.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        problems: receives why tables are empty and why cost models failed.
    """
    problems = [] if problems is None else problems

    def table(name: str, columns: Iterable[str], make: Callable[..., pd.DataFrame], *made_from: Any) -> pd.DataFrame:
        made = attempted(f"table {name}", make, *made_from)
        if isinstance(made, str):
            problems.append(f"table {name}: {made}")
        return made if isinstance(made, pd.DataFrame) else pd.DataFrame(columns=list(columns))

    comparisons = compare_workloads(workloads, points, resamples=resamples, seed=seed)
    failed: dict[str, str] = {}
    rows = row_table(suite, workloads, points, cost_models, comparisons, first_layer=first_layer, failed=failed)
    problems += failed.values()
    diagrams = {workload.name: reliability(workload.test) for workload in workloads if workload.test is not None}
    return {
        "rows": rows,
        "workloads": table("workloads", WORKLOAD_COLUMNS, workload_table, workloads, diagrams),
        "curves": table("curves", CURVE_COLUMNS, curve_table, workloads),
        "pairwise": table("pairwise", PAIRWISE_COLUMNS, pairwise_table, comparisons),
        "classes": table("classes", CLASS_COLUMNS, class_table, workloads),
        "reliability": table("reliability", RELIABILITY_COLUMNS, reliability_table, diagrams),
        "summary": table("summary", SUMMARY_COLUMNS, summary_table, rows),
    }


def pairwise_table(comparisons: Mapping[tuple[str, str], Comparison]) -> pd.DataFrame:
    """Return every pair of rows of one workload and operating point."""
    records = [
        {"workload": workload, "operating_point": point, **pair}
        for (workload, point), comparison in comparisons.items()
        for pair in comparison.pairs
    ]
    return pd.DataFrame(records, columns=list(PAIRWISE_COLUMNS))


def class_table(workloads: Sequence[WorkloadScores]) -> pd.DataFrame:
    """Return the effect of early exits on each class; classes without test samples are omitted."""
    records: list[dict[str, Any]] = []
    for workload in workloads:
        if workload.test is None:
            continue
        labels, classes = workload.test.labels.numpy(), workload.test.classes
        held = np.bincount(labels, minlength=classes)
        static = np.bincount(labels[workload.test.correct[:, -1].numpy()], minlength=classes)
        for entry in workload.entries:
            for policy in entry.scores.policies if entry.scores else ():
                if policy.outcome is None:
                    continue
                did = policy_samples(workload.test, policy.outcome)
                right, exits, harmed, helped = (
                    np.bincount(labels, weights=values, minlength=classes).astype(np.int64)
                    for values in (did.right, did.exit_timesteps, did.harmed, did.helped)
                )
                records += [
                    {
                        "workload": workload.name,
                        "strategy": entry.label,
                        "operating_point": str(policy.point),
                        "class": k,
                        "samples": int(held[k]),
                        "static_accuracy": int(static[k]) / int(held[k]),
                        "accuracy": int(right[k]) / int(held[k]),
                        "delta_points": 100 * int(right[k] - static[k]) / int(held[k]),
                        "harmed": int(harmed[k]),
                        "helped": int(helped[k]),
                        "average_exit_timestep": int(exits[k]) / int(held[k]),
                    }
                    for k in range(classes)
                    if held[k]
                ]
    return pd.DataFrame(records, columns=list(CLASS_COLUMNS))


def reliability_table(diagrams: Mapping[str, Reliability]) -> pd.DataFrame:
    """Return the reliability diagram of every workload at every timestep; empty bins have only a count."""
    records = []
    for name, diagram in diagrams.items():
        for t in range(len(diagram.samples)):
            for b in range(BINS):
                records.append(
                    {
                        "workload": name,
                        "timestep": t + 1,
                        "bin": b + 1,
                        "samples": int(diagram.samples[t, b]),
                        "confidence": float(diagram.confidence[t, b]),
                        "accuracy": float(diagram.accuracy[t, b]),
                    }
                )
    return pd.DataFrame(records, columns=list(RELIABILITY_COLUMNS))


def summary_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return every strategy at every operating point over all workloads in which it has a rank, from rows.csv alone.

    Strategies ranked on more workloads come first, then those of lower average rank.
    """
    records: list[dict[str, Any]] = []
    for point, at_point in rows[rows["rank"].notna()].groupby("operating_point", sort=False):
        found = []
        for strategy, own in at_point.groupby("strategy", sort=False):
            ranks = own["rank"].astype("int64")
            counts = own[list(_OUTCOMES)].astype("int64").to_numpy().tolist()
            found.append(
                {
                    "operating_point": point,
                    "strategy": strategy,
                    "workloads": len(own),
                    "average_rank": int(ranks.sum()) / len(own),
                    "rank_deviation": float(np.std(ranks, ddof=1)) if len(own) > 1 else None,
                    "best_rank": int(ranks.min()),
                    "worst_rank": int(ranks.max()),
                    **{name: int(own[name].sum()) for name in _OUTCOMES},
                    "by_workload": json.dumps(dict(zip(own["workload"], counts, strict=True))),
                }
            )
        records += sorted(found, key=lambda record: (-record["workloads"], record["average_rank"]))
    return pd.DataFrame(records, columns=list(SUMMARY_COLUMNS))
