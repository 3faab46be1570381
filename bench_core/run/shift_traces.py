"""Traces of corrupted test data: recorded once into the store, exported with a board, and read back from there."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench_core.board.traces import kept_trace, trace_name, trace_path
from bench_core.board.under_shift import CLEAN, Condition
from bench_core.data import Dataset
from bench_core.data.corruption import CorruptedTest, applies, subsample
from bench_core.replay.controller import InputFrames
from bench_core.run.artifacts import recorded_trace
from bench_core.run.evaluate import RecordedWorkload
from bench_core.run.suite import ShiftSpec
from bench_core.scoring.scores import Recorded
from bench_core.store.local import Store
from bench_core.trace.trace import Trace

__all__ = ["condition_digests", "condition_traces", "corrupted_tests", "read_conditions", "recorded_conditions"]


def recorded_conditions(ready: RecordedWorkload, spec: ShiftSpec, store: Store) -> list[Condition]:
    """Return a workload under every corruption that applies to its data, recording what the store lacks.

    The first condition is the same samples of the clean test trace.
    """
    workload = ready.workload
    dataset, timesteps = workload.dataset, workload.spec.timesteps
    conditions = [_clean(Recorded(ready.test, dataset.frames(dataset.split("test"), timesteps)), spec)]
    for corrupted, corruption, severity in corrupted_tests(dataset, spec, timesteps):
        changed = replace(workload, dataset=corrupted)
        trace = recorded_trace(changed, ready.weights, corrupted.corrupted_split, store).without_counts()
        conditions.append(Condition(corruption, severity, Recorded(trace, _inputs(corrupted, timesteps))))
    return conditions


def read_conditions(
    folder: Path, name: str, test: Recorded, *, spec: ShiftSpec, dataset: Dataset, digests: Mapping[str, str]
) -> list[Condition] | None:
    """Return the conditions from the traces that a run with ``--traces`` exported with a board; None if one is missing.

    Args:
        folder: of the board.
        name: of the workload.
        test: the clean test trace and its inputs.
        spec: the suite's corruptions.
        dataset: the workload's data set.
        digests: of the traces by condition, from the manifest.

    Raises:
        UsageError: a trace differs from the manifest's.
    """
    timesteps = test.trace.timesteps
    conditions = [_clean(test, spec)]
    for corrupted, corruption, severity in corrupted_tests(dataset, spec, timesteps):
        path = trace_path(folder, name, f"test-{corruption}-{severity}")
        if not path.exists():
            return None
        trace = kept_trace(path, digests.get(f"{corruption}-{severity}"))
        inputs = None if test.inputs is None else _inputs(corrupted, timesteps)
        conditions.append(Condition(corruption, severity, Recorded(trace, inputs)))
    return conditions


def condition_traces(conditions: Sequence[Condition], name: str) -> dict[str, Trace]:
    """Return the traces of a workload's corrupted samples by their file names."""
    corrupted = [condition for condition in conditions if condition.corruption != CLEAN]
    return {trace_name(name, f"test-{one.name}"): one.recorded.trace for one in corrupted}


def condition_digests(conditions: Sequence[Condition]) -> dict[str, str]:
    """Return the digests of the corrupted traces by condition, for the manifest."""
    return {c.name: c.recorded.trace.digest for c in conditions if c.corruption != CLEAN}


def corrupted_tests(dataset: Dataset, spec: ShiftSpec, timesteps: int) -> list[tuple[CorruptedTest, str, int]]:
    """Return the data set under every corruption that applies to it, with the corruption's name and severity."""
    return [
        (CorruptedTest(dataset, corruption, severity, spec.samples, timesteps), corruption, severity)
        for corruption in spec.corruptions
        if applies(corruption, dataset)
        for severity in spec.severities
    ]


def _clean(test: Recorded, spec: ShiftSpec) -> Condition:
    kept, read = subsample(test.trace.sample_ids, spec.samples), test.inputs
    inputs = None if read is None else lambda at, frames: read(kept[at], frames)
    return Condition(CLEAN, 0, Recorded(test.trace.select(kept).without_counts(), inputs))


def _inputs(corrupted: CorruptedTest, timesteps: int) -> InputFrames:
    return corrupted.frames(corrupted.split(corrupted.corrupted_split), timesteps)
