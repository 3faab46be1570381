"""Wall-clock time of policies and static T, at batch 1 or as throughput of a refilled batch.

A board reports three speed-ups, none derived from another: the ideal one (T over the average exit timestep), the one
measured at batch 1, and the one measured at batch B.
"""

import os
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench_core.exits.strategy import ExitPolicy, NeverExit
from bench_core.live.energy_meter import energy_meter
from bench_core.live.engine import LiveSamples, SteppingNetwork, run_live
from bench_core.util.arrays import Array
from bench_core.util.progress import progress

__all__ = ["STATIC", "PolicyFailedError", "Timings", "measure"]

STATIC = "static"
BUSY = 0.5  # processors that other programs may use during timing
SPREAD = 0.25  # of static T: interquartile range over its median
_MOMENT = 0.5  # seconds
_ENOUGH = 8  # values needed for a meaningful range


class PolicyFailedError(Exception):
    """A policy raised an exception while it was timed."""

    def __init__(self, name: str, error: Exception) -> None:
        """Record the policy's name and describe the error."""
        super().__init__(f"{type(error).__name__}: {error}")
        self.name = name


@dataclass(frozen=True)
class Timings:
    """Measurements of one run: every policy, and static T under the name ``static``.

    A unit is one sample at batch 1, otherwise one pass over all samples.

    Attributes:
        batch: B.
        samples: N, over all units.
        seconds: by policy, float64 [units, repetitions].
        joules: by policy, likewise; None without a readable meter, and at batch 1, where a unit is shorter than the
            meter's resolution.
        others: average number of processors used by other programs meanwhile; None if unknown.
    """

    batch: int
    samples: int
    seconds: Mapping[str, Array]
    joules: Mapping[str, Array] | None = None
    others: float | None = None

    @property
    def remark(self) -> str:
        """Why the times are unreliable: a busy machine, or static T varying by more than ``SPREAD``; else empty."""
        found = []
        if self.others is not None and self.others > BUSY:
            found.append(f"busy, other programs used {self.others:.1f} of {os.cpu_count()} processors")
        times = self.seconds[STATIC].ravel()
        if len(times) >= _ENOUGH and (spread := _spread(times) / float(np.median(times))) > SPREAD:
            found.append(f"static T varied by {100 * spread:.0f} %")
        return "; ".join(found)

    def speedups(self, policy: str) -> Array:
        """Return the ratio of static T's time to the policy's, over all units, float64 [repetitions]."""
        ratios: Array = self.seconds[STATIC].sum(axis=0) / self.seconds[policy].sum(axis=0)
        return ratios

    def latency(self, policy: str) -> dict[str, float]:
        """Return the batch-1 columns: each sample's median over repetitions, in ms, and the speed-up."""
        per_sample = np.median(self.seconds[policy], axis=1) * 1e3
        low, high = np.quantile(per_sample, [0.25, 0.75])
        return {
            "latency_ms": float(per_sample.mean()),
            "latency_median_ms": float(np.median(per_sample)),
            "latency_iqr_ms": float(high - low),
            "latency_p95_ms": float(np.quantile(per_sample, 0.95)),
            "latency_p99_ms": float(np.quantile(per_sample, 0.99)),
            "static_latency_ms": float((np.median(self.seconds[STATIC], axis=1) * 1e3).mean()),
            "speedup": float(np.median(self.speedups(policy))),
            "speedup_iqr": _spread(self.speedups(policy)),
        }

    def throughput(self, policy: str) -> dict[str, float]:
        """Return the batch-B columns: samples per second, the speed-up, and joules if measured."""
        rates = self.samples / self.seconds[policy].sum(axis=0)
        joules = np.nan if self.joules is None else float(np.median(self.joules[policy].sum(axis=0))) / self.samples
        return {
            "throughput": float(np.median(rates)),
            "throughput_iqr": _spread(rates),
            "static_throughput": float(np.median(self.samples / self.seconds[STATIC].sum(axis=0))),
            "throughput_speedup": float(np.median(self.speedups(policy))),
            "throughput_speedup_iqr": _spread(self.speedups(policy)),
            "measured_joules": joules,
        }


def measure(
    network: SteppingNetwork,
    samples: LiveSamples,
    policies: Mapping[str, ExitPolicy],
    *,
    batch: int,
    repetitions: int,
    threads: int,
    title: str,
    seed: int = 0,
) -> Timings:
    """Time policies and static T interleaved.

    All repetitions of all policies run a unit, in random order, before the next unit, so that drift of the machine
    affects all equally. Each policy first runs a few samples as warm-up. Times include the controller but not encoding.

    Args:
        network: as in ``run_live``.
        samples: as in ``run_live``.
        policies: by name.
        batch: 1, or the number of samples in flight, with refill.
        repetitions: of every unit.
        threads: number of torch threads during timing.
        title: shown with the progress, which counts samples at batch 1, otherwise passes.
        seed: of the random order.

    Raises:
        PolicyFailedError: a policy raised; names the policy.
    """
    everything: dict[str, ExitPolicy] = {STATIC: NeverExit(), **policies}
    units = [samples] if batch > 1 else [samples.at(torch.tensor([number])) for number in range(len(samples))]
    device = samples.inputs.device
    meter = energy_meter(device) if batch > 1 else None
    seconds = {name: np.empty((len(units), repetitions)) for name in everything}
    joules = {name: np.empty((len(units), repetitions)) for name in everything}

    def run(name: str, unit: LiveSamples) -> None:
        try:
            run_live(network, unit, everything[name], batch=batch, refill=name != STATIC)
        except Exception as error:  # a plugin may raise anything
            raise PolicyFailedError(name, error) from error
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    order = random.Random(seed)
    steps, step = (len(units), "samples") if batch == 1 else (len(everything) * repetitions, "passes")
    load = OtherPrograms()
    with progress(title, steps, step) as advance, _threads(threads):
        for name in everything:
            run(name, samples.at(torch.arange(min(batch if name == STATIC else 8, len(units[0])))))
        for number, unit in enumerate(units):
            jobs = [(name, turn) for name in everything for turn in range(repetitions)]
            order.shuffle(jobs)
            for name, turn in jobs:
                energy = meter() if meter else None
                start = time.perf_counter()
                run(name, unit)
                seconds[name][number, turn] = time.perf_counter() - start
                if energy:
                    joules[name][number, turn] = energy()
                if batch > 1:
                    advance()
            if batch == 1:
                advance()
    return Timings(batch, len(samples), seconds, joules if meter else None, load.processors())


class OtherPrograms:
    """Number of processors used by other programs since this object was created."""

    def __init__(self) -> None:
        """Start measuring."""
        self._start, self._used = time.monotonic(), _used_by_others()

    def processors(self) -> float | None:
        """Return the average number; None if the system does not report it or too little time has elapsed."""
        used, elapsed = _used_by_others(), time.monotonic() - self._start
        if used is None or self._used is None or elapsed < _MOMENT:
            return None
        return max(0.0, used - self._used) / elapsed


def _used_by_others() -> float | None:
    """Return the CPU seconds of other programs, as counted by Linux."""
    try:
        cells = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
        working = [int(cells[place]) for place in (1, 2, 3, 6, 7, 8)]  # all but idle, iowait and guests
    except (OSError, ValueError, IndexError):
        return None
    own = os.times()
    return sum(working) / os.sysconf("SC_CLK_TCK") - own.user - own.system


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set torch's number of threads within the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _spread(values: Array) -> float:
    """Return the interquartile range; NaN for a single value."""
    if len(values) < 2:
        return float("nan")
    low, high = np.quantile(values, [0.25, 0.75])
    return float(high - low)
