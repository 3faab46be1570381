"""Charts of a board: matplotlib figures in a fixed style, with labelled points.

``figure_bytes`` returns the same bytes for the same figure: no time, no random ids.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

from bench_core.report.palette import BACKGROUND, GRID, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Chart", "Spot", "figure_bytes", "themed"]


@dataclass(frozen=True)
class Spot:
    """A labelled point on a chart.

    Attributes:
        x: in data coordinates.
        y: in data coordinates.
        text: shown when the pointer hovers over it.
        strategy: the point's strategy, or empty.
        row: key of its row (strategy, operating point), or None.
        chosen: whether it is that row's policy rather than another one of the family.
        panel: number of its axes.
    """

    x: float
    y: float
    text: str
    strategy: str = ""
    row: tuple[str, str] | None = None
    chosen: bool = False
    panel: int = 0


@dataclass(frozen=True)
class Chart:
    """A figure and its labelled points.

    Attributes:
        name: for files, of letters, digits and dashes.
        title: what is drawn.
        summary: the content in a sentence, as alternative text.
        figure: the matplotlib figure.
        model: the cost model, if any.
        spots: the labelled points.
    """

    name: str
    title: str
    summary: str
    figure: "Figure"
    model: str | None = None
    spots: list[Spot] = field(default_factory=list)


@contextlib.contextmanager
def themed() -> Iterator[None]:
    """Apply our own style regardless of the machine's; suppress warnings about glyphs missing from the font."""
    from matplotlib import rc_context, rcdefaults

    with rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        rcdefaults()
        with rc_context(_STYLE):
            yield


_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.dpi": 72,
    "figure.facecolor": BACKGROUND,
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "mathtext.default": "regular",
    "path.simplify": False,
    "svg.hashsalt": "exitbench",
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a plugin's name is literal
    "xtick.color": INK,
    "ytick.color": INK,
}


def figure_bytes(figure: "Figure", kind: str, *, text: bool = False) -> bytes:
    """Return a figure as a file of ``kind`` svg or png.

    Args:
        figure: the matplotlib figure.
        kind: ``svg`` or ``png``.
        text: keep svg text as text, for a page with its own fonts; otherwise draw outlines, identical everywhere.
    """
    from matplotlib import rc_context

    stream = BytesIO()
    metadata: dict[str, Any] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind]
    with rc_context({"svg.fonttype": "none" if text else "path"}):
        figure.savefig(stream, format=kind, metadata=metadata, dpi=200 if kind == "png" else 72)
    return stream.getvalue()
