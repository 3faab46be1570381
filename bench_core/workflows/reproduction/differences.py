"""Differences between the tables of two boards, cell by cell."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench_core.board.board import Board
from bench_core.workflows.reproduction.contract import is_empty

__all__ = ["Difference", "differences", "exactly"]

# Columns that identify a row of each table; rows with equal ones are distinguished by their order.
_KEYS = {
    "rows": ("workload", "strategy", "operating_point"),
    "workloads": ("workload",),
    "curves": ("workload", "strategy"),
    "pairwise": ("workload", "operating_point", "strategy", "rival"),
    "classes": ("workload", "strategy", "operating_point", "class"),
    "reliability": ("workload", "timestep", "bin"),
    "summary": ("operating_point", "strategy"),
    "seeds": ("workload", "operating_point", "strategy"),
    "shift": ("workload", "strategy", "operating_point", "corruption", "severity"),
}


@dataclass(frozen=True)
class Difference:
    """A cell or a whole row that differs between two boards.

    Attributes:
        table: its name.
        row: the row of the first board; of the second if only that has it.
        column: the cell's; empty if a row is missing or new.
        text: one line describing the difference.
        found: the row of the second board; None if only one has it.
    """

    table: str
    row: Mapping[str, Any]
    column: str
    text: str
    found: Mapping[str, Any] | None = None


def differences(
    table: str, expected: Board, found: Board, same: Callable[[str, Any, Any], bool]
) -> Iterator[Difference]:
    """Compare one table of two boards.

    Args:
        table: its name.
        expected: the first board.
        found: the second board.
        same: (column, expected, found) -> whether two cells agree.
    """
    left, right = (_by_key(getattr(board, table), _KEYS[table]) for board in (expected, found))
    start = "" if table == "rows" else f"{table}.csv: "
    for key, row in left.items():
        if key not in right:
            yield Difference(table, row, "", f"{start}{key}: the row is missing")
    for key, row in right.items():
        if key not in left:
            yield Difference(table, row, "", f"{start}{key}: the row is new")
    for key, row in left.items():
        for column, value in row.items() if key in right else ():
            other = right[key].get(column)
            if not same(column, value, other):
                text = f"{start}{key}: {column}: expected {value}, found {other}"
                yield Difference(table, row, column, text, right[key])


def exactly(_column: str, expected: Any, found: Any) -> bool:
    """Return whether two cells are equal as written."""
    if is_empty(expected) or is_empty(found):
        return is_empty(expected) and is_empty(found)
    return bool(expected == found or str(expected) == str(found))


def _by_key(table: pd.DataFrame, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    seen: Counter[str] = Counter()
    for record in table.to_dict("records"):
        key = ", ".join(str(record[name]) for name in names)
        seen[key] += 1
        found[key if seen[key] == 1 else f"{key}, number {seen[key]}"] = {str(k): value for k, value in record.items()}
    return found
