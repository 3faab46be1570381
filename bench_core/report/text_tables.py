"""Conversion of rows to readable tables: one per workload and operating point, ordered by rank."""

import json
from collections.abc import Hashable, Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, rankdata

from bench_core.board.board import Board
from bench_core.board.schema import priced
from bench_core.util.arrays import Array

__all__ = [
    "energy_order",
    "leaderboard",
    "reference_line",
    "sections",
    "seed_tables",
    "shift_by_condition",
    "shift_by_severity",
    "shift_by_strategy",
    "shift_promises",
    "shift_rows",
    "shift_tables",
    "static_line",
    "summaries",
    "training_line",
    "workload_facts",
]

NOT_AVAILABLE = "n/a"
_OUTCOMES = ("wins", "losses", "ties")


def sections(board: Board, operating_points: list[str] | None = None) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield (workload, operating point, rows in ranked order) for each table of a board."""
    joined = board.joined()
    for (workload, point), rows in joined.groupby(["workload", "operating_point"], sort=False):
        if operating_points is None or point in operating_points:
            yield (
                str(workload),
                str(point),
                rows.sort_values(["rank", "average_exit_timestep"], kind="stable", na_position="last"),
            )


def leaderboard(rows: pd.DataFrame, workloads: pd.DataFrame) -> pd.DataFrame:
    """Return one table as text, with n/a for missing figures."""
    reference, timesteps = (workloads.set_index("workload")[name] for name in ("aet", "timesteps"))
    table = pd.DataFrame(
        {
            "rank": rows["rank"].map(_Format("{:.0f}")),
            "strategy": rows["strategy"],
            "knob": [_knob(row) for row in rows.to_dict("records")],
            "accuracy %": _scaled(rows["accuracy"], 100, "{:.2f}"),
            "Δ points": rows["delta_points"].map(_Format("{:+.2f}")),
            "avg exit t": [_interval(row) for row in rows.to_dict("records")],
            "AET (SEENN, workload)": rows["workload"].map(reference).map(_Format("{:.2f}")),
            "ideal": (rows["workload"].map(timesteps) / rows["average_exit_timestep"]).map(_Format("{:.2f}x")),
            "ms": rows["latency_ms"].map(_Format("{:.2f}")),
            "p95 ms": rows["latency_p95_ms"].map(_Format("{:.2f}")),
            "p99 ms": rows["latency_p99_ms"].map(_Format("{:.2f}")),
            "speed-up": rows["speedup"].map(_Format("{:.2f}x")),
            "samples/s": rows["throughput"].map(_Format("{:.0f}")),
            "batch speed-up": rows["throughput_speedup"].map(_Format("{:.2f}x")),
        },
        index=rows.index,
    )
    if rows["measured_joules"].notna().any():
        table["mJ (measured)"] = _scaled(rows["measured_joules"], 1e3, "{:.3f}")
    for cost in priced(rows.columns):
        table[f"{cost.energy_unit} ({cost.model})"] = _scaled(rows[cost.energy], cost.scale, "{:.3f}")
        if cost.edp is not None:
            table[f"{cost.edp_unit} ({cost.model})"] = _scaled(rows[cost.edp], cost.scale, "{:.3f}")
    table["same-histogram %"] = _scaled(rows["same_histogram_accuracy"], 100, "{:.2f}")
    table["hull %"] = _scaled(rows["fixed_hull_accuracy"], 100, "{:.2f}")
    table["gap points"] = rows["gap_points"].map(_Format("{:+.2f}"))
    table["gap t"] = rows["gap_timesteps"].map(_Format("{:+.2f}"))
    table["note"] = [_remark(row) for row in rows.to_dict("records")]
    return table


def energy_order(rows: pd.DataFrame) -> str:
    """Describe whether the order of a table's rows by energy differs between cost models; empty for a single model.

    Compares the rows that every model priced, by Kendall's tau-b; models that priced no row are omitted.
    """
    columns = {cost.model: cost.energy for cost in priced(rows.columns)}
    if len(columns) < 2:
        return ""
    energies = rows[list(columns.values())].astype(float).dropna(axis="columns", how="all").dropna()
    models = [model for model, column in columns.items() if column in energies]
    if len(models) < 2 or len(energies) < 2:
        return f"Order by energy: {NOT_AVAILABLE}, no two rows are priced by two models."
    alike: dict[bytes, list[str]] = {}  # models by the order they produce
    for model in models:
        alike.setdefault(_energy_ranks(energies[columns[model]]).tobytes(), []).append(model)
    orders = [(np.frombuffer(ranks), _and(names)) for ranks, names in alike.items()]
    compared = f"Order by energy ({len(energies)} of {len(rows)} rows)"
    if len(orders) == 1:
        return f"{compared}: the same under {orders[0][1]}."
    pairs = [f"{a} against {b} {_tau(left, right)}" for (left, a), (right, b) in combinations(orders, 2)]
    return f"{compared} differs, Kendall's τ: {', '.join(pairs)}."


def _energy_ranks(energies: "pd.Series[float]") -> Array:
    """Return ranks of rows by energy; values that differ only by rounding are tied."""
    values = energies.to_numpy()
    return np.asarray(rankdata(np.round(values / (values.max() or 1.0), 12)))


def _tau(left: Array, right: Array) -> str:
    tau = kendalltau(left, right).statistic  # NaN if one of the two ties all rows
    return "none (all rows alike)" if np.isnan(tau) else f"{tau:.3f}"


def _and(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def summaries(board: Board) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield (operating point, table as text) over all workloads; nothing for a single workload."""
    workloads = list(dict.fromkeys(board.rows["workload"]))
    if len(workloads) < 2:
        return
    for point, rows in board.summary.groupby("operating_point", sort=False):
        outcomes = [json.loads(text) for text in rows["by_workload"]]
        table = pd.DataFrame(
            {
                "strategy": rows["strategy"],
                "workloads": rows["workloads"],
                "average rank": rows["average_rank"].map(_Format("{:.2f}")),
                "± sd": rows["rank_deviation"].astype(float).map(_Format("{:.2f}")),
                "best": rows["best_rank"],
                "worst": rows["worst_rank"],
                "wins-losses-ties": [_record([row[name] for name in _OUTCOMES]) for row in rows.to_dict("records")],
            }
        )
        for name in workloads:
            table[name] = [_record(own[name]) if name in own else NOT_AVAILABLE for own in outcomes]
        yield str(point), table


