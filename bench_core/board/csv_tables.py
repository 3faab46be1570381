"""Tables as csv that a spreadsheet opens without running anything, and that is read back as it was.

A text cell that begins with one of ``= + - @ '``, a tab or a carriage return, or that holds a character that isn't
printable, is escaped: an apostrophe goes before it, backslashes are doubled, and what isn't printable becomes ``\\n``,
``\\x1b``, ``\\u202e`` and so on. The names of columns are escaped alike. Numbers are written as they are.
"""

import csv
import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bench_core.board.schema import TEXT_COLUMNS
from bench_core.errors import visible
from bench_core.util.files import read_text

__all__ = ["csv_text", "escaped", "parse_csv", "read_table", "table_of", "unescaped"]

_FORMULAS = tuple("=+-@＝＋－＠")
_MARK = "'"
_ESCAPES = re.compile(r"\\(?:(\\)|([nrt])|x([0-9a-f]{2})|u([0-9a-f]{4})|U(00[01][0-9a-f]{5}))")
_LETTERS = {"n": "\n", "r": "\r", "t": "\t"}
# Before 3.1 pandas took a faster way by default, which can miss the last digit.
_EXACT: dict[str, Any] = (
    {"float_precision": "round_trip"} if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1) else {}
)
_NO_FIGURE = ["", "nan", "NaN"]


def csv_text(table: pd.DataFrame) -> str:
    """Return a table as csv without its index, text escaped."""
    shown = table.rename(columns=lambda name: escaped(str(name)))
    for place, column in enumerate(shown.columns):
        if shown.dtypes.iloc[place].kind not in "biuf":
            shown = shown.assign(**{column: shown.iloc[:, place].map(_cell).astype(object)})
    return str(shown.to_csv(index=False, lineterminator="\n"))


def read_table(path: Path, types: Mapping[str, type] | None = None) -> pd.DataFrame:
    """Return a table as it was written, to the last digit; columns of ``TEXT_COLUMNS`` hold text or NaN.

    Args:
        path: a regular file, UTF-8.
        types: of further columns, by name.

    Raises:
        OSError, ValueError: it can't be read, or is no csv.
    """
    return table_of(read_text(path), types)


def table_of(text: str, types: Mapping[str, type] | None = None) -> pd.DataFrame:
    """Return the table that ``csv_text`` wrote, as ``read_table`` does. Raises ValueError for what is no csv."""
    options: dict[str, Any] = {"keep_default_na": False, **_EXACT}
    names = _header(text)
    text_columns = [name for name in names if unescaped(name) in TEXT_COLUMNS]
    kinds = {**(types or {}), **dict.fromkeys(text_columns, str)}
    missing = {name: [""] if name in text_columns else _NO_FIGURE for name in names}
    table = parse_csv(text, dtype=kinds, na_values=missing, low_memory=False, **options)
    for name in text_columns:
        if name in table and table[name].str.startswith(_MARK, na=False).any():
            table[name] = table[name].map(unescaped, na_action="ignore")
    return table.rename(columns=unescaped)


def _header(text: str) -> list[str]:
    try:
        return list(dict.fromkeys(next(csv.reader(io.StringIO(text)), [])))
    except csv.Error as error:
        raise ValueError(str(error)) from error


def parse_csv(text: str, **options: Any) -> pd.DataFrame:
    """Return the table in a csv text; ``options`` are those of ``pandas.read_csv``.

    Raises ValueError for what is no csv, and for rows with more cells than there are columns.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            found: pd.DataFrame = pd.read_csv(io.StringIO(text), index_col=False, **options)
        except pd.errors.ParserWarning as error:
            raise ValueError("a row has more cells than the header") from error
        except (OverflowError, TypeError, ValueError) as error:  # pandas' messages have several lines
            raise ValueError(" ".join(str(error).split())) from error
    return found


def escaped(text: str) -> str:
    """Return text as a cell that no spreadsheet takes for a formula; ``unescaped`` gives it back."""
    if text.isprintable() and not text.startswith((*_FORMULAS, _MARK)):
        return text
    return _MARK + visible(text.replace("\\", "\\\\"))


def unescaped(cell: str) -> str:
    """Return the text of a cell that ``escaped`` made."""
    return _ESCAPES.sub(_character, cell[1:]) if cell.startswith(_MARK) else cell


def _cell(value: Any) -> Any:
    return escaped(value) if isinstance(value, str) else value


def _character(match: "re.Match[str]") -> str:
    backslash, letter, *codes = match.groups()
    return backslash or _LETTERS.get(letter or "") or chr(int("".join(code or "" for code in codes), 16))
