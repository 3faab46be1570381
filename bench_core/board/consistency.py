"""Consistency of a board: redundant figures must agree, which reveals hand-edited or merged files.

A board stores most figures in more than one place (a mean and its histogram, a digest and its manifest, a row and its
classes). No check here needs traces; ``exitbench reproduce`` recomputes everything from them.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from bench_core.board.board import Board
from bench_core.board.over_seeds import seed_table
from bench_core.board.schema import ROW_COLUMNS, SEED_COLUMNS, priced
from bench_core.board.tables import summary_table
from bench_core.errors import UsageError
from bench_core.scoring.metrics import fixed_hull
from bench_core.scoring.operating_points import OperatingPoint

__all__ = ["contradictions", "refuse_contradictions"]

_TOLERANCE = 1e-9
_KEYS = ["workload", "strategy", "operating_point"]
_MANIFEST = ("suite", "environment", "plugins", "workloads")
_DIGESTS = ("weights", "calibration_trace", "test_trace")

Record = Mapping[Any, Any]


def refuse_contradictions(board: Board, name: str) -> None:
    """Raise UsageError with the first contradiction in the board called ``name`` and the number of others."""
    if lacking := [key for key in _MANIFEST if not isinstance(board.manifest.get(key), dict | list)]:
        raise UsageError(f"results {name}: manifest.json lacks {lacking[0]}; run the suite again")
    if lacking := [column for column in ROW_COLUMNS if column not in board.rows]:
        raise UsageError(f"results {name}: rows.csv lacks {lacking[0]}, it is of an older schema; run the suite again")
    try:
        found = list(contradictions(board))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UsageError(
            f"results {name}: a cell does not hold what its column should ({error}); run the suite again"
        ) from error
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UsageError(f"results {name}: {found[0]}{more}; files were edited or mixed up, run the suite again")


def contradictions(board: Board) -> Iterator[str]:
    """Yield a line for each place where the files of a board disagree."""
    yield from _identity(board)
    workloads = {record["workload"]: record for record in board.workloads.to_dict("records")}
    for workload in workloads.values():
        yield from _workload(workload)
    for row in board.rows.to_dict("records"):
        where = f"rows.csv: {row['workload']}, {row['strategy']}, {row['operating_point']}"
        yield from (f"{where}: {problem}" for problem in _digests(row, board.manifest))
        if not pd.isna(row["accuracy"]):
            if row["workload"] not in workloads:
                yield f"{where}: workloads.csv does not have this workload"
            else:
                yield from (f"{where}: {problem}" for problem in _row(row, workloads[row["workload"]]))
    yield from _energies(board)
    yield from _classes(board)
    yield from _reliability(board, workloads)
    yield from _pairs(board)
    yield from _summary(board)
    yield from _seeds(board)
    yield from _shift(board, workloads)
    yield from _training(board)


def _identity(board: Board) -> Iterator[str]:
    suite = board.manifest.get("suite", {}).get("name")
    for name in dict.fromkeys(board.rows["suite"]):
        if name != suite:
            yield f"rows.csv has rows of suite {name}, manifest.json is of suite {suite}"
    for row in board.rows[board.rows.duplicated(_KEYS)].to_dict("records"):
        yield f"rows.csv: {', '.join(str(row[key]) for key in _KEYS)}: stands there twice"


def _workload(workload: Record) -> Iterator[str]:
    static = json.loads(workload["static_accuracy"])
    where = f"workloads.csv: {workload['workload']}"
    if len(static) != workload["timesteps"]:
        yield f"{where}: static_accuracy has {len(static)} entries for T = {workload['timesteps']}"
    if not _same(workload["aet"], len(static) - math.fsum(static[:-1])):
        yield f"{where}: aet {workload['aet']} does not follow from static_accuracy"


def _digests(row: Record, manifest: Record) -> Iterator[str]:
    facts = manifest.get("workloads", {}).get(row["workload"])
    for name in _DIGESTS:
        if not pd.isna(row[name]):
            if facts is None:
                yield "manifest.json does not have this workload"
                return
            if not str(facts.get(name, "")).startswith(str(row[name])):
                yield f"{name} {row[name]} is not the one in manifest.json"


def _row(row: Record, workload: Record) -> Iterator[str]:
    static = np.array(json.loads(workload["static_accuracy"]))
    histogram = np.array(json.loads(row["exit_histogram"]))
    samples, accuracy, average = int(row["samples"]), row["accuracy"], row["average_exit_timestep"]
    if samples != workload["samples"]:
        yield f"samples {samples}, workloads.csv has {workload['samples']}"
    if len(histogram) != len(static) or histogram.sum() != samples:
        yield f"exit_histogram does not hold {samples} samples at t = 1 .. {len(static)}"
        return
    if abs(accuracy * samples - round(accuracy * samples)) > 1e-6:
        yield f"accuracy {accuracy} is no share of {samples} samples"
    expected = {
        "average_exit_timestep": float(histogram @ np.arange(1, len(static) + 1)) / samples,
        "delta_points": 100 * (accuracy - static[-1]),
        "same_histogram_accuracy": float(histogram @ static) / samples,
        "fixed_hull_accuracy": fixed_hull(static, average),
        "gap_points": 100 * (row["select_accuracy"] - accuracy),
        "gap_timesteps": row["select_average_exit_timestep"] - average,
        "rank": 1 + row["losses"],
    }
    for name, value in expected.items():
        if not _same(row[name], value):
            yield f"{name} {row[name]} does not follow from its other columns ({value:.10g})"


def _energies(board: Board) -> Iterator[str]:
    """Check that energy over share, the energy of static T, is the same for all rows of a workload."""
    for cost in priced(board.rows.columns):
        share = f"energy_{cost.model}_share"
        for workload, rows in board.rows.groupby("workload", sort=False):
            static = (rows[cost.energy].astype(float) / rows[share].astype(float)).dropna()
            if len(static) and not np.allclose(static, static.median(), rtol=1e-9, atol=0):
                yield f"rows.csv: {workload}: {cost.energy} and {share} do not agree"


def _classes(board: Board) -> Iterator[str]:
    if board.classes.empty:
        return
    right = (board.classes["accuracy"] * board.classes["samples"]).round().rename("right")
    sums = board.classes.assign(right=right).groupby(_KEYS)[["right", "samples"]].sum()
    for row in board.rows[board.rows["accuracy"].notna()].to_dict("records"):
        key = tuple(row[name] for name in _KEYS)
        if key not in sums.index:
            yield f"classes.csv: {', '.join(key)}: is missing"
        elif not _same(sums.loc[key, "right"] / sums.loc[key, "samples"], row["accuracy"]):
            yield f"classes.csv: {', '.join(key)}: the classes do not add up to the accuracy in rows.csv"


def _reliability(board: Board, workloads: Mapping[Any, Record]) -> Iterator[str]:
    for (workload, timestep), bins in board.reliability.groupby(["workload", "timestep"], sort=False):
        if workload not in workloads:
            yield f"reliability.csv: {workload}: workloads.csv does not have this workload"
            return
        t = int(str(timestep))
        static = json.loads(workloads[workload]["static_accuracy"])
        right = float((bins["accuracy"].fillna(0) * bins["samples"]).sum()) / float(bins["samples"].sum())
        if not _same(right, static[t - 1]):
            yield f"reliability.csv: {workload}, t = {t}: the bins do not add up to the static accuracy"


def _pairs(board: Board) -> Iterator[str]:
    accuracy = {tuple(row[key] for key in _KEYS): row["accuracy"] for row in board.rows.to_dict("records")}
    for pair in board.pairwise.to_dict("records"):
        keys = [(pair["workload"], pair[side], pair["operating_point"]) for side in ("strategy", "rival")]
        where = f"pairwise.csv: {', '.join(str(part) for part in keys[0])} against {pair['rival']}"
        if any(key not in accuracy for key in keys):
            yield f"{where}: rows.csv does not have both"
        elif not _same(pair["accuracy_points"], 100 * (accuracy[keys[0]] - accuracy[keys[1]])):
            yield f"{where}: accuracy_points {pair['accuracy_points']} is not the difference in rows.csv"


def _summary(board: Board) -> Iterator[str]:
    expected = summary_table(board.rows)
    names = ["operating_point", "strategy", "average_rank", "wins", "losses", "ties"]
    found, wanted = (table[names].to_dict("records") for table in (board.summary, expected))
    if len(found) != len(wanted) or any(
        not all(_same(row[name], other[name]) for name in names) for row, other in zip(found, wanted, strict=True)
    ):
        yield "summary.csv does not follow from rows.csv"


def _seeds(board: Board) -> Iterator[str]:
    known = _seed_groups(board.manifest["suite"])
    if board.seeds is None:
        if known:
            yield f"seeds.csv is missing: {' and '.join(known[0])} differ in their seed only"
        return
    groups: dict[str, list[str]] = {}
    for name, own in board.seeds.groupby("workload", sort=False):
        named = {workload for text in own["workloads"] for workload in json.loads(text)}
        fitting = [g for g in known if named <= set(g) and (g[0] == name or g[0].startswith(f"{name}-seed"))]
        if not fitting:
            yield f"seeds.csv: {name}: manifest.json has no such workloads that differ in their seed only"
            return
        groups[str(name)] = fitting[0]
    if missing := [group[0] for group in known if group not in groups.values()]:
        yield f"seeds.csv: {missing[0]} and its other seeds are missing"
    expected = seed_table(board.rows, groups)
    found, wanted = (table.to_dict("records") if table is not None else [] for table in (board.seeds, expected))
    names = [name for name in SEED_COLUMNS if name != "interval"]
    if len(found) != len(wanted) or any(
        not all(_same(row[name], other[name]) for name in names) for row, other in zip(found, wanted, strict=True)
    ):
        yield "seeds.csv does not follow from rows.csv"


def _seed_groups(suite: Record) -> list[list[str]]:
    """Return the names of workloads that differ only in their seed, in groups of two or more."""
    alike: dict[str, dict[Any, str]] = {}
    for workload in suite["workloads"]:
        rest = {key: value for key, value in workload.items() if key not in ("name", "seed")}
        alike.setdefault(json.dumps(rest, sort_keys=True), {}).setdefault(workload["seed"], workload["name"])
    return [list(names.values()) for names in alike.values() if len(names) > 1]


_CLEAN = "clean-0"
_SHIFT_KEYS = ("workload", "strategy", "operating_point", "corruption", "severity")


def _shift(board: Board, workloads: Mapping[Any, Record]) -> Iterator[str]:
    asked = board.manifest["suite"].get("shift")
    if board.shift is None or asked is None:
        if board.shift is not None or asked is not None:
            said = "is missing: the suite has [shift]" if board.shift is None else "is there: the suite has no [shift]"
            yield f"shift.csv {said}"
        return
    known = board.shift[board.shift["strategy"].notna()]
    for row in known[known.duplicated(list(_SHIFT_KEYS))].to_dict("records"):
        yield f"shift.csv: {_shift_name(row)}: stands there twice"
    for workload, rows in known.groupby("workload", sort=False):
        if workload not in workloads:
            yield f"shift.csv: {workload}: workloads.csv does not have this workload"
            continue
        yield from _shift_rows_of(board, workloads[workload], rows)
        for row in rows[rows["promise"].notna()].to_dict("records"):
            samples = min(int(asked["samples"]), workloads[workload]["samples"])
            problems = _shift_row(row, samples, workloads[workload]["timesteps"])
            yield from (f"shift.csv: {_shift_name(row)}: {problem}" for problem in problems)


def _shift_name(row: Record) -> str:
    return ", ".join(str(row[key]) for key in _SHIFT_KEYS[:-1]) + f", {row['severity']:.0f}"


def _shift_rows_of(board: Board, workload: Record, rows: pd.DataFrame) -> Iterator[str]:
    """Check which policies have rows under which corruptions, and what the rows of one corruption have in common."""
    where = f"shift.csv: {workload['workload']}"
    own = board.rows[board.rows["workload"] == workload["workload"]]
    pairs, scored = (
        set(zip(table["strategy"], table["operating_point"], strict=True))
        for table in (own, own[own["accuracy"].notna()])
    )
    digests = board.manifest["workloads"].get(workload["workload"], {}).get("shift", {})
    found = set()
    for name, here in rows.groupby(_condition(rows), sort=False):
        found.add(name)
        there = set(zip(here["strategy"], here["operating_point"], strict=True))
        if not scored <= there <= pairs:
            strategy, point = sorted((scored - there) or (there - pairs))[0]
            yield f"{where}, {name}: {strategy}, {point} stands here or in rows.csv, not in both"
        for column in ("samples", "static_accuracy", "trace"):
            if here[column].nunique() > 1:
                yield f"{where}, {name}: more than one {column}"
        for digest in dict.fromkeys(here["trace"]):
            if name != _CLEAN and not digests.get(name, "").startswith(str(digest)):
                yield f"{where}, {name}: trace {digest} is not the one in manifest.json"
    if missing := [name for name in (_CLEAN, *digests) if name not in found]:
        yield f"{where}, {missing[0]}: is missing"


def _condition(rows: pd.DataFrame) -> "pd.Series[str]":
    """Return the manifest's name for the corruption and severity of each row."""
    return rows["corruption"] + "-" + rows["severity"].map("{:.0f}".format)


