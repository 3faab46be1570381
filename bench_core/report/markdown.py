"""The board as markdown: every workload and operating point."""

import pandas as pd

from bench_core.board.board import Board
from bench_core.board.over_seeds import REMARK as SEEDS_REMARK
from bench_core.board.published import REMARK, published_table
from bench_core.board.schema import priced
from bench_core.board.under_shift import REMARK as SHIFT_REMARK
from bench_core.errors import visible
from bench_core.report.presentable import presentable
from bench_core.report.text_tables import (
    energy_order,
    leaderboard,
    reference_line,
    sections,
    seed_tables,
    shift_by_condition,
    shift_by_strategy,
    shift_tables,
    static_line,
    summaries,
    training_line,
    workload_facts,
)

__all__ = ["markdown"]

_EXPLANATION = """\
Thresholds were chosen on calibration data; test was touched once. `avg exit t` is the mean exit timestep of the policy,
± half its 95 % interval; AET is SEENN's label-using reference point of the workload, not a policy's figure. A rank is
1 + the number of rows significantly better (paired bootstrap): iso-accuracy and risk by average exit timestep among
those that kept the target, budgets by accuracy. `same-histogram` is random exit with the same histogram, `hull` the
best mixture of fixed timesteps at the same average: a method that does not beat them has no value. Gaps are
calibration minus test. Three speed-ups over static T stand side by side and none follows from another: `ideal` is
T / `avg exit t`; `ms` (mean over samples) and `speed-up` are measured at batch 1; `samples/s` and `batch speed-up` with
{batch} samples under way, finished ones replaced. Wall clock never ranks. What was not measured is n/a.
"""


_COSTS = """\
Energies are means per sample up to the exit, controller included, under the cost model in brackets; a product with
timesteps or seconds is the mean over samples of energy x latency (EDP). E(1) is the energy of an inference of one
timestep of the same workload. A first layer under constant input is charged {first_layer}.
"""
_SUMMARY = """\
The average rank over the workloads where a strategy has one, its standard deviation, and how many rows of the same
workload and operating point are significantly worse, significantly better, and neither.
"""
_BY_STRATEGY = "By strategy: under how many of the corruptions its promise is broken, and its largest loss.\n"
_FIRST_LAYER = {"once": "once, at t = 1", "every-step": "at every timestep up to the exit"}


def markdown(board: Board) -> str:
    """Return the whole board as markdown, for a repository page."""
    board = presentable(board)
    suite = board.manifest["suite"]
    lines = [f"# {escape(suite['name'])}: {escape(suite['title'])}", ""]
    lines += [_EXPLANATION.format(batch=suite["latency"].get("batch", "several"))]
    if any(cost.edp for cost in priced(board.rows.columns)):
        lines += [_COSTS.format(first_layer=_FIRST_LAYER[suite["first_layer"]])]
    facts = workload_facts(board)
    shown = None
    for workload, point, rows in sections(board):
        if workload != shown:
            shown = workload
            lines += [f"## {escape(workload)}", ""]
            if trained := training_line(board, workload):
                lines += [f"{trained}.", ""]
            if workload in facts:
                lines += [f"Static accuracy (%): {static_line(facts[workload])}.", ""]
                lines += [f"{reference_line(facts[workload])}.", ""]
            if board.manifest["workloads"].get(workload, {}).get("simulated"):
                lines += ["The events are simulated from images; no sensor recorded them.", ""]
        lines += [f"### {escape(point)}", "", _table(leaderboard(rows, board.workloads)), ""]
        if order := energy_order(rows):
            lines += [escape(order), ""]
    for number, (point, totals) in enumerate(summaries(board)):
        lines += ["## All workloads", "", _SUMMARY] if number == 0 else []
        lines += [f"### {escape(point)}", "", _table(totals), ""]
    for number, (name, point, totals) in enumerate(seed_tables(board)):
        lines += ["## Over seeds", "", SEEDS_REMARK, ""] if number == 0 else []
        lines += [f"### {escape(name)}, {escape(point)}", "", _table(totals), ""]
    for number, (workload, rows) in enumerate(shift_tables(board)):
        lines += (
            ["## Under corruption", "", SHIFT_REMARK.format(samples=rows["samples"].max()), ""] if number == 0 else []
        )
        lines += [f"### {escape(workload)}", "", _table(shift_by_condition(rows)), ""]
        lines += [_BY_STRATEGY, _table(shift_by_strategy(rows)), ""]
    if board.published is not None and not board.published.empty:
        lines += ["## Published figures", "", REMARK, "", _table(published_table(board.published)), ""]
    return "\n".join(lines)


def _table(table: pd.DataFrame) -> str:
    shown = table.map(escape).rename(columns=escape)
    return str(shown.to_markdown(index=False, disable_numparse=True))


def escape(text: object) -> str:
    """Escape text so that markdown shows it literally."""
    cleaned = " ".join(visible(str(text)).split())
    for mark in ("\\", "`", "*", "_", "<", "|", "[", "]"):
        cleaned = cleaned.replace(mark, f"&#{ord(mark)};" if mark in "<|" else f"\\{mark}")
    return cleaned
