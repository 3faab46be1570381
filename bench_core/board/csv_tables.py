r"""Tables as csv that spreadsheets can open without executing formulas, and that are read back unchanged.

A text cell that begins with one of ``= + - @ '``, a tab or a carriage return, or that contains a non-printable
character, is escaped: it is prefixed with an apostrophe, backslashes are doubled, and non-printable characters become
``\n``, ``\x1b``, ``\u202e`` and so on. Column names are escaped likewise. Numbers are written unchanged.
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
# Before 3.1, pandas' default parser is faster but can lose the last digit.
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
    """Return a table exactly as it was written; columns of ``TEXT_COLUMNS`` hold text or NaN.

    Args:
        path: a regular file, UTF-8.
        types: of further columns, by name.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not csv.
    """
    return table_of(read_text(path), types)


def table_of(text: str, types: Mapping[str, type] | None = None) -> pd.DataFrame:
    """Return the table that ``csv_text`` wrote, as ``read_table`` does; raise ValueError if the text is not csv."""
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

    Raises:
        ValueError: the text is not csv, or a row has more cells than there are columns.
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
    """Return text as a cell that no spreadsheet takes for a formula; ``unescaped`` reverses it."""
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
