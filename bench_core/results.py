"""A board in memory and its files: rows, curves, workloads, measurements (csv), manifest.json, leaderboard.md.

``rows.csv``, ``curves.csv`` and ``workloads.csv`` are deterministic. Wall clock lives in ``measurements.csv``, is
joined when a board is shown, and stays until it is measured again.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bench_core.columns import CURVE_COLUMNS, MEASUREMENT_COLUMNS, SCHEMA, WORKLOAD_COLUMNS
from bench_core.errors import StoreError, UsageError
from bench_core.live import Latency

__all__ = ["Board", "make_folder", "read_board", "read_measurements", "write_board", "write_text"]


@dataclass
class Board:
    """Everything a board shows."""

    rows: pd.DataFrame
    workloads: pd.DataFrame
    curves: pd.DataFrame
    measurements: pd.DataFrame | None
    manifest: dict[str, Any]

    def __post_init__(self) -> None:
        self._by_policy: dict[str, dict[str, Any]] = {}
        if self.measurements is not None:
            for record in self.measurements.to_dict("records"):
                self._by_policy[str(record["policy"])] = {str(name): value for name, value in record.items()}
        self._placed: list[dict[str, Any]] = []

    @property
    def failures(self) -> int:
        """How many rows have no figures because something failed."""
        return int(self.rows["status"].str.startswith("failed").sum())

    def is_measured(self, policy: str) -> bool:
        """Whether wall clock is known for the policy of this digest."""
        return policy in self._by_policy

    def add_measurements(self, measured: Mapping[str, Latency], facts: Mapping[str, Any]) -> None:
        """Take in wall clock by policy digest, and how it was measured."""
        for policy, latency in measured.items():
            self._by_policy[policy] = {
                "latency_ms": latency.milliseconds,
                "latency_median_ms": latency.median,
                "latency_p95_ms": latency.p95,
                "speedup": latency.speedup,
                **facts,
            }

    def place_measurements(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Say which rows (workload, strategy, operating point, policy digest) the measurements belong to."""
        self._placed += [{**self._by_policy[row["policy"]], **row} for row in rows if self.is_measured(row["policy"])]
        self.measurements = pd.DataFrame(self._placed, columns=list(MEASUREMENT_COLUMNS))

    def joined(self) -> pd.DataFrame:
        """Rows with their wall clock beside them."""
        keys = ["workload", "strategy", "operating_point"]
        measured = (
            self.measurements if self.measurements is not None else pd.DataFrame(columns=list(MEASUREMENT_COLUMNS))
        )
        kept = measured[[*keys, "latency_ms", "latency_median_ms", "latency_p95_ms", "speedup"]]
        return self.rows.merge(kept, on=keys, how="left")


def read_measurements(folder: Path) -> pd.DataFrame | None:
    """The measurements of an earlier run into the same folder, if there are any."""
    path = folder / "measurements.csv"
    if not path.exists():
        return None
    table = pd.read_csv(path, dtype={"policy": str})
    return table if list(table.columns) == list(MEASUREMENT_COLUMNS) else None


def write_board(board: Board, folder: Path) -> None:
    """Write all files of a board, each whole or not at all."""
    from bench_core.report.markdown import markdown

    make_folder(folder)
    write_text(folder / "rows.csv", board.rows.to_csv(index=False))
    write_text(folder / "curves.csv", board.curves.to_csv(index=False))
    write_text(folder / "workloads.csv", board.workloads.to_csv(index=False))
    if board.measurements is not None:
        write_text(folder / "measurements.csv", board.measurements.to_csv(index=False))
    write_text(folder / "manifest.json", json.dumps(board.manifest, indent=1, sort_keys=True) + "\n")
    write_text(folder / "leaderboard.md", markdown(board))


def read_board(folder: Path) -> Board:
    """A board from its files. Raises UsageError, one line, for a folder that holds none or one of another schema."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        digests = dict.fromkeys(("weights", "calibration_trace", "test_trace"), str)
        rows = pd.read_csv(folder / "rows.csv", dtype=digests)
        tables = [rows, *(pd.read_csv(folder / f"{name}.csv") for name in ("workloads", "curves"))]
    except FileNotFoundError as error:
        raise UsageError(
            f"results {folder}: {Path(error.filename).name} is missing; `exitbench run` writes it"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"results {folder}: not readable ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise UsageError(f"results {folder}: manifest.json is not of schema {SCHEMA}; run the suite again")
    rows, workloads, curves = tables
    if not {"workload", "strategy", "operating_point", "status", "rank"} <= set(rows.columns):
        raise UsageError(f"results {folder}: rows.csv lacks columns of schema {SCHEMA}; run the suite again")
    for table, columns, name in ((workloads, WORKLOAD_COLUMNS, "workloads"), (curves, CURVE_COLUMNS, "curves")):
        if list(table.columns) != list(columns):
            raise UsageError(
                f"results {folder}: {name}.csv has other columns than schema {SCHEMA}; run the suite again"
            )
    return Board(rows, workloads, curves, read_measurements(folder), manifest)


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it. Raises StoreError when the disk says no."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StoreError(f"{path}: can't be written ({error.strerror}); choose another place or free space") from error


def make_folder(folder: Path) -> None:
    """Make a folder for results, before anything is computed. Raises UsageError where that can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".exitbench-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"--output {folder}: can't be written to ({error.strerror})") from error
