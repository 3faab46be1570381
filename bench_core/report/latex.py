"""The board as LaTeX: a booktabs table per workload and operating point, ready for a paper."""

import pandas as pd
from tabulate import tabulate

from bench_core.columns import priced
from bench_core.leaderboard import leaderboard, sections
from bench_core.results import Board

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
_COLUMNS = {
    "rank": "rank",
    "strategy": "strategy",
    "accuracy %": "accuracy (%)",
    "Δ points": "Δ",
    "avg exit t": "avg exit t",
    "hull %": "hull (%)",
    "speed-up": "speed-up",
}
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
}


def latex(board: Board) -> str:
    """Every workload and operating point, to be put into a paper with ``\\input``."""
    suite = board.manifest["suite"]
    parts = [_HEAD.format(suite=_comment(f"{suite['name']}: {suite['title']}"))]
    for number, (workload, point, rows) in enumerate(sections(board), start=1):
        shown = _abridged(rows, board.workloads)
        caption = _CAPTION.format(workload=escape(workload), point=escape(point), hull="Hull")
        body = tabulate(
            [[escape(cell) for cell in row] for row in shown.itertuples(index=False)],
            headers=[escape(name) for name in shown],
            tablefmt="latex_raw",
            disable_numparse=True,
            colalign=["left" if name in ("strategy", "note") else "right" for name in shown],
        )
        parts.append(_TABLE.format(caption=caption, label=f"exitbench-{number}", body=_booktabs(body)))
    return "".join(parts)


def escape(text: object) -> str:
    """Text that LaTeX shows as it is."""
    return "".join(_SPECIAL.get(mark, mark) for mark in " ".join(str(text).split()))


def _comment(text: str) -> str:
    return " ".join(text.split())


def _abridged(rows: pd.DataFrame, workloads: pd.DataFrame) -> pd.DataFrame:
    """The columns that fit a page."""
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
    """tabulate's own booktabs format escapes a second time; its raw one has plain rules."""
    first, middle, last = (r"\toprule", r"\midrule", r"\bottomrule")
    lines = table.splitlines()
    rules = [index for index, line in enumerate(lines) if line == r"\hline"]
    for index, rule in zip(rules, (first, middle, last), strict=True):
        lines[index] = rule
    return "\n".join(lines)
