"""The board as one self-contained html file: tables without scripts, and charts that link into them.

Names from plugins, suites and data sets pass through jinja2's autoescape or an xml writer. The page blocks network
access by its Content-Security-Policy, and contains neither a time nor a path.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pandas as pd

from bench_core.board.board import Board
from bench_core.board.csv_tables import csv_text
from bench_core.board.over_seeds import REMARK as SEEDS_REMARK
from bench_core.board.published import FIGURES, REMARK, published_table
from bench_core.board.schema import priced
from bench_core.board.under_shift import REMARK as SHIFT_REMARK
from bench_core.errors import visible
from bench_core.report.drawing import Chart, themed
from bench_core.report.gallery import Extras
from bench_core.report.inline import inline_svg, marker_path
from bench_core.report.palette import COLOURS, Look, looks
from bench_core.report.plots import accuracy_charts, reliability_chart, shift_charts, training_chart
from bench_core.report.presentable import presentable
from bench_core.report.text_tables import (
    NOT_AVAILABLE,
    energy_order,
    leaderboard,
    reference_line,
    sections,
    seed_tables,
    shift_by_severity,
    shift_promises,
    shift_rows,
    static_line,
    summaries,
    training_line,
    workload_facts,
)
from bench_core.util.version import __version__

__all__ = ["page"]

_WORDS = ("strategy", "knob", "note")  # text columns; the others are figures
_TALL = 20  # height of a small histogram, in units of its viewBox
_SPOTS = 2_400  # labelled points on the lines of all charts together, each about 200 bytes
_SMALLEST = 8  # minimum per line
_SHIFT_SPOTS = 4_800  # likewise on the charts of policies under corruption

_HELP = {
    "rank": "1 + the number of rows that are significantly better",
    "Δ points": "accuracy minus that of static T, in percentage points",
    "avg exit t": "mean exit timestep on test, with half its 95 % interval",
    "AET (SEENN, workload)": "a label-using reference point of the workload, not a figure of the row",
    "ideal": "T / avg exit t",
    "ms": "mean wall clock at batch 1",
    "speed-up": "over static T at batch 1, measured",
    "batch speed-up": "over static T with a batch under way, measured",
    "same-histogram %": "random exits with the same histogram: a method must beat this",
    "hull %": "the best mixture of fixed timesteps at the same average: a method must beat this",
    "gap points": "accuracy on calibration minus that on test",
    "gap t": "average exit timestep on calibration minus that on test",
    "exits": "share of test samples stopped at t = 1 .. T",
}

_DETAILS = {  # of a row, in addition to its table; by column of rows.csv
    "parameters": "knobs",
    "samples": "test samples",
    "select_accuracy": "accuracy on calibration (select)",
    "select_average_exit_timestep": "avg exit t on calibration (select)",
    "saving_realised": "share of the possible saving",
    "area_share": "area over the fixed-t hull (oracle = 1)",
    "harmed_share": "right at T, wrong at the exit",
    "helped_share": "wrong at T, right at the exit",
    "forced_share": "ran to T undecided",
    "first_layer": "first layer charged",
}
_DETAIL_FORMATS = {
    "samples": "{:.0f}",
    "select_accuracy": "{:.4f}",
    "select_average_exit_timestep": "{:.4f}",
    "saving_realised": "{:.2%}",
    "area_share": "{:.4f}",
    "harmed_share": "{:.2%}",
    "helped_share": "{:.2%}",
    "forced_share": "{:.2%}",
}


def page(board: Board, extras: Mapping[str, Extras], default_point: str) -> str:
    """Return the page of a board.

    Args:
        board: the board.
        extras: by workload; missing ones are omitted.
        default_point: the operating point that a page with JavaScript shows first.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    templates = files("bench_core.report") / "templates"
    text = {name: (templates / name).read_text(encoding="utf-8") for name in ("page.html.jinja", "page.css", "page.js")}
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_finalize
    )
    csv = csv_text(board.rows)
    board, default_point = presentable(board), visible(default_point)
    extras = {visible(workload): extra for workload, extra in extras.items()}
    with themed():
        content = _Content(board, extras, default_point).as_dict()
    script = text["page.js"]
    return environment.from_string(text["page.html.jinja"]).render(
        **content,
        version=__version__,
        css=Markup(text["page.css"]),  # our own files, without plugins' text
        js=Markup(script),
        js_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        rows_csv=base64.b64encode(gzip.compress(csv.encode(), mtime=0)).decode(),
        svg=Markup,
    )


def _finalize(value: Any) -> Any:
    """Return a value as the template shows it: text in visible form, our own markup unchanged."""
    return visible(value) if type(value) is str else value


