"""Recompute a committed board and compare it, row by row and column by column.

``traces``: the committed traces are replayed again. On the versions and CPU capability that the manifest names,
every deterministic csv file is equal byte by byte; elsewhere every decision is equal and figures agree to nine digits.
``weights``: the shipped networks are run again and recorded anew. Equal on the same machine type; elsewhere, since a
spike may flip, of rows.csv accuracies agree within 0.1 point and average exit timesteps within 0.01.

Where the inputs of the traces are not at hand, strategies that look at inputs can't be replayed. Then their rows are
left out, and with them whatever a row owes to other rows: ranks, wins, losses and ties, and the tables of ``_AMONG``.
"""

import dataclasses
import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bench_core.competition import policy_artifacts, score_workload, suite_tables
from bench_core.execution import run_suite
from bench_core.kept_traces import kept_trace, trace_path
from bench_core.offline import resolve_inputs
from bench_core.planning import plan
from bench_core.plugin_manager import Registry
from bench_core.provenance import environment
from bench_core.results import Board, read_board, write_tables
from bench_core.scoring import Contest, Recorded, WorkloadScores, halve
from bench_core.shift import Condition, shift_table
from bench_core.shift_recording import read_conditions
from bench_core.store import Store, default_store
from bench_core.suite import LatencySpec, Suite, parse_suite

__all__ = ["Reproduction", "Tested", "briefly", "reproduce_board", "suite_of", "tested"]

RELATIVE = 1e-9
ACCURACY_TOLERANCE = 0.001  # 0.1 point
TIMESTEP_TOLERANCE = 0.01
# What names a row of each table; rows that share it are told apart by their order.
_KEYS = {
    "rows": ("workload", "strategy", "operating_point"),
    "workloads": ("workload",),
    "curves": ("workload", "strategy"),
    "pairwise": ("workload", "operating_point", "strategy", "rival"),
    "classes": ("workload", "strategy", "operating_point", "class"),
    "reliability": ("workload", "timestep", "bin"),
    "summary": ("operating_point", "strategy"),
    "seeds": ("workload", "operating_point", "strategy"),
    "shift": ("workload", "strategy", "operating_point", "corruption", "severity"),
}
_AMONG = ("pairwise", "summary", "seeds")
_STANDING = ["rank", "wins", "losses", "ties"]


