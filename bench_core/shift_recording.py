"""Traces of corrupted test data: recorded once and kept in the store, written beside a board, read back from there."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench_core.competition import RecordedWorkload
from bench_core.data import Dataset
from bench_core.data.corruption import CorruptedTest, applies, subsample
from bench_core.errors import UsageError
from bench_core.replay import InputFrames
from bench_core.scoring import Recorded
from bench_core.shift import CLEAN, Condition
from bench_core.stages import recorded_trace
from bench_core.store import Store
from bench_core.suite import ShiftSpec
from bench_core.trace import Trace, load_trace, save_trace

__all__ = ["condition_digests", "read_conditions", "recorded_conditions", "save_conditions"]


def recorded_conditions(ready: RecordedWorkload, spec: ShiftSpec, store: Store) -> list[Condition]:
    """A workload under every corruption that applies to its data: from the store, or recorded now.

    The first condition is the same samples of the clean test trace.
    """
    workload = ready.workload
    dataset, timesteps = workload.dataset, workload.spec.timesteps
    conditions = [_clean(Recorded(ready.test, dataset.frames(dataset.split("test"), timesteps)), spec)]
    for corrupted, corruption, severity in _corrupted(dataset, spec, timesteps):
        changed = replace(workload, dataset=corrupted)
        trace = recorded_trace(changed, ready.weights, corrupted.corrupted_split, store, network=ready.network)
        conditions.append(Condition(corruption, severity, Recorded(_bare(trace), _inputs(corrupted, timesteps))))
    return conditions


def read_conditions(
    folder: Path, name: str, test: Recorded, *, spec: ShiftSpec, dataset: Dataset, digests: Mapping[str, str]
) -> list[Condition] | None:
    """The same from the traces that a run with ``--traces`` left in ``folder``; None where one of them isn't there.

    Raises UsageError for a trace that is not the one whose digest the manifest holds.
    """
    timesteps = test.trace.timesteps
    conditions = [_clean(test, spec)]
    for corrupted, corruption, severity in _corrupted(dataset, spec, timesteps):
        path = _path(folder, name, f"{corruption}-{severity}")
        if not path.exists():
            return None
        trace = load_trace(path)
        inputs = None if test.inputs is None else _inputs(corrupted, timesteps)
        found = Condition(corruption, severity, Recorded(trace, inputs))
        if trace.digest != digests.get(found.name):
            raise UsageError(f"{path}: not the trace that the manifest names; restore it, or make the board again")
        conditions.append(found)
    return conditions


def save_conditions(conditions: Sequence[Condition], folder: Path, name: str) -> None:
    """Write the traces of corrupted samples to ``folder``."""
    for condition in conditions:
        if condition.corruption != CLEAN:
            save_trace(condition.recorded.trace, _path(folder, name, condition.name))


def condition_digests(conditions: Sequence[Condition]) -> dict[str, str]:
    """Digests of the corrupted traces by condition, for the manifest."""
    return {c.name: c.recorded.trace.digest for c in conditions if c.corruption != CLEAN}


def _path(folder: Path, name: str, condition: str) -> Path:
    return folder / f"{name}-test-{condition}.safetensors"


def _corrupted(dataset: Dataset, spec: ShiftSpec, timesteps: int) -> list[tuple[CorruptedTest, str, int]]:
    return [
        (CorruptedTest(dataset, corruption, severity, spec.samples, timesteps), corruption, severity)
        for corruption in spec.corruptions
        if applies(corruption, dataset)
        for severity in spec.severities
    ]


def _clean(test: Recorded, spec: ShiftSpec) -> Condition:
    kept, read = subsample(test.trace.sample_ids, spec.samples), test.inputs
    inputs = None if read is None else lambda at, frames: read(kept[at], frames)
    return Condition(CLEAN, 0, Recorded(_bare(test.trace.select(kept)), inputs))


def _inputs(corrupted: CorruptedTest, timesteps: int) -> InputFrames:
    return corrupted.frames(corrupted.split(corrupted.corrupted_split), timesteps)


def _bare(trace: Trace) -> Trace:
    """Without operation counts, which nothing under corruption is judged by: half the size."""
    return Trace(trace.logits, trace.labels, trace.sample_ids, header=trace.header)