def seed_tables(board: Board) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield (common name, operating point, table as text) of networks that differ only in their seed."""
    if board.seeds is None:
        return
    for (name, point), rows in board.seeds.groupby(["workload", "operating_point"], sort=False):
        ordered = rows.sort_values("average_exit_timestep", kind="stable", na_position="last")
        records = ordered.to_dict("records")
        table = pd.DataFrame(
            {
                "strategy": ordered["strategy"],
                "seeds": ordered["seeds"],
                "accuracy %": [_spread(row, "accuracy", 100, "{:.2f}") for row in records],
                "Δ points": [_spread(row, "delta_points", 1, "{:+.2f}") for row in records],
                "avg exit t": [_spread(row, "average_exit_timestep", 1, "{:.3f}") for row in records],
                "interval": [str(row["interval"]) if row["seeds"] > 1 else NOT_AVAILABLE for row in records],
                "missed": ordered["missed"].map(_Format("{:.0f}")),
            }
        )
        yield str(name), str(point), table


def _spread(row: dict[Hashable, Any], name: str, factor: float, pattern: str) -> str:
    """Format a mean over seeds, with the range from low to high in brackets."""
    mean, low, high = (factor * row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if pd.isna(mean):
        return NOT_AVAILABLE
    return pattern.format(mean) + ("" if pd.isna(low) else f" ({pattern.format(low)} to {pattern.format(high)})")


def shift_tables(board: Board) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield (workload, its rows of shift.csv that have figures)."""
    if board.shift is not None:
        known = board.shift[board.shift["promise"].notna()].astype({"severity": int})
        for workload, rows in known.groupby("workload", sort=False):
            yield str(workload), rows


