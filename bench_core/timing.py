"""The wall clock of a board: each policy that has none yet is run live on the same few test samples."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from bench_core.competition import RecordedWorkload
from bench_core.digests import json_digest
from bench_core.environment import processor
from bench_core.exits import ExitPolicy
from bench_core.failures import guarded
from bench_core.hashing import hash_order
from bench_core.latency import measure
from bench_core.live import LiveSamples, run_live
from bench_core.results import Board
from bench_core.scoring import WorkloadScores
from bench_core.snn import SpikingNetwork
from bench_core.suite import LatencySpec

__all__ = ["measure_policies"]

LATENCY_SALT = 0x4C415445  # which test samples are timed


def measure_policies(board: Board, timing: LatencySpec, ready: RecordedWorkload, result: WorkloadScores) -> None:
    """Add wall clock to the board for every policy that has none yet."""
    unmeasured: dict[str, Callable[[], ExitPolicy]] = {}
    rows: list[dict[str, Any]] = []
    for entry in result.entries:
        if entry.scores is None:
            continue
        for scored in entry.scores.policies:
            if scored.make is None:
                continue
            made_of = [ready.weights.digest, entry.label, scored.value, entry.scores.parameters]
            digest = json_digest(made_of)[:16]
            place = {"workload": result.name, "strategy": entry.label, "operating_point": str(scored.point)}
            rows.append({**place, "policy": digest})
            if not board.is_measured(digest):
                unmeasured[digest] = scored.make
    if unmeasured:
        _measure(board, timing, ready, result.name, unmeasured)
    board.place_measurements(rows)


def _measure(
    board: Board,
    timing: LatencySpec,
    ready: RecordedWorkload,
    workload: str,
    unmeasured: Mapping[str, Callable[[], ExitPolicy]],
) -> None:
    """Run policies live, by digest, and add what that took to the board."""
    timed = _timed_samples(ready, max(timing.samples, timing.batch_samples))
    tried = {
        digest: guarded(f"{workload}, live", _tried_live, ready.network, timed, make)
        for digest, make in unmeasured.items()
    }
    if wanted := {digest: policy for digest, policy in tried.items() if not isinstance(policy, str)}:  # others: n/a
        facts = {
            "samples": min(timing.samples, len(timed)),
            "batch": timing.batch,
            "batch_samples": min(timing.batch_samples, len(timed)),
            "repetitions": timing.repetitions,
            "threads": timing.threads,
            "device": processor(),
        }
        for batch, count in ((1, timing.samples), (timing.batch, timing.batch_samples)):
            if count == 0:
                continue
            some = timed.at(torch.arange(min(count, len(timed))))
            title = f"measure {workload}, batch {batch}"
            timings = measure(
                ready.network,
                some,
                wanted,
                batch=batch,
                repetitions=timing.repetitions,
                threads=timing.threads,
                title=title,
            )
            board.add_timings(workload, timings, facts)


def _timed_samples(ready: RecordedWorkload, count: int) -> LiveSamples:
    """Test samples for the wall clock, drawn by hash."""
    dataset, timesteps = ready.workload.dataset, ready.workload.spec.timesteps
    split = dataset.split("test")
    order = torch.from_numpy(hash_order(split.sample_ids, LATENCY_SALT).argsort())[:count]
    return LiveSamples.of_split(dataset, split, order, timesteps)


def _tried_live(network: SpikingNetwork, samples: LiveSamples, make: Callable[[], ExitPolicy]) -> ExitPolicy:
    """The policy. Raises whatever it raises in a live run, alone and in a batch that is refilled."""
    policy = make()
    few = samples.at(torch.arange(min(4, len(samples))))
    run_live(network, few, policy, batch=1)
    run_live(network, few, policy, batch=2, refill=True)
    return policy
