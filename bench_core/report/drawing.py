"""What a chart of a board is: a figure drawn by matplotlib, in our own style, and the places on it that say something.

``figure_bytes`` gives the same bytes for the same figure: no time, no random ids.
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
    """A place on a chart that says what it is.

    Attributes:
        x, y: in data coordinates.
        text: what a pointer resting there is told.
        strategy: whose it is, or empty.
        row: key of the row that it belongs to (strategy, operating point), or None.
        chosen: whether it is that row's policy, and not another one of the family.
        panel: number of the axes that it lies in.
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
    """A figure and what there is to point at.

    Attributes:
        name: for files, of letters, digits and dashes.
        title: what is drawn.
        summary: the same in a sentence, for those who can't see it.
        model: the cost model, where there is one.
    """

    name: str
    title: str
    summary: str
    figure: "Figure"
    model: str | None = None
    spots: list[Spot] = field(default_factory=list)


@contextlib.contextmanager
def themed() -> Iterator[None]:
    """Our own style, whatever the machine's is; names with letters that the font lacks are no reason to complain."""
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
    "text.parse_math": False,  # a dollar in a plugin's name is a dollar
    "xtick.color": INK,
    "ytick.color": INK,
}


def figure_bytes(figure: "Figure", kind: str, *, text: bool = False) -> bytes:
    """A figure as a file of ``kind`` svg or png.

    Args:
        text: letters stay letters, for a page with fonts of its own; else they are outlines, the same everywhere.
    """
    from matplotlib import rc_context

    stream = BytesIO()
    metadata: dict[str, Any] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind]
    with rc_context({"svg.fonttype": "none" if text else "path"}):
        figure.savefig(stream, format=kind, metadata=metadata, dpi=200 if kind == "png" else 72)
    return stream.getvalue()
