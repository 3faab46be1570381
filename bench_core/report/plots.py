"""The figures of a board: accuracy over timesteps and energy, exits, reliability, training, policies under corruption.

Each is a pure function of the board's tables.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bench_core.board.board import Board
from bench_core.board.schema import Priced, priced
from bench_core.report.drawing import Chart, Spot
from bench_core.report.palette import BACKGROUND, COLOURS, INK, Look
from bench_core.report.text_tables import shift_rows
from bench_core.scoring.metrics import hull_points
from bench_core.scoring.operating_points import OperatingPoint
from bench_core.util.arrays import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Oracle",
    "accuracy_charts",
    "histogram_chart",
    "reliability_chart",
    "shift_charts",
    "training_chart",
]

Oracle = tuple[Array, Array]  # average exit timesteps and accuracies of ``metrics.oracle_points``

_FEWEST = 10  # minimum samples in a bin of a reliability diagram
_BELOW = 6.0  # points below static T that an accuracy axis shows
_CHART, _PANEL, _STACKED = (5.2, 3.6), (1.9, 1.25), (5.2, 4.2)  # inches


def accuracy_charts(
    board: Board, workload: str, looks: dict[str, Look], oracle: Oracle | None = None, *, key: bool = True
) -> list[Chart]:
    """Return charts of accuracy over average exit timestep, and over energy under every cost model that priced a row.

    Args:
        board: the board.
        workload: its name.
        looks: by strategy.
        oracle: the oracle's curve, which needs the trace; without it only its end is shown.
        key: include a legend and markers of the chosen policies, for a standalone figure.
    """
    facts = board.workloads[board.workloads["workload"] == workload].to_dict("records")[0]
    rows = board.rows[(board.rows["workload"] == workload) & board.rows["accuracy"].notna()]
    charts = [_over_timesteps(board, rows, facts, looks, oracle, key=key)]
    for cost in priced(rows.columns):
        known = rows[rows[cost.energy].notna()]
        if len(known):
            charts.append(_over_energy(known, facts, cost, looks, key=key))
    return charts


def _over_timesteps(
    board: Board, rows: pd.DataFrame, facts: Any, looks: dict[str, Look], oracle: Oracle | None, *, key: bool
) -> Chart:
    workload, static = str(facts["workload"]), np.array(json.loads(facts["static_accuracy"]))
    figure, axes = _accuracy_axes(static, facts["oracle_accuracy"], "average exit timestep", key=key)
    margin = 0.02 * max(len(static) - 1, 1)
    axes.set_xlim(1 - margin, len(static) + margin)
    spots = []
    curves = board.curves[board.curves["workload"] == workload]
    for strategy, curve in curves.groupby("strategy", sort=False):
        own = rows[rows["strategy"] == strategy]
        _line(axes, curve["average_exit_timestep"], curve["accuracy"], looks[str(strategy)])
        spots += [_curve_spot(point, own) for point in curve.to_dict("records")]
    for row in rows.to_dict("records"):
        spots.append(_row_spot(row, row["average_exit_timestep"], _timestep_text(row)))
    if key:
        _markers(axes, spots, looks)
    timesteps, accuracies = hull_points(static)
    axes.plot(timesteps, 100 * accuracies, color=INK, linewidth=1.1, dashes=(5, 2), label="fixed-t hull", gid="hull")
    end = (facts["oracle_timestep"], facts["oracle_accuracy"])
    if oracle is not None:
        axes.plot(oracle[0], 100 * oracle[1], color=INK, linewidth=1.1, dashes=(1, 1.5), label="oracle", gid="oracle")
    _landmark(axes, end[0], end[1], "*", "" if oracle else "oracle", key=key, name="oracle")
    _landmark(axes, facts["lower_bound"], static[-1], "d", "true lower bound", key=key)
    spots += [
        Spot(float(t), 100 * float(acc), f"fixed-t hull: t {t:g}, {100 * acc:.2f} %")
        for t, acc in zip(timesteps, accuracies, strict=True)
    ]
    spots.append(Spot(end[0], 100 * end[1], f"oracle: avg exit t {end[0]:.3f}, {100 * end[1]:.2f} %"))
    bound = f"true lower bound: avg exit t {facts['lower_bound']:.3f} reach static accuracy, {100 * static[-1]:.2f} %"
    spots.append(Spot(facts["lower_bound"], 100 * static[-1], bound))
    _legend(figure, axes, key=key)
    title = f"{workload}: accuracy over timesteps"
    summary = (
        f"Accuracy on test against average exit timestep for {curves['strategy'].nunique()} strategies on {workload}, "
        "with the hull of fixed timesteps and the oracle. The tables below hold the figures."
    )
    return Chart("accuracy-timesteps", title, summary, figure, spots=spots)


def _over_energy(rows: pd.DataFrame, facts: Any, cost: Priced, looks: dict[str, Look], *, key: bool) -> Chart:
    workload, static = str(facts["workload"]), np.array(json.loads(facts["static_accuracy"]))
    figure, axes = _accuracy_axes(static, None, f"energy per sample, {cost.energy_unit} ({cost.model})", key=key)
    spots = []
    for strategy, own in rows.groupby("strategy", sort=False):
        ordered = own.sort_values([cost.energy, "accuracy"])
        _line(axes, ordered[cost.energy] * cost.scale, ordered["accuracy"], looks[str(strategy)])
    for row in rows.to_dict("records"):
        energy = row[cost.energy] * cost.scale
        text = f"{_policy(row)}; {energy:.4g} {cost.energy_unit} ({cost.model}), {100 * row['accuracy']:.2f} %"
        spots.append(_row_spot(row, energy, text))
    if key:
        _markers(axes, spots, looks)
    share = f"energy_{cost.model}_share"
    whole = (rows[cost.energy] / rows[share]).dropna() * cost.scale
    if len(whole):
        at = float(whole.median())
        _landmark(axes, at, static[-1], "*", "static T", key=key)
        spots.append(Spot(at, 100 * static[-1], f"static T: {at:.4g} {cost.energy_unit}, {100 * static[-1]:.2f} %"))
    _legend(figure, axes, key=key)
    title = f"{workload}: accuracy over energy, {cost.model}"
    summary = (
        f"Accuracy on test against energy per sample under {cost.model} for the chosen policies of "
        f"{rows['strategy'].nunique()} strategies on {workload}. The tables below hold the figures."
    )
    return Chart(f"accuracy-energy-{cost.model}", title, summary, figure, cost.model, spots)


def histogram_chart(board: Board, workload: str, point: str, looks: dict[str, Look]) -> Chart | None:
    """Return a panel of exit timesteps per strategy at one operating point, or None if no row has any."""
    from matplotlib.figure import Figure

    chosen = (board.rows["workload"] == workload) & (board.rows["operating_point"] == point)
    rows = board.rows[chosen & board.rows["exit_histogram"].notna()].to_dict("records")
    if not rows:
        return None
    across = min(4, len(rows))
    down = -(-len(rows) // across)
    figure = Figure(figsize=(across * _PANEL[0], down * _PANEL[1] + 0.4), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, row in zip(panels, rows, strict=False):
        counts = np.array(json.loads(row["exit_histogram"]))
        axes.bar(np.arange(1, len(counts) + 1), 100 * counts / counts.sum(), color=looks[row["strategy"]].colour)
        axes.set_title(row["strategy"], fontsize=8)
        axes.grid(axis="x", visible=False)
        axes.tick_params(labelsize=7)
    for axes in panels[len(rows) :]:
        axes.set_axis_off()
    figure.supxlabel("exit timestep", fontsize=8)
    figure.supylabel("% of test samples", fontsize=8)
    title = f"{workload}: exit timesteps at {point}"
    return Chart("exit-histograms", title, f"Shares of test samples stopped at each timestep, {title}.", figure)


def reliability_chart(board: Board, workload: str) -> Chart | None:
    """Return accuracy over confidence of the mean readout at a few timesteps, or None without such figures."""
    bins = board.reliability[(board.reliability["workload"] == workload) & (board.reliability["samples"] >= _FEWEST)]
    if bins.empty:
        return None
    last = int(bins["timestep"].max())
    shown = sorted({1, max(1, round(last / 4)), max(1, round(last / 2)), last})
    figure, axes = _axes("confidence, %")
    axes.plot([0, 100], [0, 100], color=INK, linewidth=1.1, dashes=(5, 2), label="calibrated")
    facts = board.workloads[board.workloads["workload"] == workload].to_dict("records")[0]
    errors, spots = json.loads(facts["calibration_error"]), []
    for index, t in enumerate(shown):
        own = bins[bins["timestep"] == t]
        look = Look(index, COLOURS[index], "os^D"[index], "-")
        _line(axes, 100 * own["confidence"], own["accuracy"], look, label=f"t = {t}, ECE {100 * errors[t - 1]:.1f} %")
        axes.plot(100 * own["confidence"], 100 * own["accuracy"], look.marker, color=look.colour, markersize=4)
        for row in own.to_dict("records"):
            text = f"t = {t}: confidence {100 * row['confidence']:.1f} %, right {100 * row['accuracy']:.1f} %"
            spots.append(Spot(100 * row["confidence"], 100 * row["accuracy"], f"{text}, {row['samples']} samples"))
    axes.set_xlim(0, 101)
    axes.set_ylim(0, 101)
    axes.set_ylabel("right, %")
    axes.legend(loc="upper left")
    title = f"{workload}: reliability of the mean readout"
    summary = f"Share of samples that are right against confidence at t = {', '.join(map(str, shown))} on {workload}."
    return Chart("reliability", title, summary, figure, spots=spots)


def training_chart(board: Board, workload: str) -> Chart | None:
    """Return loss and accuracy on augmented training batches per epoch, or None without a training log."""
    if board.training is None or (own := board.training[board.training["workload"] == workload]).empty:
        return None
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    losses = axes.twinx()
    losses.spines["right"].set_visible(True)
    epochs = range(1, len(own) + 1)
    axes.plot(epochs, 100 * own["accuracy"], color=COLOURS[0], label="accuracy")
    losses.plot(epochs, own["loss"], color=COLOURS[1], dashes=(4, 2), label="loss")
    begun = own.groupby("stage", sort=False).size().cumsum().tolist()
    for last in begun[:-1]:
        axes.axvline(last + 0.5, color=INK, linewidth=0.8, dashes=(1, 2))
    axes.set_ylabel("accuracy, %")
    losses.set_ylabel("loss")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    spots = [
        Spot(
            epoch, 100 * row["accuracy"], f"epoch {epoch}: loss {row['loss']:.3f}, right {100 * row['accuracy']:.1f} %"
        )
        for epoch, row in zip(epochs, own.to_dict("records"), strict=True)
    ]
    title = f"{workload}: training"
    summary = f"Accuracy and loss on training batches over {len(own)} epochs of {workload}."
    return Chart("training", title, summary, figure, spots=spots)


def shift_charts(
    board: Board, workload: str, point: str, looks: dict[str, Look], *, key: bool = True
) -> Iterator[Chart]:
    """Yield a chart per corruption: accuracy loss and exit timesteps of an operating point's policies over severity.

    The upper panel shows accuracy relative to static T under the same corruption, the lower one the average exit
    timestep. A marker shows where a policy breaks its promise.

    Args:
        board: the board.
        workload: its name.
        point: the operating point.
        looks: by strategy.
        key: include a legend, for a standalone figure.
    """
    for name, rows in shift_rows(board, workload):
        if name == point:
            clean = rows[rows["severity"] == 0]
            timesteps = board.workloads.loc[board.workloads["workload"] == workload, "timesteps"].iloc[0]
            promised = _promised(OperatingPoint.parse(point), int(timesteps))
            spans = []  # one scale for all corruptions
            for column, promise in zip(_OVER_SEVERITY, promised, strict=True):
                shown = [*rows[column], *([] if promise is None else [promise])]
                margin = 0.06 * max(max(shown) - min(shown), 0.5)
                spans.append((min(shown) - margin, max(shown) + margin))
            for corruption, corrupted in rows[rows["severity"] > 0].groupby("corruption", sort=False):
                chart = _under(str(corruption), pd.concat([clean, corrupted]), workload, point, looks, key=key)
                for axes, span, promise in zip(chart.figure.axes, spans, promised, strict=True):
                    axes.set_ylim(*span)
                    if promise is not None:
                        axes.axhline(promise, color=INK, linewidth=0.9, dashes=(5, 2))
                yield chart


def _promised(point: OperatingPoint, timesteps: int) -> tuple[float | None, float | None]:
    """Return an operating point's promises on accuracy relative to static T and on the average exit timestep."""
    return (
        -point.value if point.kind == "iso-accuracy" else None,
        point.value * timesteps if point.kind == "budget" else None,
    )


