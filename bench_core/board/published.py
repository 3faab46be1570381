"""Published figures on a board's data sets, shown next to its rows but never ranked with them.

They come from other networks and other training, and most of their thresholds were chosen on the test data. A file
``published.csv`` in a board's folder, or next to it, holds them, one row per figure:

=====================  ================================================================================================
column                 meaning
=====================  ================================================================================================
``method``             exit strategy, with what distinguishes it
``network``            its base network, as named by the source
``dataset``            name of a data set, as listed by ``exitbench list datasets``
``timesteps``          T of the network
``accuracy``           in percent
``average_timesteps``  mean exit timestep, or the reference point that ``method`` names
``source``             paper
``evidence``           where the figure was read
``thresholds``         how the source chose its thresholds
=====================  ================================================================================================

A cell without a figure means unknown.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Final

import pandas as pd

from bench_core.board.csv_tables import parse_csv
from bench_core.errors import UsageError
from bench_core.util.files import read_text

__all__ = ["FIGURES", "PUBLISHED_COLUMNS", "REMARK", "published_table", "read_published"]

FILE: Final = "published.csv"
PUBLISHED_COLUMNS: Final = {  # and their headings for readers
    "method": "method",
    "network": "network",
    "dataset": "data set",
    "timesteps": "T",
    "accuracy": "accuracy %",
    "average_timesteps": "avg t",
    "source": "source",
    "evidence": "read in",
    "thresholds": "thresholds chosen",
}
_LARGEST = {"timesteps": 1e6, "accuracy": 100.0, "average_timesteps": 1e6}
FIGURES: Final = tuple(PUBLISHED_COLUMNS[name] for name in _LARGEST)  # columns of figures, by heading
REMARK: Final = (
    "As published, not measured here and not ranked: other networks, other training, and thresholds mostly chosen on "
    "the test data."
)


def read_published(folder: Path, datasets: Collection[str]) -> pd.DataFrame:
    """Return the published figures on these data sets, in the file's order; empty without a file.

    Args:
        folder: of a board.
        datasets: names of data sets.

    Raises:
        UsageError: the file is invalid; names file, row and column.
    """
    path = next((place for place in (folder / FILE, folder.absolute().parent / FILE) if place.is_file()), None)
    if path is None:
        return pd.DataFrame(columns=list(PUBLISHED_COLUMNS))
    try:
        table = parse_csv(read_text(path), dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not readable ({error!s:.300})") from error
    if list(table.columns) != list(PUBLISHED_COLUMNS):
        found, wanted = (", ".join(map(str, columns)) for columns in (table, PUBLISHED_COLUMNS))
        raise UsageError(f"{path}: its columns are {found}; they have to be {wanted}")
    for column, largest in _LARGEST.items():
        figures = pd.to_numeric(table[column].replace("", "nan"), errors="coerce")
        wrong = table.index[~figures.between(0, largest) & ~table[column].isin(["", "nan"])]
        if len(wrong):
            what = "no number" if figures.isna()[wrong[0]] else f"not between 0 and {largest:g}"
            raise UsageError(f"{path}: row {wrong[0] + 1}: {column} {table[column][wrong[0]]!r} is {what}")
    return table[table["dataset"].isin(list(datasets))].reset_index(drop=True)


def published_table(published: pd.DataFrame) -> pd.DataFrame:
    """Return the figures as text for display, with ``n/a`` for unknown ones."""
    return published.replace("", "n/a").rename(columns=PUBLISHED_COLUMNS)
