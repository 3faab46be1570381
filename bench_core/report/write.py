"""Writing of a report's files: page, LaTeX, plots, markdown; each from one board and written atomically."""

from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bench_core.board.board import Board, make_folder, write_text
from bench_core.errors import StoreError, UsageError, visible
from bench_core.report.latex import latex
from bench_core.report.markdown import markdown
from bench_core.report.presentable import presentable
from bench_core.util.files import alone_in, whole_file

if TYPE_CHECKING:
    from bench_core.report.gallery import Extras

__all__ = ["FORMATS", "check_formats", "needs_extras", "write_report"]

FORMATS = ("html", "tex", "svg", "png", "md")
_NEEDS = {"html": ("jinja2", "matplotlib"), "svg": ("matplotlib",), "png": ("matplotlib",)}


def check_formats(formats: Iterable[str]) -> list[str]:
    """Return the requested formats in canonical order; raise UsageError if one is unknown or lacks its library."""
    wanted = set(formats)
    if unknown := sorted(wanted - set(FORMATS)):
        raise UsageError(f"--format {unknown[0]}: it is one of {', '.join(FORMATS)}")
    for name in wanted:
        for library in _NEEDS.get(name, ()):
            if find_spec(library) is None:
                raise UsageError(f"--format {name} needs {library}; `pip install 'exitbench[report]'` installs it")
    return [name for name in FORMATS if name in wanted]


def needs_extras(formats: Iterable[str]) -> bool:
    """Return whether any of the formats shows additions from traces and data."""
    return bool({"html", "svg", "png"} & set(formats))


def write_report(
    board: Board, extras: "Mapping[str, Extras]", folder: Path, formats: Iterable[str], default_point: str
) -> list[Path]:
    """Write a board's report into ``folder``, with plots in ``plots/``.

    Args:
        board: the board.
        extras: by workload, from ``read_extras``; may be empty.
        folder: created if necessary.
        formats: of ``FORMATS``.
        default_point: the operating point that the page opens with and the histograms show.

    Returns:
        The files written.
    """
    formats = check_formats(formats)
    make_folder(folder)
    with alone_in(folder):  # a run may be about to replace the board in it
        return list(_written(board, extras, folder, formats, default_point))


def _written(
    board: Board, extras: "Mapping[str, Extras]", folder: Path, formats: Iterable[str], default_point: str
) -> Iterator[Path]:
    texts = {"tex": latex, "md": markdown}
    for name in formats:
        if name == "html":
            from bench_core.report.page import page

            write_text(folder / "leaderboard.html", page(board, extras, default_point))
            yield folder / "leaderboard.html"
        elif name in texts:
            write_text(folder / f"leaderboard.{name}", texts[name](board))
            yield folder / f"leaderboard.{name}"
    kinds = [name for name in formats if name in ("svg", "png")]
    if kinds:
        make_folder(folder / "plots")
        for name, content in _plots(board, extras, default_point, kinds):
            _write_bytes(folder / "plots" / name, content)
            yield folder / "plots" / name


def _plots(
    board: Board, extras: "Mapping[str, Extras]", point: str, kinds: Iterable[str]
) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, content) of every plot."""
    from bench_core.report.drawing import figure_bytes, themed
    from bench_core.report.palette import looks
    from bench_core.report.plots import (
        accuracy_charts,
        histogram_chart,
        reliability_chart,
        shift_charts,
        training_chart,
    )

    board, point = presentable(board), visible(point)
    extras = {visible(workload): extra for workload, extra in extras.items()}
    styles = looks([*board.rows["strategy"], *board.curves["strategy"]])
    with themed():
        for workload in board.workloads["workload"]:
            known = extras.get(workload)
            charts = [
                *accuracy_charts(board, workload, styles, known.oracle if known else None),
                histogram_chart(board, workload, point, styles),
                reliability_chart(board, workload),
                training_chart(board, workload),
                *shift_charts(board, workload, point, styles),
            ]
            for chart in charts:
                for kind in kinds:
                    if chart is not None:
                        yield (
                            f"{_file_name(workload)}-{_file_name(chart.name)}.{kind}",
                            figure_bytes(chart.figure, kind),
                        )


def _file_name(text: str) -> str:
    """Reduce text to letters, digits, dots and dashes, so that a workload's name cannot form a path."""
    return "".join(mark if mark.isalnum() or mark in ".-_" else "-" for mark in text).lstrip(".") or "-"


def _write_bytes(path: Path, content: bytes) -> None:
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise StoreError.unwritable(path, error) from error
