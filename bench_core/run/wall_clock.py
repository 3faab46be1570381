"""Wall clock of a board: each unmeasured policy runs live on the same few test samples."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from bench_core.board.board import Board
from bench_core.exits.strategy import ExitPolicy
from bench_core.isolation.failures import guarded
from bench_core.isolation.foreign_code import STRATEGY_MINUTES
from bench_core.live.engine import LiveSamples, run_live
from bench_core.live.timing import PolicyFailedError, measure
from bench_core.run.evaluate import RecordedWorkload
from bench_core.run.suite import LatencySpec
from bench_core.scoring.scores import WorkloadScores
from bench_core.snn import SpikingNetwork
from bench_core.util.digests import json_digest
from bench_core.util.environment import processor
from bench_core.util.stable_random import hash_order

__all__ = ["measure_policies"]

LATENCY_SALT = 0x4C415445  # selects the test samples to time


def measure_policies(
    board: Board,
    timing: LatencySpec,
    ready: RecordedWorkload,
    result: WorkloadScores,
    *,
    minutes: float = STRATEGY_MINUTES,
) -> None:
    """Add the wall clock of every unmeasured policy to the board; failures become problems of the board.

    Args:
        board: the board.
        timing: how to measure.
        ready: the recorded workload.
        result: its scores.
        minutes: time limit per policy.
    """
    unmeasured: dict[str, tuple[str, Callable[[], ExitPolicy]]] = {}
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
                unmeasured[digest] = entry.label, scored.make
    if unmeasured:
        what = f"{result.name}, wall clock"
        everybody = minutes * (1 + len(unmeasured))
        problem = guarded(what, _measure, board, timing, ready, unmeasured, minutes, minutes=everybody, ours=True)
        board.problems += [f"{what}: {problem}"] if problem else []
    board.place_measurements(rows)


def _measure(
    board: Board,
    timing: LatencySpec,
    ready: RecordedWorkload,
    unmeasured: Mapping[str, tuple[str, Callable[[], ExitPolicy]]],
    minutes: float,
) -> None:
    """Run policies live, given by digest (label and factory), and add their timings to the board."""
    workload = ready.workload.spec.name
    timed = _timed_samples(ready, max(timing.samples, timing.batch_samples))
    wanted: dict[str, ExitPolicy] = {}
    for digest, (label, make) in unmeasured.items():
        what = f"{workload}, {label}, live"
        policy = guarded(what, _tried_live, ready.network, timed, make, minutes=minutes)
        if isinstance(policy, str):  # its wall clock is n/a
            board.problems.append(f"{what}: {policy}")
        else:
            wanted[digest] = policy
    if wanted:
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
            while wanted:
                try:
                    timings = measure(
                        ready.network,
                        some,
                        wanted,
                        batch=batch,
                        repetitions=timing.repetitions,
                        threads=timing.threads,
                        title=title,
                    )
                except PolicyFailedError as error:
                    label = unmeasured[error.name][0] if error.name in unmeasured else error.name
                    board.problems.append(f"{workload}, {label}, live: failed: {error}")
                    if wanted.pop(error.name, None) is None:
                        return  # static T fails, so the network does
                else:
                    board.add_timings(workload, timings, facts)
                    break


def _timed_samples(ready: RecordedWorkload, count: int) -> LiveSamples:
    """Return the test samples to time, drawn by hash."""
    dataset, timesteps = ready.workload.dataset, ready.workload.spec.timesteps
    split = dataset.split("test")
    order = torch.from_numpy(hash_order(split.sample_ids, LATENCY_SALT).argsort())[:count]
    return LiveSamples.of_split(dataset, split, order, timesteps)


def _tried_live(network: SpikingNetwork, samples: LiveSamples, make: Callable[[], ExitPolicy]) -> ExitPolicy:
    """Return the policy after trial runs at batch 1 and in a refilled batch; their exceptions propagate."""
    policy = make()
    few = samples.at(torch.arange(min(4, len(samples))))
    run_live(network, few, policy, batch=1)
    run_live(network, few, policy, batch=2, refill=True)
    return policy
