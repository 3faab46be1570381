"""Rows to tables that people read: one per workload and operating point, in the order of the ranks."""

import json
from collections.abc import Iterator

import pandas as pd

from bench_core.results import Board

__all__ = ["leaderboard", "reference_line", "sections", "static_line", "workload_facts"]

NOT_AVAILABLE = "n/a"


def sections(board: Board, operating_points: list[str] | None = None) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(workload, operating point, rows in ranked order) for each table of a board."""
    joined = board.joined()
    for (workload, point), rows in joined.groupby(["workload", "operating_point"], sort=False):
        if operating_points is None or point in operating_points:
            yield (
                str(workload),
                str(point),
                rows.sort_values(["rank", "average_exit_timestep"], kind="stable", na_position="last"),
            )


def leaderboard(rows: pd.DataFrame, workloads: pd.DataFrame) -> pd.DataFrame:
    """One table as text: what can't be said is n/a."""
    reference = workloads.set_index("workload")["aet"]
    energies = [name for name in rows.columns if name.startswith("energy_") and name.endswith("_joules")]
    table = pd.DataFrame(
        {
            "rank": rows["rank"].map(_Format("{:.0f}")),
            "strategy": rows["strategy"],
            "knob": [_knob(row) for row in rows.to_dict("records")],
            "accuracy %": _scaled(rows["accuracy"], 100, "{:.2f}"),
            "Δ points": rows["delta_points"].map(_Format("{:+.2f}")),
            "avg exit t": [_interval(row) for row in rows.to_dict("records")],
            "AET (SEENN, workload)": rows["workload"].map(reference).map(_Format("{:.2f}")),
            "ms": rows["latency_ms"].map(_Format("{:.2f}")),
            "speed-up": rows["speedup"].map(_Format("{:.2f}x")),
        },
        index=rows.index,
    )
    for name in energies:
        table[f"µJ ({name.removeprefix('energy_').removesuffix('_joules')})"] = _scaled(rows[name], 1e6, "{:.3f}")
    table["same-histogram %"] = _scaled(rows["same_histogram_accuracy"], 100, "{:.2f}")
    table["hull %"] = _scaled(rows["fixed_hull_accuracy"], 100, "{:.2f}")
    table["gap points"] = rows["gap_points"].map(_Format("{:+.2f}"))
    table["gap t"] = rows["gap_timesteps"].map(_Format("{:+.2f}"))
    table["note"] = [_remark(row) for row in rows.to_dict("records")]
    return table


def workload_facts(board: Board) -> dict[str, dict[str, object]]:
    """The columns of workloads.csv by workload."""
    records = board.workloads.to_dict("records")
    return {str(record["workload"]): {str(name): value for name, value in record.items()} for record in records}


def static_line(workload: dict[str, object]) -> str:
    """Static accuracy at each t, in words."""
    accuracies = json.loads(str(workload["static_accuracy"]))
    return ", ".join(f"t{t} {100 * accuracy:.2f}" for t, accuracy in enumerate(accuracies, start=1))


def reference_line(workload: dict[str, object]) -> str:
    """The reference points, in words."""
    w = {name: float(str(workload[name])) for name in ("aet", "empirical_aet", "oct", "oracle_accuracy", "lower_bound")}
    return (
        f"AET {w['aet']:.3f}, empirical AET {w['empirical_aet']:.3f}, OCT {w['oct']:.3f}, "
        f"oracle {100 * w['oracle_accuracy']:.2f} %, true lower bound {w['lower_bound']:.3f}"
    )


class _Format:
    """Formats a figure, or says n/a."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def __call__(self, value: object) -> str:
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
    return "; ".join(parts)
