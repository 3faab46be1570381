"""How fast each workload of a suite is recorded, beside two plain loops over the same network.

    python benchmarks/recording_speed.py [--suite quick] [--samples 1000] [--repetitions 5]

``recorded`` is what ``exitbench run`` does, operation counts included; ``uncounted`` the same without them.
``stepwise`` calls the network step by step (the first layer of constant input runs once). ``every step`` also
evaluates the first layer at every step, and ``plain`` does so in PyTorch's default memory layout, as a loop without
preparation would. All are timed in turns in this one run, with the same batch; the figure is the median.
"""

import copy
from collections.abc import Callable

import torch
from in_turns import Subject, parse, shown, speeds, subjects

from bench_core.recording import Recording, record_part
from bench_core.snn import SpikingNetwork


def stepwise(network: SpikingNetwork, inputs: torch.Tensor, timesteps: int, *, every_step: bool) -> None:
    network.reset()
    for t in range(timesteps):
        if every_step:
            network._current = None
        network.step(inputs if network.constant_input else inputs[t])


def ways_of(subject: Subject, samples: int) -> dict[str, Callable[[], object]]:
    """Every way of running a network that is timed."""
    network, dataset, T = subject.network, subject.workload.dataset, subject.spec.timesteps
    split, positions = dataset.split("test"), torch.arange(samples)
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)

    def run_all(one: Callable[[torch.Tensor], object]) -> None:
        with torch.inference_mode():
            for batch in subject.inputs:
                one(batch)

    ways: dict[str, Callable[[], object]] = {
        "recorded": lambda: record_part(Recording(network, dataset, split, T), positions),
        "uncounted": lambda: run_all(lambda x: network.run(x, T)),
        "stepwise": lambda: run_all(lambda x: stepwise(network, x, T, every_step=False)),
    }
    if network.constant_input:
        ways["every step"] = lambda: run_all(lambda x: stepwise(network, x, T, every_step=True))
    ways["plain"] = lambda: run_all(lambda x: stepwise(plain, x, T, every_step=True))
    for fold in (1, 2, 4, 8):
        if fold < T:
            ways[f"fold {fold}"] = lambda fold=fold: run_all(lambda x: network.run(x, T, fold=fold))
    return ways


def main() -> None:
    arguments = parse(__doc__.splitlines()[0], samples=1000)
    for subject in subjects(arguments.suite, arguments.samples):
        ways = ways_of(subject, arguments.samples)
        found = speeds(ways, samples=arguments.samples, repetitions=arguments.repetitions)
        print(f"{subject.spec.name} (T = {subject.spec.timesteps}): {shown(found)}")


if __name__ == "__main__":
    main()
