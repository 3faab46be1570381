"""A board from scratch: networks are trained again, and their figures compared with the committed ones.

Another machine or version trains different networks, so nothing is judged here: every row's difference has a 95 %
interval. If the traces stored with the committed board hold the same test samples, the interval is a paired bootstrap
over them; otherwise it is the normal one of two independent samples, which is wider. Both are about these two
networks and exclude the effect of another seed or calibration split. Under corruption (``shift.csv``) it is always
the normal one.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm
from tabulate import tabulate

from bench_core.board.board import Board, read_board, refuse_board, write_tables
from bench_core.board.consistency import refuse_contradictions
from bench_core.board.csv_tables import csv_text
from bench_core.board.traces import trace_path
from bench_core.plugins import Registry
from bench_core.replay.controller import static_outcome
from bench_core.run.run import run_suite
from bench_core.run.suite import Suite
from bench_core.scoring.comparisons import Drawn
from bench_core.scoring.scores import PolicySamples, policy_samples
from bench_core.scoring.statistics import interval
from bench_core.store.local import Store, default_store
from bench_core.util.arrays import Array
from bench_core.workflows.reproduction.replayed_board import Tested, briefly, suite_of, tested

__all__ = ["PAIRED", "STATIC", "UNPAIRED", "Retraining", "retrain_board", "unpaired"]

PAIRED, UNPAIRED = "paired bootstrap", "unpaired normal"
STATIC = "static T"
_KEYS = ("workload", "strategy", "operating_point")
_NORMAL = float(norm.ppf(0.975))
_COLUMNS = (
    *_KEYS,
    "accuracy_committed",
    "accuracy_found",
    "accuracy_points",
    "accuracy_points_low",
    "accuracy_points_high",
    "timesteps_committed",
    "timesteps_found",
    "timesteps",
    "timesteps_low",
    "timesteps_high",
    "interval",
)
_UNDER = ("corruption", "severity")
_PROMISES = ("promise_committed", "promise_found")


@dataclass
class Retraining:
    """The result of training again.

    Attributes:
        differences: a row for each row for which both boards have figures, and one for static T of each workload:
            accuracy (points) and average exit timestep, found minus committed, with 95 % intervals.
        problems: a line for each row or workload that failed to run.
        remarks: what was compared.
        shift: the same as ``differences`` for each row of shift.csv, with both promises; None without the table.
    """

    differences: pd.DataFrame
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    shift: pd.DataFrame | None = None

    @property
    def text(self) -> str:
        """The result as text: tables for each workload, then failures."""
        blocks = list(self.remarks)
        for workload, rows in self.differences.groupby("workload", sort=False):
            how = ", ".join(dict.fromkeys(rows["interval"]))
            blocks += [f"\n{workload} (95 % intervals: {how})", tabulate(_lines(rows), _HEADS, disable_numparse=True)]
            for name, what in (("accuracy_points", "accuracy"), ("timesteps", "average exit timestep")):
                clear = int(((rows[f"{name}_low"] > 0) | (rows[f"{name}_high"] < 0)).sum())
                blocks.append(f"{what}: {clear} of {len(rows)} intervals leave 0 out")
        if self.shift is not None:
            for workload, rows in self.shift.groupby("workload", sort=False):
                blocks.append(f"\n{workload} under corruption, means over policies (95 % intervals: {UNPAIRED})")
                blocks.append(tabulate(_shift_lines(rows), _SHIFT_HEADS, disable_numparse=True))
        return "\n".join([*blocks, *self.problems, "failed" if self.problems else "differences are not judged"])


_HEADS = ["strategy", "operating point", "accuracy %", "difference in points", "avg exit t", "difference"]


def _lines(rows: pd.DataFrame) -> Iterator[list[str]]:
    for row in rows.to_dict("records"):
        yield [
            str(row["strategy"]),
            str(row["operating_point"]),
            f"{100 * row['accuracy_committed']:.2f} → {100 * row['accuracy_found']:.2f}",
            "{:+.2f} ({:+.2f} to {:+.2f})".format(*(row[f"accuracy_points{end}"] for end in ("", "_low", "_high"))),
            f"{row['timesteps_committed']:.3f} → {row['timesteps_found']:.3f}",
            "{:+.3f} ({:+.3f} to {:+.3f})".format(*(row[f"timesteps{end}"] for end in ("", "_low", "_high"))),
        ]


_SHIFT_HEADS = [
    "corruption",
    "severity",
    "accuracy %",
    "avg exit t",
    "promises broken",
    "clear in accuracy",
    "in exit t",
]


def _shift_lines(rows: pd.DataFrame) -> Iterator[list[str]]:
    for (corruption, severity), here in rows.groupby(list(_UNDER), sort=False):
        broken = [int((here[name] == "broken").sum()) for name in _PROMISES]
        clear = [
            int(((here[f"{name}_low"] > 0) | (here[f"{name}_high"] < 0)).sum())
            for name in ("accuracy_points", "timesteps")
        ]
        means = {end: here[[f"accuracy_{end}", f"timesteps_{end}"]].mean() for end in ("committed", "found")}
        yield [
            str(corruption),
            str(severity),
            " → ".join(f"{100 * mean.iloc[0]:.2f}" for mean in means.values()),
            " → ".join(f"{mean.iloc[1]:.3f}" for mean in means.values()),
            f"{broken[0]} → {broken[1]} of {len(here)}",
            *(f"{count}/{len(here)}" for count in clear),
        ]


def retrain_board(folder: Path, registry: Registry, *, keep: Path | None = None, verified: bool = True) -> Retraining:
    """Run the suite of the board in ``folder`` in an empty store without the package's zoo, and compare.

    Args:
        folder: of the committed board.
        registry: the loaded plugins.
        keep: folder for the new tables and ``differences.csv``, and for ``shift-differences.csv`` if there is a
            shift.csv.
        verified: as for ``read_board``.

    Raises:
        UsageError: there is no board, ``keep`` holds one, the board's files contradict each other, or a trace stored
            with it is not its own.
    """
    if keep is not None:
        refuse_board(keep)
    committed = read_board(folder, verified=verified)
    refuse_contradictions(committed, str(folder))
    suite = briefly(suite_of(committed, folder))
    before = _tested(committed, suite, folder, registry, default_store())
    with tempfile.TemporaryDirectory(prefix="exitbench-") as scratch:
        place = Path(scratch) / "board"
        store = Store(Path(scratch) / "store", zoo=None)
        board = run_suite(suite, registry=registry, output=place, store=store, export_traces=True)
        after = _tested(board, suite, place, registry, store)
    records: list[dict[str, Any]] = []
    for spec in suite.workloads:
        sides = before.get(spec.name), after.get(spec.name)
        if sides[0] and sides[1] and _same_samples(sides[0], sides[1]):
            records += _paired(spec.name, sides[0], sides[1], suite)
        else:
            records += _unpaired(spec.name, committed, board)
    problems = list(_problems(board.rows, _KEYS))
    if board.shift is not None:
        problems += _problems(board.shift, (*_KEYS, *_UNDER))
    found = Retraining(
        pd.DataFrame(records, columns=list(_COLUMNS)), problems, shift=_under_corruption(committed, board)
    )
    found.remarks.append(f"{folder}: {len(suite.workloads)} workloads trained and run again; found minus committed")
    if keep is not None:
        differences = {"differences.csv": found.differences, "shift-differences.csv": found.shift}
        texts = {name: csv_text(table) for name, table in differences.items() if table is not None}
        write_tables(board, keep, texts, owned=differences)
    return found


def _problems(table: pd.DataFrame, keys: Sequence[str]) -> Iterator[str]:
    for row in table[table["status"].str.startswith("failed")].to_dict("records"):
        yield f"{', '.join(str(row[key]) for key in keys if not pd.isna(row[key]))}: {row['status']}"


def _tested(board: Board, suite: Suite, folder: Path, registry: Registry, store: Store) -> dict[str, Tested]:
    """Return the workloads whose traces are stored with the board."""
    found: dict[str, Tested] = {}
    for spec in suite.workloads:
        if all(trace_path(folder, spec.name, split).exists() for split in ("calibration", "test")):
            found |= tested(board, suite.model_copy(update={"workloads": [spec]}), folder, registry, store)
    return found


def _same_samples(before: Tested, after: Tested) -> bool:
    one, other = before.test.trace, after.test.trace
    return torch.equal(one.sample_ids, other.sample_ids) and torch.equal(one.labels, other.labels)


def _samples(side: Tested) -> dict[tuple[str, str], PolicySamples]:
    """Return the per-sample results of every policy and of static T on test, by strategy and operating point."""
    trace = side.test.trace
    found = {(STATIC, ""): policy_samples(trace, static_outcome(trace))}
    for entry in side.scores.entries:
        for policy in entry.scores.policies if entry.scores else ():
            if policy.outcome is not None:
                found[entry.label, str(policy.point)] = policy_samples(trace, policy.outcome)
    return found


def _paired(workload: str, before: Tested, after: Tested, suite: Suite) -> Iterator[dict[str, Any]]:
    ours, theirs = _samples(before), _samples(after)
    common = [key for key in ours if key in theirs]
    columns = [column for key in common for side in (ours, theirs) for column in _columns(side[key])]
    drawn = Drawn([(column, False) for column in columns], resamples=suite.resamples, seed=suite.seed)
    for key in common:
        (right, exits), (right_now, exits_now) = _columns(ours[key]), _columns(theirs[key])
        accuracy = interval(drawn.means(right_now) - drawn.means(right))
        timesteps = interval(drawn.means(exits_now) - drawn.means(exits))
        figures = (right.mean(), right_now.mean(), accuracy), (exits.mean(), exits_now.mean(), timesteps)
        yield _record((workload, *key), *figures, PAIRED)


def _columns(samples: PolicySamples) -> tuple[Array, Array]:
    return samples.right, samples.exit_timesteps


def _unpaired(workload: str, committed: Board, board: Board) -> Iterator[dict[str, Any]]:
    ours, theirs = (_moments(one, workload) for one in (committed, board))
    for key in (key for key in ours if key in theirs):
        figures = [
            (old[0], new[0], unpaired(old, new)) for old, new in zip(ours[key], theirs[key], strict=True)
        ]  # accuracy, then exit timesteps
        yield _record((workload, *key), figures[0], figures[1], UNPAIRED)


def _moments(board: Board, workload: str) -> dict[tuple[str, str], list[tuple[float, float, int]]]:
    """Return (mean, variance, samples) of correctness and of exit timesteps, by strategy and operating point."""
    found = {}
    for facts in board.workloads[board.workloads["workload"] == workload].to_dict("records"):
        static, samples = float(json.loads(facts["static_accuracy"])[-1]), int(facts["samples"])
        found[STATIC, ""] = [_share(static, samples), (float(facts["timesteps"]), 0.0, samples)]
    rows = board.rows[(board.rows["workload"] == workload) & board.rows["accuracy"].notna()]
    for row in rows.to_dict("records"):
        stopped = np.array(json.loads(row["exit_histogram"]))
        samples, steps = int(row["samples"]), np.arange(1, len(stopped) + 1)
        mean = float(stopped @ steps) / samples
        variance = float(stopped @ (steps - mean) ** 2) / samples
        key = str(row["strategy"]), str(row["operating_point"])
        found[key] = [_share(float(row["accuracy"]), samples), (mean, variance, samples)]
    return found


def _under_corruption(committed: Board, board: Board) -> pd.DataFrame | None:
    """Compare every row of shift.csv for which both boards have figures."""
    if committed.shift is None or board.shift is None:
        return None
    keys = [*_KEYS, *_UNDER]
    known = [table[table["promise"].notna()].astype({"severity": int}) for table in (committed.shift, board.shift)]
    records = []
    for row in known[0].merge(known[1], on=keys, suffixes=("_committed", "_found")).to_dict("records"):
        sides = [_shift_moments(row, end) for end in ("committed", "found")]
        figures = [(old[0], new[0], unpaired(old, new)) for old, new in zip(*sides, strict=True)]
        record = _record((row["workload"], row["strategy"], row["operating_point"]), figures[0], figures[1], UNPAIRED)
        records.append({**record, **{name: row[name] for name in (*_UNDER, *_PROMISES)}})
    return pd.DataFrame(records, columns=[*keys, *(name for name in _COLUMNS if name not in _KEYS), *_PROMISES])


def _shift_moments(row: Mapping[Any, Any], end: str) -> list[tuple[float, float, int]]:
    """Return moments as ``_moments`` does; the variance of exit timesteps is derived from their bootstrap interval."""
    samples = int(row[f"samples_{end}"])
    low, high = (float(row[f"average_exit_timestep_{side}_{end}"]) for side in ("low", "high"))
    variance = samples * ((high - low) / 2 / _NORMAL) ** 2
    return [
        _share(float(row[f"accuracy_{end}"]), samples),
        (float(row[f"average_exit_timestep_{end}"]), variance, samples),
    ]


def _share(share: float, samples: int) -> tuple[float, float, int]:
    return share, share * (1 - share), samples


def unpaired(before: tuple[float, float, int], after: tuple[float, float, int]) -> tuple[float, float]:
    """Return the normal 95 % interval of after minus before; each is (mean, variance of a single sample, samples)."""
    half = _NORMAL * (before[1] / before[2] + after[1] / after[2]) ** 0.5
    return after[0] - before[0] - half, after[0] - before[0] + half


Figure = tuple[float, float, tuple[float, float]]


def _record(key: tuple[str, str, str], accuracy: Figure, timesteps: Figure, how: str) -> dict[str, Any]:
    cells: list[Any] = [*key]
    for (before, after, (low, high)), factor in ((accuracy, 100), (timesteps, 1)):
        cells += [float(before), float(after), factor * (float(after) - float(before)), factor * low, factor * high]
    return dict(zip(_COLUMNS, [*cells, how], strict=True))
