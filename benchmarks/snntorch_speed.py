"""How fast a network is recorded, beside the same network built in snnTorch and run step by step, in this one process.

    pip install snntorch==1.0.0 && python benchmarks/snntorch_speed.py [--samples 2000] [--repetitions 5]

The workloads are those of the suite whose neurons snnTorch has (leaky, hard reset). ``recorded`` is what ``exitbench
run`` does, operation counts included; ``uncounted`` the same without them. Predictions of both are compared first.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import snntorch
import torch
from torch import nn

from bench_core import load_registry, load_suite
from bench_core.recording import BATCH, FOLD, record_part
from bench_core.snn import AveragePool, Flatten, SpikingNetwork, SpikingNeuron, Synapse
from bench_core.stages import Workload, spiking_network, trained_weights
from bench_core.store import Store, default_root


def in_snntorch(network: SpikingNetwork) -> nn.Module:
    """The same layers with snnTorch's neurons."""
    layers: list[nn.Module] = []
    for layer in network.layers:
        if isinstance(layer, Synapse):
            layers.append(layer.operation)
        elif isinstance(layer, AveragePool):
            layers.append(nn.AvgPool2d(layer.size))
        elif isinstance(layer, Flatten):
            layers.append(nn.Flatten())
        else:
            assert isinstance(layer, SpikingNeuron) and layer.reset_mode == "hard" and layer.amplitude == 1.0
            layers.append(
                snntorch.Leaky(layer.decay, threshold=layer.threshold, reset_mechanism="zero", init_hidden=True)
            )
    return nn.Sequential(*layers).eval()


def run_snntorch(model: nn.Module, inputs: torch.Tensor, timesteps: int, *, constant_input: bool) -> torch.Tensor:
    for layer in model.modules():
        if isinstance(layer, snntorch.Leaky):
            layer.reset_mem()
    return torch.stack([model(inputs if constant_input else inputs[t]) for t in range(timesteps)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    registry, store = load_registry(), Store(default_root())
    print(f"{arguments.samples} samples in batches of {BATCH}, {torch.get_num_threads()} threads; images per second")
    for spec in load_suite(arguments.suite).workloads:
        if spec.conversion is not None:
            continue  # snnTorch's neurons have no spikes that carry a threshold
        workload = Workload.resolve(spec, registry)
        network = spiking_network(workload, trained_weights(workload, store))
        model = in_snntorch(network)
        dataset, split, T = workload.dataset, workload.dataset.split("test"), spec.timesteps
        inputs = [dataset.encode(split.images[i : i + BATCH], T) for i in range(0, arguments.samples, BATCH)]
        positions = torch.arange(arguments.samples)

        def theirs(batches: list[torch.Tensor] = inputs, T: int = T, model: nn.Module = model) -> list[torch.Tensor]:
            constant = network.constant_input  # noqa: B023  # called in this turn
            return [run_snntorch(model, x, T, constant_input=constant) for x in batches]

        ways: dict[str, Callable[[], object]] = {
            "recorded": lambda: record_part(network, dataset, split, positions, T),  # noqa: B023
            "uncounted": lambda: [network.run(x, T, fold=FOLD) for x in inputs],  # noqa: B023
            "snntorch": theirs,
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        with torch.no_grad():
            ours = torch.cat([network.run(x, T).sum(0).argmax(1) for x in inputs])
            same = (torch.cat([x.sum(0).argmax(1) for x in theirs()]) == ours).float().mean()
            for turn in range(arguments.repetitions + 1):
                for name, way in ways.items():
                    start = time.perf_counter()
                    way()
                    if turn:  # the first turn warms up
                        seconds[name].append(time.perf_counter() - start)
        speeds = {name: arguments.samples / statistics.median(times) for name, times in seconds.items()}
        shown = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
        ratio = speeds["recorded"] / speeds["snntorch"]
        print(f"{spec.name} (T = {T}): {shown}; recorded / snntorch {ratio:.2f}; same predictions {100 * same:.2f} %")


if __name__ == "__main__":
    main()
