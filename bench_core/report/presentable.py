"""Boards whose text is safe to show anywhere: control characters in names, notes and manifests become escapes."""

from dataclasses import fields, replace
from typing import Any

import pandas as pd

from bench_core.board.board import Board
from bench_core.errors import visible

__all__ = ["presentable"]


def presentable(board: Board) -> Board:
    """Return the board with ``visible`` text in every table, column name and part of the manifest.

    Returns the same board if there is nothing to escape.
    """
    changed: dict[str, Any] = {}
    for name in (field.name for field in fields(board)):
        part = getattr(board, name)
        shown = _shown_table(part) if isinstance(part, pd.DataFrame) else _shown(part)
        if shown is not part:
            changed[name] = shown
    return replace(board, **changed) if changed else board


def _shown_table(table: pd.DataFrame) -> pd.DataFrame:
    odd = [
        place
        for place, kind in enumerate(table.dtypes)
        if kind.kind not in "biuf" and not table.iloc[:, place].map(_is_plain).all()
    ]
    if odd:
        table = table.copy()
        for place in odd:
            table.isetitem(place, table.iloc[:, place].map(_shown).array)
    if not all(map(_is_plain, table.columns)):
        table = table.rename(columns=_shown)
    return table


def _is_plain(cell: Any) -> bool:
    return not isinstance(cell, str) or cell.isprintable()


def _shown(value: Any) -> Any:
    """Return a JSON-like value with all its texts and names visible; the same object if they already are."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        shown = {_shown(name): _shown(item) for name, item in value.items()}
        return shown if any(a is not b for a, b in zip(_leaves(shown), _leaves(value), strict=False)) else value
    if isinstance(value, list):
        items = [_shown(item) for item in value]
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    return value


def _leaves(value: dict[Any, Any]) -> list[Any]:
    return [*value.keys(), *value.values()]
