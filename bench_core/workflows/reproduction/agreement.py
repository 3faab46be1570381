"""Agreement of a recomputed board with the committed one, under the contract for numbers."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench_core.board.board import Board
from bench_core.board.csv_tables import csv_text
from bench_core.util.environment import environment
from bench_core.util.whole_folder import place_of
from bench_core.workflows.reproduction.committed_policies import ReplayedPolicies
from bench_core.workflows.reproduction.contract import (
    ACCURACY_POINTS,
    RELATIVE,
    TIMESTEP_SHARE,
    same_cell,
    same_numerics,
)
from bench_core.workflows.reproduction.differences import differences, exactly
from bench_core.workflows.reproduction.near_ties import excuse

__all__ = [
    "Reproduction",
    "changed_tables",
    "compare_decisions",
    "compare_exactly",
    "numerics_remark",
    "part_of",
    "tolerances",
]

_AMONG = ("pairwise", "summary", "seeds")
_STANDING = ["rank", "wins", "losses", "ties"]
_SHOWN = 40


@dataclass
class Reproduction:
    """The result of a reproduction.

    Attributes:
        drift: a line per difference that is not allowed; empty if the board was reproduced.
        remarks: what was compared, and how strictly.
    """

    drift: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The result as text; at most 40 differences are listed."""
        shown = self.drift[:_SHOWN]
        more = [f"… and {len(self.drift) - _SHOWN} more"] if len(self.drift) > _SHOWN else []
        verdict = "drifted" if self.drift else "reproduced"
        return "\n".join([*self.remarks, *shown, *more, verdict])


def compare_decisions(
    result: Reproduction,
    committed: Board,
    board: Board,
    folder: Path,
    sides: Callable[[str], Mapping[str, ReplayedPolicies]],
    *,
    partly: bool = False,
) -> None:
    """Compare a board recomputed from the committed traces.

    Args:
        result: receives drift and remarks.
        committed: the committed board.
        board: the recomputed board.
        folder: of the committed board.
        sides: (workload) -> its policies on ``fit``, ``select`` and ``test``.
        partly: both boards are a ``part_of`` the board in ``folder``.
    """
    if committed.shift is not None and board.shift is None:
        result.remarks.append(
            f"shift.csv is not compared: traces under corruption are not in {folder}/traces; "
            "`--from weights` records them again"
        )
    names, changed = changed_tables(result, committed, board, folder)
    if blind := _blind(committed, board):
        result.remarks.append(
            f"{', '.join(blind)}: not compared, nor are ranks and what stands in "
            f"{', '.join(f'{name}.csv' for name in _AMONG if name in names)}: without the inputs they can't be replayed"
        )
        changed = [name for name in names if name not in _AMONG]
        committed, board = (_without(one, blind) for one in (committed, board))
    if not changed:
        return
    strict = same_numerics(committed.manifest["environment"], environment(), threads=False)
    result.remarks.append(numerics_remark(committed.manifest["environment"], environment(), strict=strict))
    if strict:
        compare_exactly(result, committed, board, changed, partly=partly or bool(blind))
        return
    found = [one for name in changed for one in differences(name, committed, board, same_cell)]
    if not found:
        result.remarks.append(f"every decision is the same, figures and knobs agree to {RELATIVE:g}")
        return
    told = excuse(found, committed, sides)
    result.drift += [one.text for one in told.drift]
    if told.rows:
        result.remarks.append(
            f"{told.rows} rows have samples with a score within {RELATIVE:g} of the threshold ({told.samples} in all); "
            "rounding decides where those stop; what follows from these rows is not compared"
        )
    if told.networks:
        result.remarks.append(
            f"{told.networks} rows of policy networks agree as networks do: {tolerances()}; what follows from them is "
            "not compared"
        )


def changed_tables(result: Reproduction, committed: Board, board: Board, folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of all tables, and of those that are not equal byte by byte; missing tables are drift."""
    result.drift += [f"{name}.csv: is missing" for name in board.tables if name not in committed.tables]
    names = [name for name in committed.tables if name in board.tables]
    changed = [
        name
        for name in names
        if csv_text(board.tables[name]) != place_of(folder, f"{name}.csv").read_text(encoding="utf-8")
    ]
    if not changed:
        files = [f"{name}.csv" for name in names]
        result.remarks.append(f"{', '.join(files[:-1])} and {files[-1]} are equal byte by byte")
    return names, changed


def compare_exactly(
    result: Reproduction, committed: Board, board: Board, changed: Sequence[str], *, partly: bool = False
) -> None:
    """Add every cell that is not equal as written to the drift.

    Args:
        result: receives the drift.
        committed: the committed board.
        board: the other board.
        changed: names of the tables whose bytes differ.
        partly: rows were omitted on both sides, so bytes may differ although no value does.
    """
    for name in changed:
        found = [one.text for one in differences(name, committed, board, exactly)]
        result.drift += found or ([] if partly else [f"{name}.csv: the files differ, their values don't"])


def numerics_remark(made: Mapping[str, Any], here: Mapping[str, Any], *, strict: bool) -> str:
    """Describe how strictly two boards are compared, and why.

    Args:
        made: environment of the committed board or of one of its traces; empty if unknown.
        here: environment of the other; empty if unknown.
        strict: whether they round alike.
    """
    if strict:
        return "versions and numerics fingerprint are those of the manifest, so every byte has to be equal"
    names = [name for name in here if made.get(name) != here[name]]
    other = ", ".join(f"{name} {made.get(name, 'unknown')} → {here[name]}" for name in names)
    why = f"other numerics ({other})" if made else "the manifest doesn't say what a trace was recorded with"
    return f"{why}: bytes may differ, the contract for numbers holds"


def _blind(committed: Board, found: Board) -> list[str]:
    """Return the board's strategies that could not be replayed because inputs are missing."""
    unavailable = found.rows["status"].str.startswith("unavailable")
    wanted = set(committed.rows.loc[~committed.rows["status"].str.startswith("unavailable"), "strategy"])
    return [name for name in dict.fromkeys(found.rows.loc[unavailable, "strategy"]) if name in wanted]


def _without(board: Board, strategies: Sequence[str]) -> Board:
    """Return the board without these strategies, and without what depends on them in other rows."""
    kept: dict[str, Any] = {
        name: table[~table["strategy"].isin(strategies)] if "strategy" in table else table
        for name, table in board.tables.items()
    }
    return dataclasses.replace(board, **{**kept, "rows": kept["rows"].drop(columns=_STANDING)})


def part_of(board: Board, workloads: Collection[str]) -> Board:
    """Return the board with only these workloads, and without results across workloads."""
    kept: dict[str, Any] = {
        name: table.iloc[:0] if name in _AMONG else table[table["workload"].isin(workloads)]
        for name, table in board.tables.items()
    }
    return dataclasses.replace(board, **{**kept, "rows": kept["rows"].drop(columns=_STANDING)})


def tolerances() -> str:
    """Return the tolerances for networks, in words."""
    return f"{ACCURACY_POINTS} points and {TIMESTEP_SHARE:.0%}, or one sample"
