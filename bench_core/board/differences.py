"""Comparison of two boards of one suite: which rows changed, by how much, and which are not comparable.

Rows are comparable if data, split, weights and traces are the same (design 5.4); anything else is named but never
subtracted. A difference is clear if one board's 95 % interval excludes the other's figure.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from tabulate import tabulate

from bench_core.board.board import OPTIONAL_TABLES, Board
from bench_core.board.schema import priced
from bench_core.errors import UsageError, visible

__all__ = ["Differences", "compare_boards"]

_KEYS = ("workload", "strategy", "operating_point")
_DIGESTS = ("weights", "calibration_trace", "test_trace")
_FIGURES = {"accuracy": (100, "{:.2f}"), "average_exit_timestep": (1, "{:.4f}"), "rank": (1, "{:.0f}")}
# Suite options that determine intervals, ranks or choices.
_OPTIONS = {"resamples": "intervals and ranks", "seed": "intervals and ranks", "first_layer": "energies"}


@dataclass
class Differences:
    """The differences between two boards.

    Attributes:
        incomparable: by workload, why its rows are not compared.
        only_first: rows that only the first board has.
        only_second: rows that only the second board has.
        changed: one record per row with a difference: its key, figures of both, and the names of other columns.
        equal: number of rows without a difference.
        remarks: differences of versions and options.
    """

    incomparable: dict[str, str] = field(default_factory=dict)
    only_first: list[str] = field(default_factory=list)
    only_second: list[str] = field(default_factory=list)
    changed: list[dict[str, str]] = field(default_factory=list)
    equal: int = 0
    remarks: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The differences as text, line by line."""
        lines = list(self.remarks)
        lines += [f"not comparable: {workload}: {reason}" for workload, reason in self.incomparable.items()]
        lines += [f"only in the first: {name}" for name in self.only_first]
        lines += [f"only in the second: {name}" for name in self.only_second]
        table = []
        if self.changed:
            shown = [{visible(name): visible(cell) for name, cell in record.items()} for record in self.changed]
            table = [tabulate(shown, headers="keys", disable_numparse=True)]
        return "\n".join([*map(visible, lines), *table, f"{self.equal} rows equal, {len(self.changed)} changed"])


def compare_boards(first: Board, second: Board) -> Differences:
    """Compare two boards of one suite, row by row.

    Raises:
        UsageError: the suites differ, or no workload is comparable.
    """
    names = [board.manifest["suite"]["name"] for board in (first, second)]
    if names[0] != names[1]:
        raise UsageError(f"boards of different suites, {names[0]} and {names[1]}: their rows are not comparable")
    found = Differences(remarks=list(_remarks(first.manifest, second.manifest)))
    common = [name for name in dict.fromkeys(first.rows["workload"]) if name in set(second.rows["workload"])]
    for workload in common:
        facts = [board.manifest["workloads"].get(workload) for board in (first, second)]
        if reason := _incomparable(*facts):
            found.incomparable[workload] = reason
    if all(workload in found.incomparable for workload in common):
        reasons = "; ".join(f"{name}: {why}" for name, why in found.incomparable.items()) or "no workload in common"
        raise UsageError(f"nothing to compare: {reasons}")
    left, right = (
        {tuple(str(row[key]) for key in _KEYS): row for row in board.rows.to_dict("records")}
        for board in (first, second)
    )
    found.only_first = [", ".join(key) for key in left if key not in right]
    found.only_second = [", ".join(key) for key in right if key not in left]
    models = [{cost.energy for cost in priced(board.rows.columns)} for board in (first, second)]
    columns = [str(name) for name in first.rows if name in second.rows and name not in _DIGESTS]
    for key, row in left.items():
        if key in right and key[0] not in found.incomparable:
            _compare_row(found, key, row, right[key], columns)
    for name in OPTIONAL_TABLES:
        found.remarks += _other_table(name, first, second, found.incomparable)
    for energy in sorted(models[0] ^ models[1]):
        found.remarks.append(f"{energy}: only in the {'first' if energy in models[0] else 'second'} board")
    return found


