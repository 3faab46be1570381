"""Matplotlib figures as svg within a page: colours follow the page's theme, points are links.

Matplotlib's drawing is kept, with unique ids and shortened numbers. The chart's labelled points are laid over it as
links with their text as title, so they work without JavaScript.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from bench_core.report.drawing import Chart, Spot, figure_bytes
from bench_core.report.palette import BACKGROUND, COLOURS, GRID, INK, Look

__all__ = ["inline_svg", "marker_path"]

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_RADIUS = 4.2
# Shapes around (0, 0), of about equal size.
_SHAPES = {
    "o": "m-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z",
    "s": "m-3.3-3.3h6.6v6.6h-6.6z",
    "^": "m0-4.2 4.2 7.4h-8.4z",
    "D": "m0-4.4 4.4 4.4-4.4 4.4-4.4-4.4z",
    "v": "m0 4.2 4.2-7.4h-8.4z",
    "P": "m-1.4-4h2.8v2.6h2.6v2.8h-2.6v2.6h-2.8v-2.6h-2.6v-2.8h2.6z",
    "X": "m-3.8-2 1.8-1.8 2 2 2-2 1.8 1.8-2 2 2 2-1.8 1.8-2-2-2 2-1.8-1.8 2-2z",
}
_THEME = {
    **{colour: f"var(--c{index})" for index, colour in enumerate(COLOURS)},
    INK: "var(--ink)",
    GRID: "var(--grid)",
    BACKGROUND: "var(--paper)",
}


def marker_path(marker: str, x: float = 0.0, y: float = 0.0) -> str:
    """Return the path of a marker at a position, for the attribute ``d``."""
    return f"M{_short(x)} {_short(y)}{_SHAPES[marker]}"


def inline_svg(
    chart: Chart, name: str, looks: Mapping[str, Look], links: Mapping[tuple[str, str], tuple[str, int]], most: int
) -> str:
    """Return a chart as an svg element.

    Args:
        chart: the chart.
        name: prefix of every id, so that no two charts of a page share one.
        looks: by strategy.
        links: id of a row's element and number of its operating point, by (strategy, operating point).
        most: maximum number of points per line apart from the chosen policies, spread evenly.
    """
    ET.register_namespace("", _SVG)
    root = ET.fromstring(figure_bytes(chart.figure, "svg", text=True))
    for child in root.findall(f"{{{_SVG}}}metadata") + root.findall(f"{{{_SVG}}}defs[{{{_SVG}}}style]"):
        root.remove(child)  # a style would apply to the whole page
    _own_ids(root, name)
    for element in root.iter():
        _theme(element)
    width, height = (float(part) for part in root.attrib["viewBox"].split()[2:])
    root.attrib = {
        "viewBox": f"0 0 {width:g} {height:g}",
        "role": "group",
        "aria-labelledby": f"{name}-title",
        "class": "plot",
    }
    _lay_over(root, replace(chart, spots=_thinned(chart.spots, most)), height, looks, links)
    return ET.tostring(root, encoding="unicode").replace(" />", "/>")


def _own_ids(root: ET.Element, name: str) -> None:
    """Keep only ids that are referenced, and turn names of series into classes."""
    ids = {element.attrib["id"] for element in root.iter() if "id" in element.attrib}
    used = ids & set(re.findall(r"#([\w-]+)", " ".join(v for element in root.iter() for v in element.attrib.values())))

    def renamed(match: re.Match[str]) -> str:
        return f"#{name}-{match[1]}" if match[1] in used else match[0]

    for element in root.iter():
        if found := element.attrib.pop("id", None):
            if found.startswith("series-"):
                element.set("class", f"line s{found.removeprefix('series-')}")
            if found in used:
                element.set("id", f"{name}-{found}")
        for attribute in list(element.attrib):
            value = re.sub(r"#([\w-]+)", renamed, element.attrib.pop(attribute))
            element.set("href" if attribute == f"{{{_XLINK}}}href" else attribute, value)


def _theme(element: ET.Element) -> None:
    for attribute, value in element.attrib.items():
        if attribute == "style":
            shown = re.sub("font-family: [^;]*;?", "", value)  # use the page's fonts; matplotlib lists a dozen
            shown = re.sub("#[0-9a-f]{6}", lambda match: _THEME.get(match[0], match[0]), shown)
        else:
            shown = value
        if attribute in ("d", "transform", "x", "y", "width", "height", "style"):
            shown = re.sub(r"\d+\.\d+", lambda match: _short(float(match[0])), shown)
        element.set(attribute, " ".join(shown.split()))
    if not (element.text or "").strip():
        element.text = None
    element.tail = None


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _lay_over(
    root: ET.Element,
    chart: Chart,
    height: float,
    looks: Mapping[str, Look],
    links: Mapping[tuple[str, str], tuple[str, int]],
) -> None:
    """Add the labelled points, chosen policies last and with their marker, at the edge if they are below the axis."""
    layer = ET.SubElement(root, f"{{{_SVG}}}g", {"class": "spots"})
    for spot in sorted(chart.spots, key=lambda spot: spot.chosen):
        axes = chart.figure.axes[spot.panel]
        low, high = sorted(axes.get_ylim())
        left, right = sorted(axes.get_xlim())
        below = spot.y < low
        if not ((low <= spot.y <= high or (below and spot.chosen)) and left <= spot.x <= right):
            continue
        x, y = axes.transData.transform((spot.x, max(spot.y, low)))
        row, point = links.get(spot.row, ("", -1)) if spot.row else ("", -1)
        attributes = {"href": f"#{row}"} if row else {}
        classes = ["spot"]
        if spot.strategy:
            classes.append(f"s{looks[spot.strategy].index}")
        if spot.chosen:
            classes += ["mark", f"p{point}"]
        elif row:
            attributes["tabindex"] = "-1"  # there are hundreds; their rows are reachable through the marks
        place = ET.SubElement(layer, f"{{{_SVG}}}{'a' if row else 'g'}", {"class": " ".join(classes), **attributes})
        ET.SubElement(place, f"{{{_SVG}}}title").text = spot.text + (" (below the axis)" if below else "")
        if spot.chosen:
            ET.SubElement(place, f"{{{_SVG}}}path", {"d": marker_path(looks[spot.strategy].marker, x, height - y)})
        else:
            circle = {"cx": _short(x), "cy": _short(height - y), "r": _short(_RADIUS)}
            ET.SubElement(place, f"{{{_SVG}}}circle", circle)


def _thinned(spots: list[Spot], most: int) -> list[Spot]:
    """Limit each line to ``most`` points that are not a chosen policy."""
    kept = [spot for spot in spots if spot.chosen or not spot.strategy]
    lines: dict[tuple[str, int], list[Spot]] = {}
    for spot in spots:
        if spot.strategy and not spot.chosen:
            lines.setdefault((spot.strategy, spot.panel), []).append(spot)
    for line in lines.values():
        line.sort(key=lambda spot: spot.x)
        values = np.array([spot.x for spot in line])
        step = max((values[-1] - values[0]) / most, 1e-12)
        kept += [line[index] for index in np.unique((values - values[0]) // step, return_index=True)[1]]
    return kept
