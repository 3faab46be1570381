"""The live engine: a network that really stops early, and the wall clock of it."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from bench_core.exits import ExitPolicy, NeverExit
from bench_core.replay import ExitController, InputFrames, Outcome

__all__ = ["Latency", "SteppingNetwork", "measure_latency", "run_live"]


class SteppingNetwork(Protocol):
    """What the live engine needs of a network."""

    def reset(self) -> None:
        """Start new samples."""

    def step(self, frame: torch.Tensor) -> torch.Tensor:
        """o_t [B, K] from this timestep's input [B, C, H, W]."""

    def keep(self, index: torch.Tensor) -> None:
        """Go on with the samples at ``index`` only."""


@dataclass(frozen=True)
class Latency:
    """Wall clock of one policy at batch 1, controller included.

    Attributes:
        milliseconds: mean over samples of each sample's median over repetitions.
        median, p95: over samples.
        speedup: mean time of static T over mean time of the policy, same samples, same run.
    """

    milliseconds: float
    median: float
    p95: float
    speedup: float


def run_live(
    network: SteppingNetwork,
    inputs: torch.Tensor,
    sample_ids: torch.Tensor,
    policy: ExitPolicy,
    *,
    timesteps: int,
    classes: int,
    constant_input: bool,
    frames: InputFrames | None = None,
) -> Outcome:
    """Step, decide, drop the finished samples, until none is left.

    Args:
        inputs: [B, C, H, W] under constant input, else [T, B, C, H, W].
        sample_ids: int64 [B].
        frames: network input by position among the B, for policies that look at it.
    """
    with torch.inference_mode():
        network.reset()
        controller = ExitController(policy, sample_ids, timesteps, classes, frames)
        for t in range(timesteps):
            frame = inputs if constant_input else inputs[t]
            frame = frame if len(frame) == len(controller.unfinished) else frame[controller.unfinished]
            keep = controller.observe(network.step(frame))
            if not len(controller.unfinished):
                break
            if keep is not None:
                network.keep(keep)
        return controller.outcome


def measure_latency(
    run: Callable[[ExitPolicy, int], object],
    policies: Mapping[str, ExitPolicy],
    *,
    samples: int,
    repetitions: int,
    threads: int,
    advance: Callable[..., None],
) -> dict[str, Latency]:
    """Measure policies side by side at batch 1.

    Every sample is run under static T and under every policy, in random order, before the next sample, so that drift of
    the machine meets all alike. One sample is run beforehand to warm up.

    Args:
        run: runs one policy on the sample at a position, live.
        policies: by name.
        samples, repetitions: how many samples, and how often each.
        threads: that torch may use meanwhile.
        advance: progress, called once per sample.
    """
    everything = {"static": NeverExit(), **policies}
    seconds = {name: np.empty((samples, repetitions)) for name in everything}
    order = random.Random(0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for policy in everything.values():
            run(policy, 0)
        for sample in range(samples):
            jobs = [(name, turn) for name in everything for turn in range(repetitions)]
            order.shuffle(jobs)
            for name, turn in jobs:
                start = time.perf_counter()
                run(everything[name], sample)
                seconds[name][sample, turn] = time.perf_counter() - start
            advance()
    finally:
        torch.set_num_threads(before)
    medians = {name: np.median(values, axis=1) * 1e3 for name, values in seconds.items()}
    static = medians["static"].mean()
    return {
        name: Latency(
            float(values.mean()),
            float(np.median(values)),
            float(np.quantile(values, 0.95)),
            float(static / values.mean()),
        )
        for name, values in medians.items()
    }