def _under(
    corruption: str, rows: pd.DataFrame, workload: str, point: str, looks: dict[str, Look], *, key: bool
) -> Chart:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 6.2) if key else _STACKED, layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    spots = []
    for strategy, own in rows.groupby("strategy", sort=False):
        look, broken = looks[str(strategy)], own[own["promise"] == "broken"]
        for axes, column in zip(panels, _OVER_SEVERITY, strict=True):
            style = {"color": look.colour, "gid": f"series-{look.index}"}
            axes.plot(own["severity"], own[column], linestyle=look.dash, **style)
            axes.plot(broken["severity"], broken[column], look.marker, markersize=5, **style)
        if key:
            panels[0].plot([], [], color=look.colour, marker=look.marker, linestyle=look.dash, label=strategy)
        for row in own.to_dict("records"):
            text, key_of_row = _shift_text(row), (row["strategy"], point)
            for panel, column in enumerate(_OVER_SEVERITY):
                spots.append(Spot(row["severity"], row[column], text, row["strategy"], key_of_row, panel=panel))
    for axes, label in zip(panels, _OVER_SEVERITY.values(), strict=True):
        axes.set_ylabel(label)
    panels[1].set_xlabel(f"severity of {corruption}")
    panels[1].set_xticks(sorted(set(rows["severity"])))
    _legend(figure, panels[0], key=key)
    title = f"{workload}, {point}: {corruption}"
    summary = (
        f"Change against static T in points and average exit timestep of {rows['strategy'].nunique()} strategies on "
        f"{workload} under {corruption}, by severity; markers where the promise of {point} is broken. The tables below "
        "hold the figures."
    )
    return Chart(f"shift-{corruption}", title, summary, figure, spots=spots)


