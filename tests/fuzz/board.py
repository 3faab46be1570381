"""A small board with every table that a board may have: the valid files that its fuzzed ones are made of."""

import pandas as pd

from bench_core.board.over_seeds import seed_table
from bench_core.board.schema import MEASUREMENT_COLUMNS, RAW_COLUMNS, TRAINING_COLUMNS
from bench_core.board.tables import summary_table
from tests.browser.boards import POINTS, make_board
from tests.helpers.boards import write_board

__all__ = ["BOARD", "board_seeds"]

BOARD = (
    "manifest.json",
    "rows.csv",
    "workloads.csv",
    "curves.csv",
    "pairwise.csv",
    "classes.csv",
    "reliability.csv",
    "summary.csv",
    "seeds.csv",
    "shift.csv",
    "measurements.csv",
    "measurements-raw.csv",
    "training.csv",
)
KEPT = ("fixed", "seenn-i")  # strategies; fewer make a case quicker


def board_seeds(folder):
    """Write the board into ``folder``; the bytes of its files by name."""
    board = make_board(whole=True)
    for name in ("rows", "pairwise", "classes", "shift"):
        table = getattr(board, name)
        chosen = table["operating_point"] == POINTS[0]
        for column in {"strategy", "rival"} & set(table):
            chosen &= table[column].isin(KEPT)
        setattr(board, name, table[chosen].reset_index(drop=True))
    board.curves = board.curves[board.curves["strategy"].isin(KEPT)].groupby(["workload", "strategy"]).head(3)
    board.summary = summary_table(board.rows)
    board.seeds = seed_table(board.rows, {"first": ["first", "first again"]})
    log = [("first", "all", epoch, 1 / epoch, 1 - 1 / epoch, 9.0, "cpu", 1, "2.13.0") for epoch in (1, 2, 3)]
    board.training = pd.DataFrame(log, columns=list(TRAINING_COLUMNS))
    keys = ["workload", "strategy", "operating_point"]
    measured = board.rows.loc[board.rows["accuracy"].notna(), keys].head(3).to_dict("records")
    figures = dict.fromkeys(MEASUREMENT_COLUMNS, 1.5) | {"device": "cpu", "samples": 2, "batch": 64, "threads": 1}
    records = [{**figures, **row, "policy": f"{number:016x}"} for number, row in enumerate(measured)]
    board.measurements = pd.DataFrame(records, columns=list(MEASUREMENT_COLUMNS))
    times = [("first", 1, record["policy"], 1, 0, repetition, 2.5) for record in records for repetition in (0, 1)]
    board.raw = pd.DataFrame(times, columns=list(RAW_COLUMNS))
    write_board(board, folder)
    return {name: (folder / name).read_bytes() for name in BOARD}
