"""The board as LaTeX: booktabs tables per workload and operating point, over seeds, under corruption."""

from collections.abc import Iterator

import pandas as pd
from tabulate import tabulate

from bench_core.board.board import Board
from bench_core.board.schema import priced
from bench_core.errors import visible
from bench_core.report.presentable import presentable
from bench_core.report.text_tables import (
    NOT_AVAILABLE,
    leaderboard,
    sections,
    seed_tables,
    shift_by_severity,
    shift_promises,
    shift_rows,
)

__all__ = ["escape", "latex"]

_HEAD = r"""% {suite}
% Needs \usepackage[T1]{{fontenc}} and \usepackage{{booktabs}}. Abridged: leaderboard.md has every column.
"""
_TABLE = r"""
\begin{{table}}
\centering\small
\caption{{{caption}}}
\label{{tab:{label}}}
{body}
\end{{table}}
"""
_CAPTION = (
    "{workload}, {point}. Thresholds were chosen on calibration data. A rank is 1 + the number of rows significantly "
    "better. {hull} is the best mixture of fixed timesteps at the same average exit timestep."
)
_SEEDS = (
    "{name}, {point}, over training seeds. Means; in brackets {interval}. Missed: seeds at which the row missed its "
    "target or went over its budget on test."
)
_SHIFT = (
    "{workload}, {point}, under corruption, {samples} test samples. Policies were chosen on clean calibration data; "
    "severity 0 is clean. Means over the policies; $\\Delta$ is against static T under the same corruption; broken: "
    "policies that significantly missed what the operating point promises."
)
_PROMISES = (
    "{workload}, {point}, under corruption. Broken: under how many corruptions the promise of the operating point was "
    "significantly missed, and at which severities."
)
_COLUMNS = {
    "rank": "rank",
    "strategy": "strategy",
    "accuracy %": "accuracy (%)",
    "Δ points": "Δ",
    "avg exit t": "avg exit t",
    "hull %": "hull (%)",
    "speed-up": "speed-up",
}
_WORDS = ("strategy", "note", "corruption")
_INTERVALS = {"range": "the smallest and the largest value", "95 % t": r"the 95\,\% t interval of the mean"}
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "µ": r"$\mu$",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "−": r"$-$",
    "…": r"\dots{}",
    "–": "--",
}


def latex(board: Board) -> str:
    r"""Return all workloads and operating points, for inclusion in a paper with ``\input``."""
    board = presentable(board)
    suite = board.manifest["suite"]
    parts = [_HEAD.format(suite=_comment(f"{suite['name']}: {suite['title']}"))]
    for number, (workload, point, rows) in enumerate(sections(board), start=1):
        caption = _CAPTION.format(workload=escape(workload), point=escape(point), hull="Hull")
        parts.append(_table(_abridged(rows, board.workloads), caption, str(number)))
    for number, (name, point, table) in enumerate(seed_tables(board), start=1):
        kinds = [kind for kind in dict.fromkeys(table["interval"]) if kind != NOT_AVAILABLE]
        interval = " or ".join(_INTERVALS.get(kind) or escape(kind) for kind in kinds) or "nothing, of a single seed"
        caption = _SEEDS.format(name=escape(name), point=escape(point), interval=interval)
        parts.append(_table(table.drop(columns="interval"), caption, f"seeds-{number}"))
    for number, (workload, point, rows) in enumerate(_under_corruption(board), start=1):
        names = {"workload": escape(workload), "point": escape(point)}
        caption = _SHIFT.format(**names, samples=rows["samples"].max())
        parts.append(_table(shift_by_severity(rows), caption, f"shift-{number}"))
        promises = shift_promises(rows)
        shown = [name for name in promises if str(name).endswith(("strategy", "broken", "broken at"))]
        parts.append(_table(promises[shown], _PROMISES.format(**names), f"promises-{number}"))
    return "".join(parts)


def _under_corruption(board: Board) -> Iterator[tuple[str, str, pd.DataFrame]]:
    for workload in dict.fromkeys(board.rows["workload"]):
        yield from ((str(workload), point, rows) for point, rows in shift_rows(board, workload))


def _table(table: pd.DataFrame, caption: str, label: str) -> str:
    body = tabulate(
        [[escape(cell) for cell in row] for row in table.itertuples(index=False)],
        headers=[escape(name) for name in table],
        tablefmt="latex_raw",
        disable_numparse=True,
        colalign=["left" if name in _WORDS else "right" for name in table],
    )
    return _TABLE.format(caption=caption, label=f"exitbench-{label}", body=_booktabs(body))


def escape(text: object) -> str:
    """Escape text so that LaTeX shows it literally."""
    return "".join(_SPECIAL.get(mark, mark) for mark in " ".join(visible(str(text)).split()))


def _comment(text: str) -> str:
    return " ".join(visible(text).split())


def _abridged(rows: pd.DataFrame, workloads: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that fit a page."""
    table = leaderboard(rows, workloads)
    names = dict(_COLUMNS)
    if rows["latency_ms"].isna().all():
        del names["speed-up"]
    for cost in priced(rows.columns):
        if rows[cost.energy].notna().any():
            names[f"{cost.energy_unit} ({cost.model})"] = f"{cost.energy_unit} ({cost.model})"
    if (table["note"] != "").any():
        names["note"] = "note"
    return table[list(names)].rename(columns=names)


def _booktabs(table: str) -> str:
    """Insert booktabs rules; tabulate's own booktabs format would escape a second time, its raw one has plain rules."""
    first, middle, last = (r"\toprule", r"\midrule", r"\bottomrule")
    lines = table.splitlines()
    rules = [index for index, line in enumerate(lines) if line == r"\hline"]
    for index, rule in zip(rules, (first, middle, last), strict=True):
        lines[index] = rule
    return "\n".join(lines)
