"""Draw the picture at the top of README from the committed board: ``python docs/picture.py``."""

from pathlib import Path

from bench_core.board.board import read_board
from bench_core.board.traces import trace_path
from bench_core.report.drawing import figure_bytes, themed
from bench_core.report.palette import looks
from bench_core.report.plots import accuracy_charts
from bench_core.scoring.metrics import oracle_points
from bench_core.trace.files import load_trace

ROOT = Path(__file__).parent.parent
RESULTS, WORKLOAD = ROOT / "results" / "quick", "fashion-qcfs"
PLACE = ROOT / "docs" / "pictures" / f"{WORKLOAD}.svg"


def picture() -> bytes:
    """Accuracy over average exit timestep of every strategy, with the hull of fixed timesteps and the oracle; svg."""
    board = read_board(RESULTS)
    trace = load_trace(trace_path(RESULTS, WORKLOAD, "test"))
    styles = looks([*board.rows["strategy"], *board.curves["strategy"]])
    with themed():
        chart = accuracy_charts(board, WORKLOAD, styles, oracle_points(trace.correct))[0]
        return figure_bytes(chart.figure, "svg")


if __name__ == "__main__":
    PLACE.write_bytes(picture())
