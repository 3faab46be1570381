"""What the benchmarks of recording share: which networks of a suite, and ways of running them timed in turns."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from bench_core import load_registry, load_suite
from bench_core.recording.record import BATCH
from bench_core.run.artifacts import Workload, spiking_network, trained_weights
from bench_core.run.suite import WorkloadSpec
from bench_core.snn import SpikingNetwork
from bench_core.store.local import default_store


@dataclass(frozen=True)
class Subject:
    """A network ready for inference and the first test samples, encoded in batches."""

    spec: WorkloadSpec
    workload: Workload
    network: SpikingNetwork
    inputs: list[torch.Tensor]


def parse(description: str, *, samples: int) -> argparse.Namespace:
    """The options: suite, samples, repetitions."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--samples", type=int, default=samples)
    parser.add_argument("--repetitions", type=int, default=5)
    return parser.parse_args()


def subjects(suite: str, samples: int) -> Iterator[Subject]:
    """The networks of a suite, one after the other."""
    registry, store = load_registry(), default_store()
    print(f"{samples} samples in batches of {BATCH}, {torch.get_num_threads()} threads; images per second")
    for spec in load_suite(suite).workloads:
        workload = Workload.resolve(spec, registry)
        network = spiking_network(workload, trained_weights(workload, store), store)
        images, encode = workload.dataset.split("test").images, workload.dataset.encode
        inputs = [encode(images[i : i + BATCH], spec.timesteps) for i in range(0, samples, BATCH)]
        yield Subject(spec, workload, network, inputs)


def speeds(ways: Mapping[str, Callable[[], object]], *, samples: int, repetitions: int) -> dict[str, float]:
    """Samples per second of each way, timed in turns: the median over repetitions, behind a turn that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repetitions + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: samples / statistics.median(times) for name, times in seconds.items()}


def shown(speeds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
