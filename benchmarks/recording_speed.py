"""How fast each workload of a suite is recorded, beside two plain loops over the same network.

    python benchmarks/recording_speed.py [--suite quick] [--samples 1000] [--repetitions 5]

``recorded`` is what ``exitbench run`` does, operation counts included; ``uncounted`` the same without them.
``stepwise`` calls the network step by step (the first layer of constant input runs once). ``every step`` also
evaluates the first layer at every step, and ``plain`` does so in PyTorch's default memory layout, as a loop without
preparation would. All are timed in turns in this one run, with the same batch; the figure is the median.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch

from bench_core import load_registry, load_suite
from bench_core.data import Dataset, ImageSplit
from bench_core.recording import BATCH, record_part
from bench_core.snn import SpikingNetwork
from bench_core.stages import Workload, spiking_network, trained_weights
from bench_core.store import Store, default_root


def batches(dataset: Dataset, split: ImageSplit, samples: int, timesteps: int) -> list[torch.Tensor]:
    return [dataset.encode(split.images[i : i + BATCH], timesteps) for i in range(0, samples, BATCH)]


def stepwise(network: SpikingNetwork, inputs: torch.Tensor, timesteps: int, *, every_step: bool) -> None:
    network.reset()
    for t in range(timesteps):
        if every_step:
            network._current = None
        network.step(inputs if network.constant_input else inputs[t])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    registry, store = load_registry(), Store(default_root())
    print(f"{arguments.samples} samples in batches of {BATCH}, {torch.get_num_threads()} threads; images per second")
    for spec in load_suite(arguments.suite).workloads:
        workload = Workload.resolve(spec, registry)
        network = spiking_network(workload, trained_weights(workload, store))
        dataset, split, T = workload.dataset, workload.dataset.split("test"), spec.timesteps
        inputs = batches(dataset, split, arguments.samples, T)
        positions = torch.arange(arguments.samples)

        def run_all(one: Callable[[torch.Tensor], object], inputs: list[torch.Tensor] = inputs) -> None:
            with torch.inference_mode():
                for batch in inputs:
                    one(batch)

        ways: dict[str, Callable[[], object]] = {
            "recorded": lambda: record_part(network, dataset, split, positions, T),  # noqa: B023  # called in this turn
            "uncounted": lambda: run_all(lambda x: network.run(x, T)),  # noqa: B023
            "stepwise": lambda: run_all(lambda x: stepwise(network, x, T, every_step=False)),  # noqa: B023
        }
        if network.constant_input:
            ways["every step"] = lambda: run_all(lambda x: stepwise(network, x, T, every_step=True))  # noqa: B023
        plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
        ways["plain"] = lambda: run_all(lambda x: stepwise(plain, x, T, every_step=True))  # noqa: B023
        for fold in sorted({1, 2, 4, 8, T}):
            if fold < T:
                ways[f"fold {fold}"] = lambda fold=fold: run_all(lambda x: network.run(x, T, fold=fold))  # noqa: B023
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(arguments.repetitions + 1):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                if turn:  # the first turn warms up
                    seconds[name].append(time.perf_counter() - start)
        speeds = {name: arguments.samples / statistics.median(times) for name, times in seconds.items()}
        print(f"{spec.name} (T = {T}): " + ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items()))


if __name__ == "__main__":
    main()
