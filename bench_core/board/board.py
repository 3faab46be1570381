"""A board in memory and on disk: deterministic tables, measurements (csv), manifest.json, leaderboard.md.

Files are replaced in one step (``util/whole_folder.py``) and checked on reading (``board/files.py``). The tables of
``TABLES`` and ``OPTIONAL_TABLES`` (which only some boards have) are deterministic. Timings are in ``KEPT_TABLES``:
wall clock (joined for display, valid until measured again), the single measurements, and training times. Published
figures are read from a file next to the board (``published.py``).
"""

import json
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench_core.board.cells import check_cells
from bench_core.board.csv_tables import csv_text, table_of
from bench_core.board.files import (
    FIXED_COLUMNS,
    KEPT_TABLES,
    MANIFEST,
    OPTIONAL_TABLES,
    OWN_FILES,
    TABLES,
    digest_of,
    kept_content,
    read_files,
)
from bench_core.board.manifests import check_manifest
from bench_core.board.published import read_published
from bench_core.board.schema import MEASUREMENT_COLUMNS, RAW_COLUMNS, SCHEMA
from bench_core.errors import StoreError, UsageError
from bench_core.live.timing import STATIC, Timings
from bench_core.trace.files import save_trace
from bench_core.trace.trace import Trace
from bench_core.util.files import CONTESTED, whole_file
from bench_core.util.progress import note
from bench_core.util.whole_folder import Writer, replace_files

__all__ = [
    "OPTIONAL_TABLES",
    "TABLES",
    "Board",
    "make_folder",
    "read_board",
    "read_kept",
    "refuse_board",
    "write_board",
    "write_tables",
    "write_text",
]


