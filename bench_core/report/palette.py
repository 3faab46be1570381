"""Appearance of strategies: a colour-blind-safe colour, a marker and a dash each, the same on all charts of a board."""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["BACKGROUND", "COLOURS", "GRID", "INK", "Look", "looks"]

# Okabe and Ito, "Color Universal Design", without the yellow, which is hard to see on white.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
INK, GRID, BACKGROUND = "#1b1b1b", "#dcdcdc", "#ffffff"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # of matplotlib; their number is coprime to that of the colours
_DASHES = ("-", "--", ":")


@dataclass(frozen=True)
class Look:
    """The appearance of one strategy.

    Attributes:
        index: its number on the board.
        colour: ``#rrggbb``.
        marker: of matplotlib.
        dash: of matplotlib.
    """

    index: int
    colour: str
    marker: str
    dash: str


def looks(strategies: Iterable[str]) -> dict[str, Look]:
    """Return looks by strategy, in the order of the board; the first 42 are distinct."""
    found = {}
    for index, name in enumerate(dict.fromkeys(strategies)):
        dash = _DASHES[index // len(COLOURS) % len(_DASHES)]
        found[name] = Look(index, COLOURS[index % len(COLOURS)], _MARKERS[index % len(_MARKERS)], dash)
    return found