@dataclass
class Reproduction:
    """What a reproduction found.

    Attributes:
        drift: a line per difference that is not allowed; empty when the board was reproduced.
        remarks: what was compared, and how strictly.
    """

    drift: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Everything, as lines; of a long list of differences the first 40."""
        shown = self.drift[:40]
        more = [f"… and {len(self.drift) - 40} more"] if len(self.drift) > 40 else []
        verdict = "drifted" if self.drift else "reproduced"
        return "\n".join([*self.remarks, *shown, *more, verdict])


def reproduce_board(folder: Path, registry: Registry, *, from_weights: bool, keep: Path | None = None) -> Reproduction:
    """Recompute the board in ``folder`` and compare.

    Args:
        from_weights: run the networks again instead of replaying the committed traces.
        keep: folder to write the recomputed tables to.

    Raises:
        UsageError: when there is no board, or no traces, to start from.
    """
    committed = read_board(folder)
    suite = suite_of(committed, folder)
    result = Reproduction()
    if from_weights:
        with tempfile.TemporaryDirectory(prefix="exitbench-") as scratch:
            place = Path(scratch)
            board = run_suite(briefly(suite), registry=registry, output=place / "board", store=Store(place / "store"))
    else:
        board = _from_traces(committed, suite, folder, registry)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        write_tables(board, keep)

    same_place = _same_place(committed.manifest["environment"])
    result.remarks.append(f"{folder}: {len(board.rows)} rows recomputed from {'weights' if from_weights else 'traces'}")
    if committed.shift is not None and board.shift is None:
        result.remarks.append(
            f"shift.csv is not compared: traces under corruption are not in {folder}/traces; "
            "`--from weights` records them again"
        )
    result.drift += [f"{name}.csv: is missing" for name in board.tables if name not in committed.tables]
    names = [name for name in committed.tables if name in board.tables]
    changed = [
        name
        for name in names
        if board.tables[name].to_csv(index=False) != (folder / f"{name}.csv").read_text(encoding="utf-8")
    ]
    if blind := _blind(committed, board):
        result.remarks.append(
            f"{', '.join(blind)}: not compared, nor are ranks and what stands in "
            f"{', '.join(f'{name}.csv' for name in _AMONG if name in names)}: without the inputs they can't be replayed"
        )
        changed = [name for name in names if name not in _AMONG]
        committed, board = (_without(one, blind) for one in (committed, board))
    if not changed:
        files = [f"{name}.csv" for name in names]
        result.remarks.append(f"{', '.join(files[:-1])} and {files[-1]} are equal byte by byte")
    elif same_place:
        result.remarks.append("the versions and the CPU capability are those of the manifest, so nothing may differ")
        for name in changed:
            found = _differences(name, committed, board, _exactly)
            result.drift += found or ([] if blind else [f"{name}.csv: the files differ, their values don't"])
    else:
        result.remarks.append(f"made with {committed.manifest['environment']}, recomputed with {environment()}")
        for name in ("rows",) if from_weights else changed:
            result.drift += _differences(name, committed, board, _statistically if from_weights else _to_nine_digits)
    return result


def suite_of(board: Board, folder: Path) -> Suite:
    """The suite that the board in ``folder`` was made from."""
    return parse_suite(board.manifest["suite"], f"in {folder}/manifest.json")


def briefly(suite: Suite) -> Suite:
    """The suite with as little wall clock as can be."""
    return suite.model_copy(update={"latency": LatencySpec(samples=1, repetitions=1, batch_samples=0)})


@dataclass(frozen=True)
class Tested:
    """What the traces beside a board hold of one workload: all strategies scored, and the test samples."""

    scores: WorkloadScores
    test: Recorded


def tested(committed: Board, suite: Suite, folder: Path, registry: Registry, store: Store) -> dict[str, Tested]:
    """Every strategy of a board replayed on the traces beside it, by workload.

    Args:
        suite: the board's own, or some workloads of it.
        store: where policy networks are taken from; what is missing there is fitted again.

    Raises:
        TraceError, UsageError: for a trace that is missing, or is not the one that the manifest names.
    """
    planned = plan(suite, registry)
    labels = set(committed.rows["strategy"])
    entrants = [entrant for entrant in planned.competitors if entrant.label in labels]
    found = {}
    for spec in suite.workloads:
        facts: Mapping[str, Any] = committed.manifest["workloads"].get(spec.name, {})
        sides = []
        for split in ("calibration", "test"):
            trace = kept_trace(trace_path(folder, spec.name, split), facts.get(f"{split}_trace"))
            sides.append(Recorded(trace, resolve_inputs(trace, registry)))
        fit, select = halve(sides[0])
        artifacts = policy_artifacts(store, {"trace": facts["recording"]["calibration"], "half": "fit"})
        digests = {name: str(facts[name]) for name in ("weights", "calibration_trace", "test_trace")}
        contest = Contest(fit, select, sides[1], artifacts)
        found[spec.name] = Tested(score_workload(spec.name, entrants, planned.points, contest, digests), sides[1])
    return found


def _from_traces(committed: Board, suite: Suite, folder: Path, registry: Registry) -> Board:
    planned = plan(suite, registry)
    found = tested(committed, suite, folder, registry, default_store())
    scores = [one.scores for one in found.values()]
    board = Board(**suite_tables(suite, planned, scores), measurements=None, manifest=committed.manifest)
    if (conditions := _conditions(committed, suite, folder, registry, found)) is not None:
        board.shift = shift_table(scores, conditions, resamples=suite.resamples, seed=suite.seed)
    return board


def _conditions(
    committed: Board, suite: Suite, folder: Path, registry: Registry, found: Mapping[str, Tested]
) -> dict[str, list[Condition]] | None:
    """Every workload under corruption; None where the suite has none, or traces are missing."""
    if suite.shift is None:
        return None
    conditions = {}
    for spec in suite.workloads:
        own = read_conditions(
            folder / "traces",
            spec.name,
            found[spec.name].test,
            spec=suite.shift,
            dataset=registry.find("datasets", spec.dataset),
            digests=committed.manifest["workloads"][spec.name].get("shift", {}),
        )
        if own is None:
            return None
        conditions[spec.name] = own
    return conditions


def _blind(committed: Board, found: Board) -> list[str]:
    """Strategies of the board that couldn't be replayed for want of inputs."""
    unavailable = found.rows["status"].str.startswith("unavailable")
    wanted = set(committed.rows.loc[~committed.rows["status"].str.startswith("unavailable"), "strategy"])
    return [name for name in dict.fromkeys(found.rows.loc[unavailable, "strategy"]) if name in wanted]