def _shift_row(row: Record, samples: int, timesteps: int) -> Iterator[str]:
    if row["samples"] != samples:
        yield f"samples {row['samples']}, the suite and workloads.csv say {samples}"
        return
    for name in ("accuracy", "static_accuracy", "average_exit_timestep", "harmed_share"):
        total = row[name] * samples
        if abs(total - round(total)) > 1e-6:
            yield f"{name} {row[name]} is no mean of {samples} samples"
    if not _same(row["delta_points"], 100 * (row["accuracy"] - row["static_accuracy"])):
        yield f"delta_points {row['delta_points']} does not follow from its other columns"
    helped = row["harmed_share"] + row["delta_points"] / 100
    if not (-_TOLERANCE <= helped <= 1 - row["static_accuracy"] + _TOLERANCE):
        yield f"harmed_share {row['harmed_share']} can't be with its accuracy and that of static T"
    for name in ("delta_points", "average_exit_timestep"):
        if not (row[f"{name}_low"] - _TOLERANCE <= row[name] <= row[f"{name}_high"] + _TOLERANCE):
            yield f"{name} {row[name]} is not in its interval"
    if row["promise"] not in _promises(row, timesteps):
        yield f"promise {row['promise']} does not follow from its other columns"


def _training(board: Board) -> Iterator[str]:
    if board.training is None:
        return
    for (workload, stage), own in board.training.groupby(["workload", "stage"], sort=False, dropna=False):
        where = f"training.csv: {workload}, {stage}"
        if workload not in board.manifest["workloads"]:
            yield f"{where}: manifest.json does not have this workload"
        if own["epoch"].tolist() != list(range(1, len(own) + 1)):
            yield f"{where}: the epochs are not 1 .. {len(own)}"
        if not own["accuracy"].between(0, 1).all():
            yield f"{where}: an accuracy is not between 0 and 1"
        if (own["seconds"] < 0).any():
            yield f"{where}: an epoch took less than no time"


def _promises(row: Record, timesteps: int) -> tuple[str, ...]:
    """Return the possible states of a promise, as far as the columns determine it."""
    point = OperatingPoint.parse(row["operating_point"])
    if point.kind == "iso-accuracy":
        beyond = -point.value - row["delta_points_high"]
    elif point.kind == "budget":
        beyond = row["average_exit_timestep_low"] - point.value * timesteps
    else:  # the interval of the harmed share is not a column
        beyond = 0.0 if 100 * row["harmed_share"] > point.value else -1.0
    if abs(beyond) <= _TOLERANCE:
        return "kept", "broken"
    return ("broken",) if beyond > 0 else ("kept",)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, str) or isinstance(right, str):
        return bool(left == right)
    if pd.isna(left) or pd.isna(right):
        return bool(pd.isna(left) and pd.isna(right))
    return math.isclose(left, right, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
