"""A board in memory and its files: deterministic tables, measurements (csv), manifest.json, leaderboard.md.

The tables of ``TABLES`` are deterministic, and so are those of ``OPTIONAL_TABLES``, which only some boards have. What
a clock said is no part of them and lives in ``KEPT_TABLES``: wall clock (joined when a board is shown, it stays until
it is measured again), every single measurement, and what training took. What papers published is read from beside the
board (``published.py``).
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench_core.cells import check_cells
from bench_core.columns import (
    CLASS_COLUMNS,
    CURVE_COLUMNS,
    MEASUREMENT_COLUMNS,
    PAIRWISE_COLUMNS,
    RAW_COLUMNS,
    RELIABILITY_COLUMNS,
    SCHEMA,
    SEED_COLUMNS,
    SHIFT_COLUMNS,
    SUMMARY_COLUMNS,
    TRAINING_COLUMNS,
    WORKLOAD_COLUMNS,
)
from bench_core.csv_tables import csv_text, read_table
from bench_core.errors import StoreError, UsageError
from bench_core.files import alone_in, read_text
from bench_core.latency import STATIC, Timings
from bench_core.manifests import check_manifest
from bench_core.progress import note
from bench_core.published import read_published

__all__ = [
    "OPTIONAL_TABLES",
    "TABLES",
    "Board",
    "make_folder",
    "read_board",
    "read_kept",
    "read_table",
    "write_board",
    "write_tables",
    "write_text",
]

_FIXED_COLUMNS = {  # rows.csv has more, of the cost models
    "workloads": WORKLOAD_COLUMNS,
    "curves": CURVE_COLUMNS,
    "pairwise": PAIRWISE_COLUMNS,
    "classes": CLASS_COLUMNS,
    "reliability": RELIABILITY_COLUMNS,
    "summary": SUMMARY_COLUMNS,
}
TABLES = ("rows", *_FIXED_COLUMNS)
OPTIONAL_TABLES = {"seeds": SEED_COLUMNS, "shift": SHIFT_COLUMNS}
KEPT_TABLES = {"measurements": MEASUREMENT_COLUMNS, "measurements-raw": RAW_COLUMNS, "training": TRAINING_COLUMNS}


@dataclass
class Board:
    """Everything a board shows; the tables of ``TABLES`` and ``OPTIONAL_TABLES`` by their names."""

    rows: pd.DataFrame
    workloads: pd.DataFrame
    curves: pd.DataFrame
    pairwise: pd.DataFrame
    classes: pd.DataFrame
    reliability: pd.DataFrame
    summary: pd.DataFrame
    measurements: pd.DataFrame | None
    manifest: dict[str, Any]
    raw: pd.DataFrame | None = None  # every single measurement
    seeds: pd.DataFrame | None = None  # where workloads differ in their seed only
    shift: pd.DataFrame | None = None  # where the suite asks for corrupted test data
    training: pd.DataFrame | None = None  # what training the networks took, epoch by epoch
    published: pd.DataFrame | None = None  # what papers say of the same data sets; empty where none does

    def __post_init__(self) -> None:
        self._by_policy: dict[str, dict[str, Any]] = {}
        if self.measurements is not None:
            for record in self.measurements.to_dict("records"):
                self._by_policy[str(record["policy"])] = {str(name): value for name, value in record.items()}
        self._placed: list[dict[str, Any]] = []
        self._raw: list[dict[str, Any]] = []
        if self.raw is not None:
            self._raw = [{str(name): value for name, value in record.items()} for record in self.raw.to_dict("records")]

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The deterministic tables that this board has, by name."""
        found = {name: getattr(self, name) for name in (*TABLES, *OPTIONAL_TABLES)}
        return {name: table for name, table in found.items() if table is not None}

    @property
    def kept(self) -> dict[str, pd.DataFrame]:
        """The tables of ``KEPT_TABLES`` that this board has, by name."""
        found = {"measurements": self.measurements, "measurements-raw": self.raw, "training": self.training}
        return {name: table for name, table in found.items() if table is not None}

    @property
    def failures(self) -> int:
        """How many rows have no figures because something failed, those under corruption included."""
        tables = [self.rows] if self.shift is None else [self.rows, self.shift]
        return sum(int(table["status"].str.startswith("failed").sum()) for table in tables)

    def is_measured(self, policy: str) -> bool:
        """Whether wall clock is known for the policy of this digest."""
        return policy in self._by_policy

    def add_timings(self, workload: str, timings: Timings, facts: Mapping[str, Any]) -> None:
        """Take in the wall clock of policies, by digest, beside that of static T, and how it was measured."""
        session = 1 + max([record["session"] for record in self._raw], default=0)
        for policy, seconds in timings.seconds.items():
            if policy != STATIC:
                figures = timings.latency(policy) if timings.batch == 1 else timings.throughput(policy)
                self._by_policy[policy] = {**self._by_policy.get(policy, {}), **figures, **facts}
            for (unit, repetition), value in np.ndenumerate(seconds):
                cells = (workload, session, policy, timings.batch, unit, repetition, 1e3 * value)
                self._raw.append(dict(zip(RAW_COLUMNS, cells, strict=True)))

    def place_measurements(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Say which rows (workload, strategy, operating point, policy digest) the measurements belong to."""
        self._placed += [{**self._by_policy[row["policy"]], **row} for row in rows if self.is_measured(row["policy"])]
        self.measurements = pd.DataFrame(self._placed, columns=list(MEASUREMENT_COLUMNS))
        shown = set(self.measurements["policy"])
        sessions = {record["session"] for record in self._raw if record["policy"] in shown}
        kept = [r for r in self._raw if r["policy"] in shown or (r["policy"] == STATIC and r["session"] in sessions)]
        self.raw = pd.DataFrame(kept, columns=list(RAW_COLUMNS))

    def joined(self) -> pd.DataFrame:
        """Rows with their wall clock beside them."""
        keys = ["workload", "strategy", "operating_point"]
        measured = (
            self.measurements if self.measurements is not None else pd.DataFrame(columns=list(MEASUREMENT_COLUMNS))
        )
        kept = measured[[*keys, *(name for name in MEASUREMENT_COLUMNS if name not in {*keys, "policy", "samples"})]]
        return self.rows.merge(kept, on=keys, how="left")


def read_kept(folder: Path, name: str) -> pd.DataFrame | None:
    """A table of ``KEPT_TABLES`` that an earlier run left in ``folder``; None where it left none.

    One that can't be read, has other columns or odd cells is said to be passed over, and counts as none.
    """
    table = _kept(folder, name)
    try:
        if table is not None:
            check_cells(name, table)
    except ValueError as error:
        note(f"{folder}: {error}; passed over")
        return None
    return table


def _kept(folder: Path, name: str) -> pd.DataFrame | None:
    path = folder / f"{name}.csv"
    if not path.exists():
        return None
    try:
        table = read_table(path)
    except (OSError, ValueError) as error:
        note(f"{path}: not readable ({error}); passed over")
        return None
    if list(table.columns) != list(KEPT_TABLES[name]):
        note(f"{path}: has other columns than schema {SCHEMA}; passed over")
        return None
    return table


def write_board(board: Board, folder: Path) -> None:
    """Write all files of a board, each whole or not at all."""
    from bench_core.report.markdown import markdown

    make_folder(folder)
    with alone_in(folder):  # two runs into one folder: all files are of the one that was last
        write_tables(board, folder)
        for name, table in board.kept.items():
            write_text(folder / f"{name}.csv", csv_text(table))
        write_text(folder / "manifest.json", json.dumps(board.manifest, indent=1, sort_keys=True) + "\n")
        write_text(folder / "leaderboard.md", markdown(board))


def write_tables(board: Board, folder: Path) -> None:
    """Write the deterministic tables; one that an earlier board had and this one hasn't is removed."""
    for name, table in board.tables.items():
        write_text(folder / f"{name}.csv", csv_text(table))
    for name in OPTIONAL_TABLES.keys() - board.tables.keys():
        (folder / f"{name}.csv").unlink(missing_ok=True)


def read_board(folder: Path) -> Board:
    """A board from its files. Raises UsageError, one line, for a folder that holds none or one of another schema."""
    try:
        manifest = json.loads(read_text(folder / "manifest.json"))
        rows = read_table(folder / "rows.csv")
        columns = _FIXED_COLUMNS | {n: c for n, c in OPTIONAL_TABLES.items() if (folder / f"{n}.csv").exists()}
        tables = {name: read_table(folder / f"{name}.csv") for name in columns}
    except FileNotFoundError as error:
        raise UsageError(
            f"results {folder}: {Path(error.filename).name} is missing; `exitbench run` writes it"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"results {folder}: not readable ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise UsageError(f"results {folder}: manifest.json is not of schema {SCHEMA}; run the suite again")
    if not {"workload", "strategy", "operating_point", "status", "rank"} <= set(rows.columns):
        raise UsageError(f"results {folder}: rows.csv lacks columns of schema {SCHEMA}; run the suite again")
    for name, expected in columns.items():
        if list(tables[name].columns) != list(expected):
            raise UsageError(
                f"results {folder}: {name}.csv has other columns than schema {SCHEMA}; run the suite again"
            )
    kept = {name: table for name in KEPT_TABLES if (table := _kept(folder, name)) is not None}
    try:
        for name, table in {"rows": rows, **tables, **kept}.items():
            check_cells(name, table)
    except ValueError as error:
        raise UsageError(
            f"results {folder}: a cell does not hold what its column should ({error}); run the suite again"
        ) from error
    check_manifest(manifest, f"results {folder}")
    return Board(
        rows,
        **tables,
        measurements=kept.get("measurements"),
        manifest=manifest,
        raw=kept.get("measurements-raw"),
        training=kept.get("training"),
        published=read_published(folder, {spec["dataset"] for spec in manifest["suite"]["workloads"]}),
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it. Raises StoreError when the disk says no."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StoreError.unwritable(path, error) from error


def make_folder(folder: Path) -> None:
    """Make a folder for results, before anything is computed. Raises UsageError where that can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".exitbench-probe"
        probe.touch()
        probe.unlink(missing_ok=True)  # another run may have been quicker
    except OSError as error:
        raise UsageError(f"--output {folder}: can't be written to ({error.strerror})") from error