def _remarks(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*first["environment"], *second["environment"]}):
        ours, theirs = first["environment"].get(name), second["environment"].get(name)
        if ours != theirs:
            yield f"made with {name} {ours} and {theirs}"
    versions = [{plugin["name"]: plugin["version"] for plugin in board["plugins"]} for board in (first, second)]
    for name in sorted({*versions[0], *versions[1]}):
        if versions[0].get(name) != versions[1].get(name):
            yield f"plugin {name} {versions[0].get(name, 'absent')} and {versions[1].get(name, 'absent')}"
    for name, what in _OPTIONS.items():
        ours, theirs = first["suite"].get(name), second["suite"].get(name)
        if ours != theirs:
            yield f"suite option {name} {ours} and {theirs}: {what} may differ for that alone"


def _incomparable(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> str:
    """Return why the rows of a workload are not comparable; empty if they are."""
    if first is None or second is None:
        return "a manifest does not have it"
    data = [name for name in ("calibration", "test") if first["data"].get(name) != second["data"].get(name)]
    parts = [f"{name} data" for name in data]
    parts += [name.replace("_", " ") for name in _DIGESTS if first.get(name) != second.get(name)]
    return f"{' and '.join([', '.join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)} differ" if parts else ""


def _other_table(name: str, first: Board, second: Board, incomparable: Mapping[str, str]) -> Iterator[str]:
    """Describe differences in a table that only some boards have: how many comparable rows differ, and the first."""
    one, other = (board.tables.get(name) for board in (first, second))
    if one is None or other is None:
        if one is not other:
            yield f"{name}.csv: only in the {'second' if one is None else 'first'} board"
        return
    keys = [key for key in (*_KEYS, "corruption", "severity") if key in one]
    left, right = (
        {tuple(str(row[key]) for key in keys): row for row in table.to_dict("records")} for table in (one, other)
    )
    apart = {key for key in left.keys() & right.keys() if not _shares_samples(left[key], right[key], incomparable)}
    if apart:
        yield f"{name}.csv: {len(apart)} rows are of other networks or traces, and not compared"
    differing = [
        key
        for key in dict.fromkeys([*left, *right])
        if key not in apart and not (key in left and key in right and _alike(left[key], right[key]))
    ]
    if differing:
        yield f"{name}.csv: {len(differing)} rows differ, the first is {', '.join(differing[0])}"


def _shares_samples(ours: Mapping[Any, Any], theirs: Mapping[Any, Any], incomparable: Mapping[str, str]) -> bool:
    """Return whether two rows of seeds.csv or shift.csv are about the same networks and samples."""
    names = json.loads(ours["workloads"]) if "workloads" in ours else [ours["workload"]]
    return not (set(names) & incomparable.keys()) and _same(ours.get("trace"), theirs.get("trace"))


def _alike(ours: Mapping[Any, Any], theirs: Mapping[Any, Any]) -> bool:
    return all(_same(ours[name], theirs[name]) for name in ours)


def _compare_row(found: Differences, key: tuple[str, ...], ours: Any, theirs: Any, columns: list[str]) -> None:
    differing = [name for name in columns if not _same(ours[name], theirs[name])]
    if not differing:
        found.equal += 1
        return
    record = dict(zip(("workload", "strategy", "operating point"), key, strict=True))
    for name, (factor, pattern) in _FIGURES.items():
        shown = [("n/a" if pd.isna(row[name]) else pattern.format(factor * row[name])) for row in (ours, theirs)]
        label = {"accuracy": "accuracy %", "average_exit_timestep": "avg exit t"}.get(name, name)
        record[label] = shown[0] if shown[0] == shown[1] else f"{shown[0]} → {shown[1]}"
    clear = [label for label in ("accuracy", "average_exit_timestep") if _is_clear(label, ours, theirs)]
    record["clear"] = ", ".join(name.replace("average_exit_timestep", "avg exit t") for name in clear)
    others = [name for name in differing if name not in _FIGURES and not name.endswith(("_low", "_high"))]
    record["also"] = ", ".join(others)
    found.changed.append(record)


def _is_clear(name: str, ours: Any, theirs: Any) -> bool:
    """Return whether one of the two 95 % intervals excludes the other's figure."""
    pairs = ((ours, theirs), (theirs, ours))
    return any(not here[f"{name}_low"] <= there[name] <= here[f"{name}_high"] for here, there in pairs) and not (
        pd.isna(ours[name]) or pd.isna(theirs[name])
    )


def _same(left: Any, right: Any) -> bool:
    return bool((pd.isna(left) and pd.isna(right)) or left == right)
