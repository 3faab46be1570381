"""Validation of the cells of a board's tables: text, figures and lists, so that readers of a board can rely on them."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
import pandas as pd

from bench_core.board.schema import TEXT_COLUMNS

__all__ = ["check_cells"]

_REQUIRED: Final = frozenset({"workload", "strategy", "rival", "operating_point", "suite", "corruption"})
_UNBOUNDED: Final = ("energy_", "edp_")  # determined by the cost model
_LARGEST: Final = 1e300
_MOST_TIMESTEPS: Final = 1_000_000


def check_cells(name: str, table: pd.DataFrame) -> None:
    """Validate the cells of a board's table, and convert figures that were read as text.

    Args:
        name: of the table, such as ``rows``.
        table: as returned by ``read_table``; modified in place.

    Raises:
        ValueError: one line with file, row (from 1, below the header), column and cell.
    """
    nested = _NESTED.get(name, {})
    for column in map(str, table.columns):
        cells = table[column]
        if isinstance(cells, pd.DataFrame):
            raise ValueError(f"{name}.csv: column {column} is there twice")
        if column in nested:
            what, fits = nested[column]
            _refuse_first(name, column, cells, cells.notna() & ~cells.map(partial(_fits, fits=fits)).astype(bool), what)
        elif column in TEXT_COLUMNS:
            if column in _REQUIRED:
                _refuse_first(name, column, cells, cells.isna(), "empty")
        elif column != "value":  # a knob's value may be a choice
            _check_figures(name, column, table)
    if name == "workloads":
        _refuse_first(name, "workload", table["workload"], table["workload"].duplicated(), "there twice")
        for column in _NESTED[name]:
            _refuse_first(name, column, table[column], table[column].isna(), "empty")


def _check_figures(name: str, column: str, table: pd.DataFrame) -> None:
    cells = table[column]
    if cells.dtype.kind not in "iuf":
        figures = pd.to_numeric(cells.astype(object).map(str, na_action="ignore"), errors="coerce")
        _refuse_first(name, column, cells, figures.isna() & cells.notna(), "no number")
        table[column] = figures
    values = table[column].to_numpy()
    if not column.startswith(_UNBOUNDED) and (np.abs(values) > _LARGEST).any():
        _refuse_first(name, column, cells, table[column].abs() > _LARGEST, "no finite number")
    if column == "timesteps" and name == "workloads":
        _refuse_first(name, column, cells, ~table[column].between(1, _MOST_TIMESTEPS), "no number of timesteps")


def _refuse_first(name: str, column: str, cells: "pd.Series[Any]", wrong: "pd.Series[bool]", what: str) -> None:
    if wrong.any():
        place = int(wrong.to_numpy().argmax())
        cell = cells.iloc[place]
        raise ValueError(f"{name}.csv, row {place + 1}: {column} {str(cell)!r:.60} is {what}")


def _fits(cell: object, fits: Callable[[Any], bool]) -> bool:
    try:
        return fits(json.loads(cell)) if isinstance(cell, str) else False
    except (ValueError, RecursionError):
        return False


def _are_figures(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= _MOST_TIMESTEPS and all(map(_is_figure, value))


def _are_some_figures(value: Any) -> bool:
    return value == [] or _are_figures(value)  # between timesteps: empty for T = 1


def _are_counts(value: Any) -> bool:
    return _are_figures(value) and all(type(count) is int and 0 <= count < 2**53 for count in value) and sum(value) > 0


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _are_knobs(value: Any) -> bool:
    return isinstance(value, dict) and all(
        knob is None or isinstance(knob, str | int | float) for knob in value.values()
    )


def _are_outcomes(value: Any) -> bool:
    return isinstance(value, dict) and all(_are_figures(three) and len(three) == 3 for three in value.values())


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(isinstance(name, str) for name in value)


_Fits = tuple[str, Callable[[Any], bool]]
_NESTED: Final[dict[str, dict[str, _Fits]]] = {
    "rows": {
        "exit_histogram": ("no list of counts", _are_counts),
        "parameters": ("no JSON object of knobs", _are_knobs),
    },
    "workloads": {
        "static_accuracy": ("no list of figures", _are_figures),
        "calibration_error": ("no list of figures", _are_figures),
        "flips_to_wrong": ("no list of figures", _are_some_figures),
        "flips_to_right": ("no list of figures", _are_some_figures),
    },
    "summary": {"by_workload": ("no JSON object of wins, losses and ties", _are_outcomes)},
    "seeds": {"workloads": ("no list of names", _are_names)},
}
