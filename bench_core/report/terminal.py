"""The board in a terminal: one compact table per workload, within 100 columns."""

import textwrap

import pandas as pd
import tabulate as tables
from tabulate import tabulate

from bench_core.board.board import Board
from bench_core.board.schema import priced
from bench_core.errors import visible
from bench_core.report.presentable import presentable
from bench_core.report.text_tables import (
    energy_order,
    leaderboard,
    reference_line,
    sections,
    seed_tables,
    shift_by_condition,
    shift_tables,
    static_line,
    workload_facts,
)

__all__ = ["loss_curve", "terminal"]

WIDTH = 100  # characters

_COLUMNS = {
    "rank": "#",
    "strategy": "strategy",
    "value": "knob",
    "accuracy %": "acc %",
    "Δ points": "Δ",
    "avg exit t": "avg t",
    "ms": "ms",
    "speed-up": "speed",
    "gap points": "gap",
}

_SHORT_NOTES = {"missed target": "missed", "fallback: static T": "static T", "over budget on test": "over"}


def terminal(board: Board, operating_points: list[str]) -> str:
    """Return the tables of the given operating points as text.

    Control characters in names are escaped; pass ``operating_points`` as the board spells them.
    """
    board, operating_points = presentable(board), [visible(name) for name in operating_points]
    facts = workload_facts(board)
    blocks = []
    for workload, point, rows in sections(board, operating_points):
        table = leaderboard(rows, board.workloads)
        table["value"] = table["knob"].str.split(" ").str[-1]
        table["avg exit t"] = table["avg exit t"].str.split(" ").str[0]
        costs = priced(rows.columns)[:1]  # the markdown has the others; here one order must suffice
        energies = {f"{cost.energy_unit} ({cost.model})": cost.energy_unit for cost in costs}
        columns = {**_COLUMNS, **energies, "note": ""}
        for long, short in _SHORT_NOTES.items():
            table["note"] = table["note"].str.replace(long, short, regex=False)
        shown = table[list(columns)].rename(columns=columns)
        blocks.append(f"{workload}, {point}" + "".join(f" (energy: {cost.model})" for cost in costs))
        if workload in facts:
            blocks.append(f"static %: {_short(static_line(facts[workload]))}\n{reference_line(facts[workload])}")
        if order := energy_order(rows):
            blocks.append(textwrap.fill(order, WIDTH))
        blocks.append(_tight(shown) + "\n")
    for name, point, table in seed_tables(board):
        if point in operating_points:
            blocks.append(f"{name}, {point}, over seeds\n{_tight(table)}\n")
    for workload, rows in shift_tables(board):
        for point in operating_points:
            if len(own := rows[rows["operating_point"] == point]):
                table = shift_by_condition(own)
                table.columns = table.columns.str.removeprefix(f"{point}: ")
                title = f"{workload}, {point}, under corruption"
                means = "broken: policies whose promise is; Δ and avg t: means over the policies"
                blocks.append(f"{title}\n{means}\n{_tight(table)}\n")
    return "\n".join(blocks)


def _tight(table: pd.DataFrame) -> str:
    """Format a table with columns no wider than needed, so that a board fits 100 columns."""
    usual, tables.MIN_PADDING = tables.MIN_PADDING, 0
    try:
        return tabulate(table.values.tolist(), headers=list(table.columns), disable_numparse=True)
    finally:
        tables.MIN_PADDING = usual


def _short(line: str, most: int = 8) -> str:
    """Shorten a long list of timesteps to its first few and the last."""
    parts = line.split(", ")
    return line if len(parts) <= most else ", ".join([*parts[: most - 1], "…", parts[-1]])


def loss_curve(history: list[dict[str, float]]) -> str:
    """Return loss and accuracy of each epoch, with a bar proportional to the loss."""
    highest = max(record["loss"] for record in history)
    rows = [
        [
            int(r["epoch"]),
            f"{r['loss']:.4f}",
            f"{100 * r['accuracy']:.2f}",
            "█" * max(1, round(40 * r["loss"] / highest)),
        ]
        for r in history
    ]
    return tabulate(rows, headers=["epoch", "loss", "train acc %", ""], disable_numparse=True)
