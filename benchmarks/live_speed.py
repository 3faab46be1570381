"""What stopping early really saves: measured speed-up over the one that step times and exit timesteps promise.

    python benchmarks/live_speed.py [WORKLOAD ...] [--suite quick] [--strategy seenn-i]
        [--operating-point iso-accuracy:0.5] [--samples 512] [--batch 64] [--repetitions 7] [--threads 1]

At batch 1 and at ``--batch`` with refill, in one run and in random order:

- ``plain`` steps the bare network through all T, no engine, no controller; it gives the time s_t of each step.
- ``static`` is T by the live engine; ``live`` stops early, controller included.
- ``asked`` asks for the policy's score at every step and never stops: what engine and controller cost for nothing.
- ``folded`` computes all T at once, which needs the whole input beforehand.

The expected speed-up is sum_t s_t over the mean of sum_{t <= exit} s_t. ``kept`` is the measured one (static / live)
over it: goal 0.9 at batch 1, 0.8 with refill; ``of plain`` is the same with the bare loop in static T's place.
``engine`` is static / plain, what an engine that could compact costs where nothing exits: goal at most 1.05 at
``--batch``. ``asked`` is over ``plain`` too, with the cost of the decisions. Ratios are medians over repetitions.
"""

import argparse
import random
import time
from collections.abc import Callable

import numpy as np
import torch
from tabulate import tabulate

from bench_core import load_registry, load_suite
from bench_core.exits.strategy import ExitPolicy, NeverExit, ScorePolicy
from bench_core.live.engine import LiveSamples, run_live
from bench_core.run.artifacts import Workload
from bench_core.store.local import default_store
from bench_core.workflows.verify_live import Subject, prepare


def never_stopping(policy: ExitPolicy) -> ExitPolicy:
    """The same score, asked as often as can be."""
    return ScorePolicy(policy.strategy, float("inf")) if isinstance(policy, ScorePolicy) else policy


def plain(subject: Subject, batches: list[LiveSamples]) -> np.ndarray:
    """Seconds of each step, summed over batches, [T]; the first with the reset that has to come before it."""
    seconds = np.zeros(batches[0].timesteps)
    with torch.inference_mode():
        for batch in batches:
            last = time.perf_counter()
            subject.network.reset()
            for t in range(batch.timesteps):
                subject.network.step(batch.inputs if batch.constant_input else batch.inputs[t])
                last, before = time.perf_counter(), last
                seconds[t] += last - before
    return seconds


def folded(subject: Subject, batches: list[LiveSamples]) -> None:
    with torch.inference_mode():
        for batch in batches:
            subject.network.run(batch.inputs, batch.timesteps)


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(subject: Subject, samples: LiveSamples, batch: int, repetitions: int) -> list[str]:
    """One line of the table."""
    network, policy = subject.network, subject.policy
    batches = [samples.at(part) for part in torch.split(torch.arange(len(samples)), batch)]
    units = batches if batch == 1 else [samples]
    policies = {"static": NeverExit(), "live": policy, "asked": never_stopping(policy)}

    def engine(name: str) -> None:
        for unit in units:
            run_live(network, unit, policies[name], batch=batch, refill=name == "live")

    ways: dict[str, Callable[[], object]] = {name: lambda name=name: engine(name) for name in policies}  # type: ignore[misc]
    ways["folded"] = lambda: folded(subject, batches)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    steps: list[np.ndarray] = []
    order = random.Random(0)
    for turn in range(repetitions + 1):
        names = [*ways, "plain"]
        order.shuffle(names)
        for name in names:
            if name == "plain":
                found = plain(subject, batches)
                steps += [found] if turn else []  # the first turn warms up
            else:
                found = seconds_of(ways[name])
                seconds[name] += [found] if turn else []
    exits = run_live(network, samples, policy, batch=batch, refill=True).exit_timesteps
    step = np.median(steps, axis=0)
    expected = step.sum() / step.cumsum()[exits.numpy() - 1].mean()
    live, static, asked, whole = (np.array(seconds[name]) for name in ("live", "static", "asked", "folded"))
    bare = np.array([found.sum() for found in steps])
    kept = static / live / expected
    low, high = np.quantile(kept, [0.25, 0.75])
    per_sample = 1e3 / len(samples)
    return [
        subject.workload.spec.name,
        f"{batch}",
        f"{samples.timesteps / float(exits.double().mean()):.2f}x",
        f"{expected:.2f}x",
        f"{np.median(static / live):.2f}x",
        f"{np.median(kept):.3f} ({high - low:.3f})",
        f"{np.median(bare / live) / expected:.3f}",
        f"{np.median(static / bare):.3f}",
        f"{np.median(asked / bare):.3f}",
        *(f"{np.median(values) * per_sample:.3f}" for values in (bare, static, live, whole)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload", nargs="*")
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--strategy", default="seenn-i")
    parser.add_argument("--operating-point", default="iso-accuracy:0.5")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    registry, store = load_registry(), default_store()
    torch.set_num_threads(arguments.threads)
    rows = []
    for spec in load_suite(arguments.suite).workloads:
        if arguments.workload and spec.name not in arguments.workload:
            continue
        workload = Workload.resolve(spec, registry)
        strategy = registry.find("strategies", arguments.strategy)
        subject = prepare(workload, strategy, {}, arguments.operating_point, store)
        split = workload.dataset.split("test")
        for batch, count in ((1, min(100, arguments.samples)), (arguments.batch, arguments.samples)):
            samples = LiveSamples.of_split(workload.dataset, split, torch.arange(count), spec.timesteps)
            rows.append(measure(subject, samples, batch, arguments.repetitions))
    times = [f"{name} ms" for name in ("plain", "static", "live", "folded")]
    heads = ["workload", "batch", "ideal", "expected", "measured", "kept (iqr)", "of plain", "engine", "asked", *times]
    print(tabulate(rows, heads, disable_numparse=True))
    print(f"{arguments.strategy} at {arguments.operating_point}, {arguments.threads} threads; ms per sample")


if __name__ == "__main__":
    main()