_OVER_SEVERITY = {"delta_points": "Δ to static T, points", "average_exit_timestep": "avg exit timestep"}


def _shift_text(row: Any) -> str:
    accuracy = f"{100 * row['accuracy']:.2f} % ({row['delta_points']:+.2f} to static T)"
    where = f"{row['strategy']}, {row['corruption']} {row['severity']}"
    return f"{where}: {accuracy}, avg exit t {row['average_exit_timestep']:.3f}, promise {row['promise']}"


def _axes(label: str, *, legend_below: bool = False) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    size = (7.2, 5.2) if legend_below else _CHART
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(label)
    return figure, axes


def _accuracy_axes(static: Array, oracle: float | None, label: str, *, key: bool) -> "tuple[Figure, Axes]":
    figure, axes = _axes(label, legend_below=key)
    axes.set_ylabel("accuracy, %")
    top = max(100 * static.max(), 100 * (oracle or 0.0))
    bottom = max(100 * static.min(), 100 * static[-1] - _BELOW)
    margin = 0.06 * max(top - bottom, 1.0)
    axes.set_ylim(bottom - margin, top + margin)
    return figure, axes


def _line(axes: "Axes", x: Any, y: Any, look: Look, label: str = "") -> None:
    gid = "" if label else f"series-{look.index}"
    axes.plot(x, 100 * y, color=look.colour, linestyle=look.dash, label=label, gid=gid)