def shift_rows(board: Board, workload: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield (operating point, its rows of shift.csv that have figures) for one workload."""
    for name, rows in shift_tables(board):
        if name == workload:
            yield from ((str(point), own) for point, own in rows.groupby("operating_point", sort=False))


def shift_by_severity(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one workload at one operating point under each corruption and severity, as text.

    Shows means over the policies, and how many of them broke their promise.
    """
    records = [
        {
            "corruption": corruption,
            "severity": severity,
            "static T %": f"{100 * here['static_accuracy'].iloc[0]:.2f}",
            "accuracy %": f"{100 * here['accuracy'].mean():.2f}",
            "Δ points": f"{here['delta_points'].mean():+.2f}",
            "avg exit t": f"{here['average_exit_timestep'].mean():.3f}",
            "broken": _broken(here),
        }
        for (corruption, severity), here in rows.groupby(["corruption", "severity"], sort=False)
    ]
    return pd.DataFrame(records)


def shift_promises(rows: pd.DataFrame) -> pd.DataFrame:
    """Return each strategy on one workload at one operating point, as text.

    Shows the severities at which its promise is broken, and its loss and exit timestep at the greatest one.
    """
    records = []
    for strategy, own in rows.groupby("strategy", sort=False):
        clean, corrupted = own[own["severity"] == 0], own[own["severity"] > 0]
        record = {"strategy": strategy, "broken": _broken(corrupted)}
        record["clean: avg t"] = f"{clean['average_exit_timestep'].iloc[0]:.3f}" if len(clean) else NOT_AVAILABLE
        for corruption, here in corrupted.groupby("corruption", sort=False):
            broken = here.loc[here["promise"] == "broken", "severity"]
            worst = here.sort_values("severity").iloc[-1]
            record[f"{corruption}: broken at"] = ", ".join(map(str, broken)) or "–"
            record[f"{corruption} {worst['severity']}: Δ"] = f"{worst['delta_points']:+.2f}"
            record[f"{corruption} {worst['severity']}: avg t"] = f"{worst['average_exit_timestep']:.3f}"
        records.append(record)
    return pd.DataFrame(records).fillna(NOT_AVAILABLE)


def shift_by_condition(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one workload under each corruption and severity, as text.

    For each operating point: how many policies broke their promise, and the means over policies of the change relative
    to static T, in points, and of the average exit timestep.
    """
    records = []
    for (corruption, severity), here in rows.groupby(["corruption", "severity"], sort=False):
        record = {
            "corruption": corruption,
            "severity": severity,
            "static T %": f"{100 * here['static_accuracy'].iloc[0]:.2f}",
        }
        for point, own in here.groupby("operating_point", sort=False):
            change, exits = own["delta_points"].mean(), own["average_exit_timestep"].mean()
            record[f"{point}: broken, Δ, avg t"] = f"{_broken(own)}, {change:+.2f}, {exits:.3f}"
        records.append(record)
    return pd.DataFrame(records).fillna(NOT_AVAILABLE)


def shift_by_strategy(rows: pd.DataFrame) -> pd.DataFrame:
    """Return each strategy on one workload, as text.

    For each operating point: under how many corruptions its promise is broken, and its largest loss relative to
    static T.
    """
    records = []
    corrupted = rows[rows["severity"] > 0]
    for strategy, own in corrupted.groupby("strategy", sort=False):
        record = {"strategy": strategy}
        for point, here in own.groupby("operating_point", sort=False):
            record[f"{point}: broken, worst Δ"] = f"{_broken(here)}, {here['delta_points'].min():+.2f}"
        records.append(record)
    return pd.DataFrame(records).fillna(NOT_AVAILABLE)


def _broken(rows: pd.DataFrame) -> str:
    return f"{int((rows['promise'] == 'broken').sum())}/{len(rows)}"


def _record(outcome: list[int]) -> str:
    return "-".join(str(count) for count in outcome)


def workload_facts(board: Board) -> dict[str, dict[str, object]]:
    """Return the columns of workloads.csv by workload."""
    records = board.workloads.to_dict("records")
    return {str(record["workload"]): {str(name): value for name, value in record.items()} for record in records}


def training_line(board: Board, workload: str) -> str:
    """Describe the training of the workload's network; empty without a training log."""
    if board.training is None or (own := board.training[board.training["workload"] == workload]).empty:
        return ""
    last, epochs = own.iloc[-1], len(own)
    known = own["seconds"].dropna()
    took = f", {known.sum() / 60:.0f} min" if len(known) == epochs else ""
    if 0 < len(known) < epochs:
        took = f", {known.sum() / 60:.0f} min for {len(known)} of them (the others were not timed)"
    stages = own.groupby("stage", sort=False).size()
    parts = " (" + " + ".join(f"{stage} {count}" for stage, count in stages.items()) + ")" if len(stages) > 1 else ""
    place = ""
    if not pd.isna(last["threads"]):
        place = f" on {last['device']}, {last['threads']:.0f} thread" + ("s" if last["threads"] > 1 else "")
    return (
        f"Trained for {epochs} epochs{parts}{place}{took}; "
        f"last epoch: loss {last['loss']:.3f}, accuracy {100 * last['accuracy']:.1f} % on augmented training batches"
    )


def static_line(workload: dict[str, object]) -> str:
    """Describe static accuracy at each t."""
    accuracies = json.loads(str(workload["static_accuracy"]))
    return ", ".join(f"t{t} {100 * accuracy:.2f}" for t, accuracy in enumerate(accuracies, start=1))


def reference_line(workload: dict[str, object]) -> str:
    """Describe the reference points."""
    w = {name: float(str(workload[name])) for name in ("aet", "empirical_aet", "oct", "oracle_accuracy", "lower_bound")}
    return (
        f"AET {w['aet']:.3f}, empirical AET {w['empirical_aet']:.3f}, OCT {w['oct']:.3f}, "
        f"oracle {100 * w['oracle_accuracy']:.2f} %, true lower bound {w['lower_bound']:.3f}"
    )


class _Format:
    """Format a figure, or return n/a if it is missing."""

    def __init__(self, pattern: str) -> None:
        """Create a formatter for a format string."""
        self._pattern = pattern

    def __call__(self, value: object) -> str:
        """Return the formatted figure, or n/a."""
        return NOT_AVAILABLE if pd.isna(value) else self._pattern.format(value)  # type: ignore[call-overload]


def _scaled(column: "pd.Series[float]", factor: float, pattern: str) -> "pd.Series[str]":
    return column.astype(float).mul(factor).map(_Format(pattern))


def _knob(row: dict[object, object]) -> str:
    value = row["value"]
    return NOT_AVAILABLE if pd.isna(value) else f"{row['knob']} {float(str(value)):.4g}"  # type: ignore[call-overload]


def _interval(row: dict[object, object]) -> str:
    mean, low, high = (row[f"average_exit_timestep{end}"] for end in ("", "_low", "_high"))
    if pd.isna(mean):  # type: ignore[call-overload]
        return NOT_AVAILABLE
    return f"{mean:.3f} ±{(float(str(high)) - float(str(low))) / 2:.3f}"


def _remark(row: dict[object, object]) -> str:
    parts = [str(row["status"])] if row["status"] != "ok" else []
    if not pd.isna(row["note"]) and row["note"]:  # type: ignore[call-overload]
        parts.append(str(row["note"]))
    clock = row.get("clock_remark")
    if isinstance(clock, str) and clock:
        parts.append(f"wall clock: {clock}")
    return "; ".join(parts)