@dataclass
class Board:
    """Everything a board shows; the attributes are the tables of ``TABLES`` and ``OPTIONAL_TABLES``."""

    rows: pd.DataFrame
    workloads: pd.DataFrame
    curves: pd.DataFrame
    pairwise: pd.DataFrame
    classes: pd.DataFrame
    reliability: pd.DataFrame
    summary: pd.DataFrame
    measurements: pd.DataFrame | None
    manifest: dict[str, Any]
    raw: pd.DataFrame | None = None  # the single measurements
    seeds: pd.DataFrame | None = None  # if workloads differ only in their seed
    shift: pd.DataFrame | None = None  # if the suite requests corrupted test data
    training: pd.DataFrame | None = None  # accuracy, loss and time of the networks' training, per epoch
    published: pd.DataFrame | None = None  # figures from papers on the same data sets; empty if there are none
    problems: list[str] = field(default_factory=list)  # failures other than rows: tables, cost models, wall clock

    def __post_init__(self) -> None:
        """Index the measurements by policy."""
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
        """The board's deterministic tables, by name."""
        found = {name: getattr(self, name) for name in (*TABLES, *OPTIONAL_TABLES)}
        return {name: table for name, table in found.items() if table is not None}

    @property
    def kept(self) -> dict[str, pd.DataFrame]:
        """The board's tables of ``KEPT_TABLES``, by name."""
        found = {"measurements": self.measurements, "measurements-raw": self.raw, "training": self.training}
        return {name: table for name, table in found.items() if table is not None}

    @property
    def failures(self) -> int:
        """Number of failures: rows without figures, including those under corruption, and other problems."""
        tables = [self.rows] if self.shift is None else [self.rows, self.shift]
        return len(self.problems) + sum(int(table["status"].str.startswith("failed").sum()) for table in tables)

    def is_measured(self, policy: str) -> bool:
        """Return whether the wall clock of the policy with this digest is known."""
        return policy in self._by_policy

    def add_timings(self, workload: str, timings: Timings, facts: Mapping[str, Any]) -> None:
        """Add the wall clock of policies, by digest, and of static T, with how they were measured."""
        session = 1 + max([record["session"] for record in self._raw], default=0)
        for policy, seconds in timings.seconds.items():
            if policy != STATIC:
                figures = timings.latency(policy) if timings.batch == 1 else timings.throughput(policy)
                before = self._by_policy.get(policy, {})
                remarks = dict.fromkeys(text for text in (before.get("clock_remark"), timings.remark) if text)
                self._by_policy[policy] = {**before, **figures, **facts, "clock_remark": "; ".join(remarks)}
            for (unit, repetition), value in np.ndenumerate(seconds):
                cells = (workload, session, policy, timings.batch, unit, repetition, 1e3 * value)
                self._raw.append(dict(zip(RAW_COLUMNS, cells, strict=True)))

    def place_measurements(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Assign measurements to rows (workload, strategy, operating point, policy digest)."""
        self._placed += [{**self._by_policy[row["policy"]], **row} for row in rows if self.is_measured(row["policy"])]
        self.measurements = pd.DataFrame(self._placed, columns=list(MEASUREMENT_COLUMNS))
        shown = set(self.measurements["policy"])
        sessions = {record["session"] for record in self._raw if record["policy"] in shown}
        kept = [r for r in self._raw if r["policy"] in shown or (r["policy"] == STATIC and r["session"] in sessions)]
        self.raw = pd.DataFrame(kept, columns=list(RAW_COLUMNS))

    def joined(self) -> pd.DataFrame:
        """Return the rows joined with their wall clock."""
        keys = ["workload", "strategy", "operating_point"]
        measured = (
            self.measurements if self.measurements is not None else pd.DataFrame(columns=list(MEASUREMENT_COLUMNS))
        )
        kept = measured[[*keys, *(name for name in MEASUREMENT_COLUMNS if name not in {*keys, "policy", "samples"})]]
        return self.rows.merge(kept, on=keys, how="left")


def read_kept(folder: Path, name: str) -> pd.DataFrame | None:
    """Return a table of ``KEPT_TABLES`` from an earlier run in ``folder``, or None if there is none.

    A table that is unreadable, has other columns or invalid cells is skipped with a note; one edited since it was
    written is kept with a note.
    """
    content = kept_content(folder, name)
    table = None if content is None else _kept_table(folder, name, content)
    try:
        if table is not None:
            check_cells(name, table)
    except ValueError as error:
        note(f"{folder}: {error}; passed over")
        return None
    return table


def _kept_table(folder: Path, name: str, content: bytes) -> pd.DataFrame | None:
    path = folder / f"{name}.csv"
    try:
        table = table_of(content.decode())
    except ValueError as error:
        note(f"{path}: not readable ({error!s:.300}); passed over")
        return None
    if name == "measurements" and "clock_remark" not in table:
        table["clock_remark"] = None  # from a version without this column
    if list(table.columns) != list(KEPT_TABLES[name]):
        note(f"{path}: has other columns than schema {SCHEMA}; passed over")
        return None
    return table


def write_board(
    board: Board, folder: Path, pages: Mapping[str, str], traces: Mapping[str, Trace] | None = None
) -> None:
    """Replace the board in ``folder`` in one step; other files in the folder are unaffected.

    Args:
        board: its manifest is written with the sha256 of every table.
        folder: created if necessary.
        pages: human-readable texts, by file name.
        traces: by file name, written to ``traces/`` in the same step.

    Raises:
        UsageError: the folder cannot be written; the previous board is unchanged.
        StoreError: a file cannot be written; the previous board is unchanged.
    """
    make_folder(folder)
    texts = _csv_texts({**board.tables, **board.kept})
    manifest = {**board.manifest, "sha256": {name: digest_of(text.encode()) for name, text in texts.items()}}
    texts |= {MANIFEST: json.dumps(manifest, indent=1, sort_keys=True) + "\n", **pages}
    writers = _text_writers(texts)
    writers |= {f"traces/{name}": partial(save_trace, trace) for name, trace in (traces or {}).items()}
    replace_files(folder, writers, OWN_FILES)


def write_tables(
    board: Board, folder: Path, more: Mapping[str, str] | None = None, *, owned: Collection[str] = ()
) -> None:
    """Write a board's deterministic tables without a manifest, and further files, in one step.

    Tables that an earlier board had and this one lacks are removed, as are ``owned`` files not in ``more``.

    Args:
        board: the board.
        folder: where to write.
        more: texts of further files, by file name.
        owned: file names to remove if they are not in ``more``.

    Raises:
        UsageError: the folder holds a whole board.
        StoreError: a file cannot be written.
    """
    refuse_board(folder)
    names = [f"{name}.csv" for name in (*TABLES, *OPTIONAL_TABLES)]
    replace_files(folder, _text_writers({**_csv_texts(board.tables), **(more or {})}), [*names, *owned])


def refuse_board(folder: Path) -> None:
    """Raise UsageError if ``folder`` holds a board: tables written without its manifest would invalidate it."""
    if (folder / MANIFEST).exists():
        raise UsageError(f"{folder}: holds a board; keep recomputed tables in another folder")


def _csv_texts(tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    return {f"{name}.csv": csv_text(table) for name, table in tables.items()}


def _text_writers(texts: Mapping[str, str]) -> dict[str, Writer]:
    return {name: partial(Path.write_bytes, data=text.encode()) for name, text in texts.items()}


def read_board(folder: Path, *, verified: bool = True) -> Board:
    """Read a board from its files.

    Args:
        folder: of the results.
        verified: reject a table whose sha256 differs from the manifest.

    Raises:
        UsageError: one line, for a folder without a board, with another schema or with edited files; names the first
            invalid file.
    """
    manifest, contents = read_files(folder, verified=verified)
    columns = FIXED_COLUMNS | {name: column for name, column in OPTIONAL_TABLES.items() if name in contents}
    try:
        rows = table_of(contents["rows"].decode())
        tables = {name: table_of(contents[name].decode()) for name in columns}
    except ValueError as error:
        raise UsageError(f"results {folder}: not readable ({error!s:.300})") from error
    if not {"workload", "strategy", "operating_point", "status", "rank"} <= set(rows.columns):
        raise UsageError(f"results {folder}: rows.csv lacks columns of schema {SCHEMA}; run the suite again")
    for name, expected in columns.items():
        if list(tables[name].columns) != list(expected):
            raise UsageError(
                f"results {folder}: {name}.csv has other columns than schema {SCHEMA}; run the suite again"
            )
    found = {name: _kept_table(folder, name, contents[name]) for name in KEPT_TABLES if name in contents}
    kept = {name: table for name, table in found.items() if table is not None}
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
        **tables,  # type: ignore[arg-type]  # mypy takes them for all fields
        measurements=kept.get("measurements"),
        manifest=manifest,
        raw=kept.get("measurements-raw"),
        training=kept.get("training"),
        published=read_published(folder, {spec["dataset"] for spec in manifest["suite"]["workloads"]}),
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; raise StoreError if it cannot be written."""
    try:
        with whole_file(path) as place:
            place.write_bytes(text.encode())
    except OSError as error:
        raise StoreError.unwritable(path, error) from error


def make_folder(folder: Path) -> None:
    """Create a folder for results before anything is computed; raise UsageError if it cannot be written to."""
    patience = time.monotonic() + CONTESTED
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".exitbench-probe"
            probe.touch()
            probe.unlink(missing_ok=True)  # another run may have removed it first
            return
        except OSError as error:
            gone = isinstance(error, FileNotFoundError | FileExistsError) and not os.path.lexists(folder)
            if not gone or time.monotonic() > patience:  # a failing run removes the folders it created
                raise UsageError(f"--output {folder}: can't be written to ({error.strerror})") from error
