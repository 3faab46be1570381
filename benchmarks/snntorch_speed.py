"""How fast a network is recorded, beside the same network built in snnTorch and run step by step, in this one process.

    pip install snntorch==1.0.0 && python benchmarks/snntorch_speed.py [--samples 2000] [--repetitions 5]

The workloads are those of the suite whose neurons snnTorch has (leaky, hard reset). ``recorded`` is what ``exitbench
run`` does, operation counts included; ``uncounted`` the same without them. Predictions of both are compared first.
"""

from collections.abc import Callable

import snntorch
import torch
from in_turns import Subject, parse, shown, speeds, subjects
from torch import nn

from bench_core.recording.record import FOLD, Recording, record_part
from bench_core.snn import AveragePool, Flatten, SpikingNetwork, SpikingNeuron, Synapse


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
    arguments = parse(__doc__.splitlines()[0], samples=2000)
    for subject in subjects(arguments.suite, arguments.samples):
        if subject.spec.conversion is not None:
            continue  # snnTorch's neurons have no spikes that carry a threshold
        compare(subject, arguments.samples, arguments.repetitions)


def compare(subject: Subject, samples: int, repetitions: int) -> None:
    """Predictions and speeds of both, as a line."""
    network, dataset, T, inputs = subject.network, subject.workload.dataset, subject.spec.timesteps, subject.inputs
    split, positions, model = dataset.split("test"), torch.arange(samples), in_snntorch(network)

    def ours() -> list[torch.Tensor]:
        return [network.run(x, T, fold=FOLD) for x in inputs]

    def theirs() -> list[torch.Tensor]:
        return [run_snntorch(model, x, T, constant_input=network.constant_input) for x in inputs]

    ways: dict[str, Callable[[], object]] = {
        "recorded": lambda: record_part(Recording(network, dataset, split, T), positions),
        "uncounted": ours,
        "snntorch": theirs,
    }
    with torch.no_grad():
        predictions = [torch.cat([logits.sum(0).argmax(1) for logits in run()]) for run in (ours, theirs)]
        found = speeds(ways, samples=samples, repetitions=repetitions)
    same = (predictions[0] == predictions[1]).float().mean()
    ratio = found["recorded"] / found["snntorch"]
    print(
        f"{subject.spec.name} (T = {T}): {shown(found)}; recorded / snntorch {ratio:.2f}; "
        f"same predictions {100 * same:.2f} %"
    )


if __name__ == "__main__":
    main()