def _without(board: Board, strategies: Sequence[str]) -> Board:
    """The board without these strategies, and without what other rows owe to them."""
    kept: dict[str, Any] = {
        name: table[~table["strategy"].isin(strategies)] if "strategy" in table else table
        for name, table in board.tables.items()
    }
    return dataclasses.replace(board, **{**kept, "rows": kept["rows"].drop(columns=_STANDING)})


def _same_place(made_with: Mapping[str, Any]) -> bool:
    here = environment()
    return all(
        made_with.get(name) == here[name] for name in ("python", "torch", "numpy", "scipy", "machine", "cpu_capability")
    )


def _differences(table: str, committed: Board, found: Board, allowed: Callable[[str, Any, Any], bool]) -> list[str]:
    left, right = (_by_key(getattr(board, table), _KEYS[table]) for board in (committed, found))
    lines = [f"{key}: the row is missing" for key in left if key not in right]
    lines += [f"{key}: the row is new" for key in right if key not in left]
    for key, row in left.items():
        for column, value in row.items():
            if key in right and not allowed(column, value, right[key].get(column)):
                lines.append(f"{key}: {column}: expected {value}, found {right[key].get(column)}")
    return [line if table == "rows" else f"{table}.csv: {line}" for line in lines]


def _by_key(table: pd.DataFrame, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    seen: Counter[str] = Counter()
    for record in table.to_dict("records"):
        key = ", ".join(str(record[name]) for name in names)
        seen[key] += 1
        found[key if seen[key] == 1 else f"{key}, number {seen[key]}"] = {str(k): value for k, value in record.items()}
    return found


def _exactly(_column: str, expected: Any, found: Any) -> bool:
    if _is_empty(expected) or _is_empty(found):
        return _is_empty(expected) and _is_empty(found)
    return bool(expected == found or str(expected) == str(found))


def _is_empty(cell: Any) -> bool:
    return cell is None or cell == "" or bool(pd.isna(cell))


def _to_nine_digits(column: str, expected: Any, found: Any) -> bool:
    if isinstance(expected, float) and isinstance(found, float) and not pd.isna(expected):
        return math.isclose(expected, found, rel_tol=RELATIVE, abs_tol=RELATIVE)
    if all(isinstance(cell, str) and cell.startswith("[") for cell in (expected, found)):
        left, right = json.loads(expected), json.loads(found)
        return len(left) == len(right) and all(
            math.isclose(a, b, rel_tol=RELATIVE, abs_tol=RELATIVE) for a, b in zip(left, right, strict=True)
        )
    return column == "parameters" or _exactly(column, expected, found)


def _statistically(column: str, expected: Any, found: Any) -> bool:
    tolerances = {"accuracy": ACCURACY_TOLERANCE, "average_exit_timestep": TIMESTEP_TOLERANCE}
    if column not in tolerances:
        return True  # knobs, digests and intervals move with single flipped spikes
    if _is_empty(expected) or _is_empty(found):
        return _is_empty(expected) and _is_empty(found)
    return abs(float(expected) - float(found)) <= tolerances[column]
