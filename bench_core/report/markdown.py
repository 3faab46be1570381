"""The board as markdown: every workload, every operating point."""

from bench_core.leaderboard import leaderboard, reference_line, sections, static_line, workload_facts
from bench_core.results import Board

__all__ = ["markdown"]

_EXPLANATION = """\
Thresholds were chosen on calibration data; test was touched once. `avg exit t` is the mean exit timestep of the policy,
± half its 95 % interval; AET is SEENN's label-using reference point of the workload, not a policy's figure. A rank is
1 + the number of rows significantly better (paired bootstrap): iso-accuracy by average exit timestep among those that
kept the target, budgets by accuracy. `same-histogram` is random exit with the same histogram, `hull` the best
mixture of fixed timesteps at the same average: a method that does not beat them has no value. Gaps are
calibration minus test. `ms` and `speed-up` are measured at batch 1 and never rank. What was not measured is n/a.
"""


def markdown(board: Board) -> str:
    """The whole board, ready for a repository page."""
    suite = board.manifest["suite"]
    lines = [f"# {escape(suite['name'])}: {escape(suite['title'])}", "", _EXPLANATION]
    facts = workload_facts(board)
    shown = None
    for workload, point, rows in sections(board):
        if workload != shown:
            shown = workload
            lines += [f"## {escape(workload)}", ""]
            if workload in facts:
                lines += [f"Static accuracy (%): {static_line(facts[workload])}.", ""]
                lines += [f"{reference_line(facts[workload])}.", ""]
            if board.manifest["workloads"].get(workload, {}).get("simulated"):
                lines += ["The events are simulated from images; no sensor recorded them.", ""]
        table = leaderboard(rows, board.workloads).map(escape)
        lines += [f"### {point}", "", table.to_markdown(index=False, disable_numparse=True), ""]
    return "\n".join(lines)


def escape(text: object) -> str:
    """Text that markdown shows as it is."""
    cleaned = " ".join(str(text).split())
    for mark in ("\\", "`", "*", "_", "<", "|", "[", "]"):
        cleaned = cleaned.replace(mark, f"&#{ord(mark)};" if mark in "<|" else f"\\{mark}")
    return cleaned