def _markers(axes: "Axes", spots: list[Spot], looks: dict[str, Look]) -> None:
    for strategy, look in looks.items():
        own = [(spot.x, spot.y) for spot in spots if spot.chosen and spot.strategy == strategy]
        if own:
            x, y = zip(*own, strict=True)
            style = {"color": look.colour, "linestyle": "none", "markersize": 4.5}
            axes.plot(x, y, look.marker, markeredgecolor=BACKGROUND, markeredgewidth=0.4, **style)  # type: ignore[arg-type]
            axes.plot([], [], color=look.colour, marker=look.marker, linestyle=look.dash, markersize=4, label=strategy)


def _landmark(axes: "Axes", x: float, accuracy: float, marker: str, label: str, *, key: bool, name: str = "") -> None:
    """Draw a reference point, labelled directly if there is no legend."""
    axes.plot([x], [100 * accuracy], marker, color=INK, markersize=9 if marker == "*" else 6, label=label)
    if not key:
        left, right = axes.get_xlim()
        offset, side = ((-7, 6), "right") if x > (left + right) / 2 else ((7, 5), "left")
        axes.annotate(name or label, (x, 100 * accuracy), offset, textcoords="offset points", ha=side, fontsize=8)


def _legend(figure: "Figure", axes: "Axes", *, key: bool) -> None:
    if key:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)


def _policy(row: Any) -> str:
    value = row["value"]
    return f"{row['strategy']}, {row['operating_point']}" + ("" if pd.isna(value) else f": {row['knob']} {value:.5g}")


def _timestep_text(row: Any) -> str:
    return f"{_policy(row)}; avg exit t {row['average_exit_timestep']:.3f}, {100 * row['accuracy']:.2f} %"


def _row_spot(row: Any, x: float, text: str) -> Spot:
    key = (row["strategy"], row["operating_point"])
    return Spot(float(x), 100 * row["accuracy"], text, row["strategy"], key, chosen=True)


def _curve_spot(point: Any, rows: pd.DataFrame) -> Spot:
    """Return a family's policy as a point; it belongs to the row whose policy is nearest in time."""
    average, accuracy = point["average_exit_timestep"], point["accuracy"]
    text = (
        f"{point['strategy']}: {point['knob']} {point['value']:.5g}; avg exit t {average:.3f}, {100 * accuracy:.2f} %"
    )
    row = None
    if len(rows):
        nearest = (rows["average_exit_timestep"].astype(float) - average).abs().to_numpy().argmin()
        row = (str(point["strategy"]), str(rows["operating_point"].iloc[int(nearest)]))
    return Spot(average, 100 * accuracy, text, str(point["strategy"]), row)
