"""How fast each workload of a suite is recorded, beside plain loops over the same network.

    python benchmarks/recording_speed.py [--suite quick] [--samples 1000] [--repetitions 5]

``recorded`` is what ``exitbench run`` does, from images to a trace, operation counts included; ``uncounted`` the same
without counts. The plain loops know nothing of this package's layers: they step through all T with the same weights
and equations as papers' public code writes them, in PyTorch's default memory layout, from images to logits too.
``plain`` evaluates the first layer once where the input is constant, ``every step`` at every step. ``own layers`` does
that too, in the default layout and from images, but with this package's layers, so that it gains from them as well.

``stepwise`` calls the network that is recorded step by step, from images too, and counts nothing: what ``recorded``
lacks to it is what counting costs. ``fold F`` computes F timesteps together, with inputs at hand. All are timed in
turns in this one run, with the same batch; speeds are medians over repetitions, ratios those of speeds.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from in_turns import Subject, parse, speeds, subjects
from tabulate import tabulate
from torch import nn

from bench_core.recording.record import BATCH, Recording, record_part
from bench_core.snn import AveragePool, Flatten, SpikingNeuron, Synapse

FOLDS = (1, 2, 4, 8)
SHOWN = ("recorded", "uncounted", "plain", "every step", "own layers", "stepwise")
RIVALS = ("plain", "every step", "own layers", "stepwise", "uncounted")


def plain(layers: list[nn.Module], inputs: torch.Tensor, timesteps: int, *, constant: bool, once: bool) -> torch.Tensor:
    """o_t [T, B, K] by a loop over timesteps and layers."""
    potentials: dict[nn.Module, torch.Tensor | float] = {}
    first: torch.Tensor | None = None
    logits = []
    for t in range(timesteps):
        x = inputs if constant else inputs[t]
        for layer in layers:
            if isinstance(layer, Synapse):
                if layer is layers[0] and once and constant:
                    first = layer.operation(x) if first is None else first
                    x = first
                else:
                    x = layer.operation(x)
            elif isinstance(layer, SpikingNeuron):
                u = potentials.get(layer, layer.initial)
                u = x + (u if layer.decay == 1.0 else u * layer.decay)
                spike = (u >= layer.threshold).to(x.dtype)
                potentials[layer] = u * (1 - spike) if layer.reset_mode == "hard" else u - spike * layer.threshold
                x = spike if layer.amplitude == 1.0 else spike * layer.amplitude
            elif isinstance(layer, AveragePool):
                x = F.avg_pool2d(x, layer.size)
            elif isinstance(layer, Flatten):
                x = x.flatten(1)
            else:
                raise SystemExit(f"no plain loop is written for layer {type(layer).__name__}")
        logits.append(x)
    return torch.stack(logits)


def check(subject: Subject) -> None:
    """Raises SystemExit where the plain loop isn't the same network: in float64 no spike should differ."""
    network, T = copy.deepcopy(subject.network).double(), subject.spec.timesteps
    inputs = subject.inputs[0].double()
    with torch.inference_mode():
        expected = network.run(inputs, T)
        found = plain(list(network.layers), inputs, T, constant=network.constant_input, once=True)
    if not torch.allclose(found, expected, rtol=0, atol=1e-9):
        raise SystemExit(f"{subject.spec.name}: the plain loop is another network")


def ways_of(subject: Subject, samples: int) -> dict[str, Callable[[], object]]:
    """Every way of running a network that is timed."""
    network, dataset, T = subject.network, subject.workload.dataset, subject.spec.timesteps
    split, positions = dataset.split("test"), torch.arange(samples)
    check(subject)
    contiguous = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    layers = list(contiguous.layers)

    def from_inputs(one: Callable[[torch.Tensor], object]) -> None:
        with torch.inference_mode():
            for batch in subject.inputs:
                one(batch)

    def from_images(one: Callable[[torch.Tensor], object]) -> None:
        with torch.inference_mode():
            for chosen in torch.split(positions, BATCH):
                one(dataset.encode(split.images[chosen], T))

    def loop(once: bool) -> None:
        from_images(lambda x: plain(layers, x, T, constant=network.constant_input, once=once))

    def own_layers(inputs: torch.Tensor) -> None:
        contiguous.reset()
        for t in range(T):
            contiguous._current = None
            contiguous.step(inputs if network.constant_input else inputs[t])

    def stepwise(inputs: torch.Tensor) -> None:
        network.reset()
        for t in range(T):
            network.step(inputs if network.constant_input else inputs[t])

    ways: dict[str, Callable[[], object]] = {
        "recorded": lambda: record_part(Recording(network, dataset, split, T), positions),
        "uncounted": lambda: from_images(lambda x: network.run(x, T, fold=1)),
        "plain": lambda: loop(True),
        "every step": lambda: loop(False),
        "own layers": lambda: from_images(own_layers),
        "stepwise": lambda: from_images(stepwise),
    }
    for fold in FOLDS:
        if fold < T:
            ways[f"fold {fold}"] = lambda fold=fold: from_inputs(lambda x: network.run(x, T, fold=fold))
    return ways


def main() -> None:
    arguments = parse(__doc__.splitlines()[0], samples=1000)
    rows = []
    for subject in subjects(arguments.suite, arguments.samples):
        ways = ways_of(subject, arguments.samples)
        found = speeds(ways, samples=arguments.samples, repetitions=arguments.repetitions)
        ratios = [f"{found['recorded'] / found[name]:.2f}" for name in RIVALS]
        names = [*SHOWN, *(f"fold {fold}" for fold in FOLDS)]
        rows.append([subject.spec.name, *ratios, *(f"{found[name]:.0f}" if name in found else "" for name in names)])
    heads = ["workload", *(f"/ {name}" for name in RIVALS), *SHOWN, *(f"fold {fold}" for fold in FOLDS)]
    print(tabulate(rows, heads, disable_numparse=True))


if __name__ == "__main__":
    main()