@dataclass(frozen=True)
class _Cell:
    text: str
    is_figure: bool


class _Content:
    """The template's variables."""

    def __init__(self, board: Board, extras: Mapping[str, Extras], default_point: str) -> None:
        """Prepare what the charts and tables share."""
        self._board, self._extras, self._default = board, extras, default_point
        self._looks = looks([*board.rows["strategy"], *board.curves["strategy"]])
        self._points = list(dict.fromkeys(board.rows["operating_point"]))
        lines = len(board.curves[["workload", "strategy"]].drop_duplicates())
        self._spots = max(_SMALLEST, _SPOTS // max(lines, 1))
        lines = 0
        if board.shift is not None:
            by = ["workload", "strategy", "operating_point", "corruption"]
            lines = 2 * len(board.shift.loc[board.shift["severity"] > 0, by].drop_duplicates())
        self._shift_spots = max(1, _SHIFT_SPOTS // max(lines, 1))
        self._models = [cost.model for cost in priced(board.rows.columns)]
        keys = board.rows[["workload", "strategy", "operating_point"]].itertuples(index=False, name=None)
        self._ids = {key: f"r{number}" for number, key in enumerate(keys)}

    def as_dict(self) -> dict[str, Any]:
        """Return the variables by their names in the template."""
        suite, manifest = self._board.manifest["suite"], self._board.manifest
        return {
            "suite": suite["name"],
            "title": suite["title"],
            "points": self._points,
            "default_point": self._points.index(self._default),
            "models": self._models,
            "help": _HELP,
            "strategies": [self._swatch(name, look) for name, look in self._looks.items()],
            "summaries": [(self._points.index(p), p, _plain(t)) for p, t in summaries(self._board)],
            "workloads": list(self._workloads()),
            "seeds": [(self._points.index(p), name, p, _plain(t)) for name, p, t in seed_tables(self._board)],
            "seeds_remark": SEEDS_REMARK,
            "published": self._published(),
            "published_remark": REMARK,
            "published_figures": FIGURES,
            "versions": sorted(manifest["environment"].items()),
            "plugins": manifest["plugins"],
            "options": list(_flat({k: v for k, v in suite.items() if k not in ("workloads", "name", "title")})),
            "batch": suite["latency"].get("batch", "several"),
            "colours": list(enumerate(COLOURS)),
        }

    def _published(self) -> tuple[list[str], list[list[str]]] | None:
        published = self._board.published
        return None if published is None or published.empty else _plain(published_table(published))

    def _swatch(self, name: str, look: Look) -> dict[str, Any]:
        dash = {"-": "", "--": "5 3", ":": "1.5 2.5"}[look.dash]
        colour = COLOURS.index(look.colour)
        return {"name": name, "index": look.index, "colour": colour, "dash": dash, "marker": marker_path(look.marker)}

    def _workloads(self) -> Iterator[dict[str, Any]]:
        facts = workload_facts(self._board)
        tables: dict[str, list[dict[str, Any]]] = {}
        for workload, point, rows in sections(self._board):
            tables.setdefault(workload, []).append(self._table(workload, point, rows))
        for number, (workload, own) in enumerate(tables.items()):
            known = facts.get(workload)
            about = self._board.manifest["workloads"].get(workload, {})
            specs = [spec for spec in self._board.manifest["suite"]["workloads"] if spec["name"] == workload]
            extras = self._extras.get(workload, Extras())
            strategies = set(self._board.rows.loc[self._board.rows["workload"] == workload, "strategy"])
            yield {
                "name": workload,
                "number": number,
                "static": static_line(known) if known else "",
                "references": reference_line(known) if known else "",
                "training": training_line(self._board, workload),
                "simulated": bool(about.get("simulated")),
                "charts": self._charts(workload, number, extras) if known else [],
                "strategies": [self._swatch(name, look) for name, look in self._looks.items() if name in strategies],
                "tables": own,
                "shift": list(self._shift(workload, number)),
                "gallery": extras.gallery,
                "manifest": [
                    *_flat({k: v for spec in specs for k, v in spec.items() if k != "name"}),
                    *_flat(about),
                    *_flat(self._board.manifest["environment"], "version"),
                ],
            }

    def _charts(self, workload: str, number: int, extras: Extras) -> list[dict[str, Any]]:
        charts: list[Chart | None] = [
            *accuracy_charts(self._board, workload, self._looks, extras.oracle, key=False),
            reliability_chart(self._board, workload),
            training_chart(self._board, workload),
        ]
        shown = [chart for chart in charts if chart is not None]
        return [self._drawn(chart, f"w{number}c{order}", workload, self._spots) for order, chart in enumerate(shown)]

    def _drawn(self, chart: Chart, name: str, workload: str, spots: int) -> dict[str, Any]:
        links = {
            (strategy, point): (place, self._points.index(point))
            for (own, strategy, point), place in self._ids.items()
            if own == workload
        }
        return {
            "name": name,
            "title": chart.title,
            "summary": chart.summary,
            "model": self._models.index(chart.model) if chart.model else None,
            "svg": inline_svg(chart, name, self._looks, links, spots),
        }

    def _shift(self, workload: str, number: int) -> Iterator[dict[str, Any]]:
        """Yield the results of each operating point's policies under corruption."""
        for point, rows in shift_rows(self._board, workload):
            order = self._points.index(point)
            charts = [
                self._drawn(chart, f"w{number}s{order}c{place}", workload, self._shift_spots)
                for place, chart in enumerate(shift_charts(self._board, workload, point, self._looks, key=False))
            ]
            yield {
                "point": order,
                "point_name": point,
                "remark": SHIFT_REMARK.format(samples=rows["samples"].max()),
                "charts": charts,
                "by_severity": _plain(shift_by_severity(rows)),
                "promises": (promises := _plain(shift_promises(rows))),
                "indices": [self._looks[cells[0]].index for cells in promises[1]],
            }

    def _table(self, workload: str, point: str, rows: pd.DataFrame) -> dict[str, Any]:
        text = leaderboard(rows, self._board.workloads)
        text = text.drop(columns=[name for name in text if name in _WALL_CLOCK and (text[name] == NOT_AVAILABLE).all()])
        of_model: dict[str, int] = {}
        for index, cost in enumerate(priced(rows.columns)):
            of_model |= dict.fromkeys((f"{cost.energy_unit} ({cost.model})", f"{cost.edp_unit} ({cost.model})"), index)
        names = [str(name) for name in text]
        records = rows.to_dict("records")
        return {
            "point": self._points.index(point),
            "point_name": point,
            "columns": [(name, name not in _WORDS, of_model.get(name)) for name in names],
            "rows": [
                {
                    "id": self._ids[workload, record["strategy"], point],
                    "look": self._swatch(record["strategy"], self._looks[record["strategy"]]),
                    "cells": [_Cell(str(cell), name not in _WORDS) for name, cell in zip(names, cells, strict=True)],
                    "histogram": _histogram(record["exit_histogram"]),
                    "details": _row_details(record),
                    "failed": pd.isna(record["accuracy"]),
                }
                for record, cells in zip(records, text.itertuples(index=False, name=None), strict=True)
            ],
            "energy_order": energy_order(rows),
        }


_WALL_CLOCK = ("ms", "p95 ms", "p99 ms", "speed-up", "samples/s", "batch speed-up")


def _row_details(record: Mapping[Any, Any]) -> list[tuple[str, str]]:
    found = []
    if not pd.isna(record["value"]):
        found.append((str(record["knob"]), repr(float(record["value"]))))
    if not pd.isna(record["accuracy"]):
        found.append(
            ("95 % of accuracy", f"{100 * record['accuracy_low']:.2f} .. {100 * record['accuracy_high']:.2f} %")
        )
        low, high = record["average_exit_timestep_low"], record["average_exit_timestep_high"]
        found.append(("95 % of avg exit t", f"{low:.3f} .. {high:.3f}"))
        found.append(("wins-losses-ties", "-".join(f"{record[name]:.0f}" for name in ("wins", "losses", "ties"))))
        found.append(("exits at t = 1 .. T", ", ".join(map(str, json.loads(record["exit_histogram"])))))
    for column, name in _DETAILS.items():
        value = record.get(column)
        if value is not None and not pd.isna(value) and value != "{}":
            found.append((name, _DETAIL_FORMATS.get(column, "{}").format(value)))
    return found


def _histogram(text: Any) -> dict[str, Any] | None:
    """Return a small histogram of exit timesteps: a path of bars, and its description."""
    if pd.isna(text):
        return None
    counts = json.loads(text)
    total, most = sum(counts), max(counts)
    heights = [_TALL - (max(1.0, _TALL * count / most) if count else 0.0) for count in counts]
    bars = f"M0 {_TALL}" + "".join(f"V{height:.3g}h1" for height in heights) + f"V{_TALL}z"
    peak = counts.index(most) + 1
    label = f"most samples stop at t = {peak}: {100 * most / total:.0f} %"
    return {"width": len(counts), "path": bars, "label": label}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested facts as (dotted name, text)."""
    if isinstance(value, Mapping) and value:
        for key in sorted(value):
            yield from _flat(value[key], f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        yield name, ", ".join(value)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _plain(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    return [str(name) for name in table], [[str(cell) for cell in row] for row in table.itertuples(index=False)]
