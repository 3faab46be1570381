"""How time and memory grow with the number of samples and of strategies, stage by stage.

    python benchmarks/scaling.py [--samples 10000 100000] [--strategies 5 50] [--workers 1 2] [--resamples 1000]

Random traces of N x T 8 x K 10; half of a trace is what strategies are fitted and chosen on, cut into halves again, the
other half is the test split. Every measurement is a process of its own: processor seconds per stage and the largest
resident memory so far (mapped files included). ``load`` reads and validates; ``fit`` fits all strategies; ``sweep``
computes all score tables and prepares every distinct threshold; ``choose`` thins each family and picks an operating
point; ``replay`` finds where the chosen policies stop the test samples; ``statistics`` is the bootstrap and the sign
flips of all of them. With two workers each process takes half the strategies and no statistics are made. ``whole`` is
wall clock and includes the start of Python. The exponent is that of time ~ N^e between the smallest and the largest N.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench_core import Calibration, ExitStrategy, Trace, load_registry, load_trace, save_trace
from bench_core.replay.family import FamilyOnTrace, candidates
from bench_core.scoring.operating_points import OperatingPoint, choose
from bench_core.scoring.scores import Recorded, halve, policy_samples
from bench_core.scoring.statistics import bootstrap_means, sign_flip_sums

TIMESTEPS, CLASSES = 8, 10
STAGES = ("load", "fit", "sweep", "choose", "replay", "statistics")


def write_trace(path: Path, samples: int) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    logits = torch.randn(samples, TIMESTEPS, CLASSES, generator=generator)
    logits[torch.arange(samples), :, labels] += torch.linspace(0.5, 2.0, TIMESTEPS)
    save_trace(Trace(logits, labels, torch.arange(samples)), path)


def entrants(count: int) -> list[ExitStrategy]:
    """So many score strategies: the shipped ones with other and other knobs."""
    shipped = load_registry().strategies
    found: list[ExitStrategy] = []
    for number in range(-(-count // 5)):
        found += [
            shipped["seenn-i"].with_parameters({"alpha": 1.0 + number}),
            shipped["dt-snn"].with_parameters({"accumulate": ("sum", "mean")[number % 2]}),
            shipped["margin"].with_parameters({"accumulate": ("sum", "mean")[number % 2]}),
            shipped["topk-cutoff"],
            shipped["dynamic-confidence"].with_parameters({"alpha": 2.0 + number}),
        ]
    return found[:count]


def measure(path: Path, strategies: list[ExitStrategy], resamples: int) -> dict[str, tuple[float, float]]:
    """Seconds and largest memory so far, MiB, of each stage."""
    spent = dict.fromkeys(STAGES, 0.0)
    memory = dict.fromkeys(STAGES, 0.0)
    clock = time.process_time()

    def done(stage: str) -> None:
        nonlocal clock
        spent[stage] += time.process_time() - clock
        memory[stage] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        clock = time.process_time()

    whole = load_trace(path)
    half = len(whole) // 2
    fit, select = halve(Recorded(whole.select(torch.arange(half))))
    test = whole.select(torch.arange(half, len(whole)))
    done("load")
    right, exits = [], []
    for strategy in strategies:
        family = strategy.fit(Calibration(fit.trace))
        done("fit")
        on_fit, on_select, on_test = (FamilyOnTrace(family, trace) for trace in (fit.trace, select.trace, test))
        for side in (on_fit, on_select, on_test):
            side.curve([0.5])
        done("sweep")
        values = candidates(on_fit)
        sums, correct = on_select.curve(values)
        chosen = choose(
            OperatingPoint.parse("budget:0.5"),
            sums,
            correct,
            static_correct=int(select.trace.correct[:, -1].sum()),
            samples=len(select.trace),
            timesteps=TIMESTEPS,
            harmed=on_select.harmed(values),
        )
        assert chosen is not None
        done("choose")
        did = policy_samples(test, on_test.outcome(values[chosen]))
        right.append(did.right)
        exits.append(did.exit_timesteps)
        done("replay")
    if resamples:
        columns = torch.stack([torch.from_numpy(column) for column in (*right, *exits)], 1).numpy()
        bootstrap_means(columns, resamples=resamples, seed=0)
        sign_flip_sums(columns[:, len(right) :], flips=resamples, seed=0)
        done("statistics")
    return {stage: (spent[stage], memory[stage]) for stage in STAGES}


def in_processes(path: Path, strategies: int, workers: int, resamples: int) -> dict[str, tuple[float, float]]:
    """The slowest and the largest of all workers; the whole's wall clock, starting Python included, as ``whole``."""
    start = time.perf_counter()
    shares = [strategies // workers + (number < strategies % workers) for number in range(workers)]
    command = [sys.executable, __file__, "--one", str(path), "--resamples", str(resamples if workers == 1 else 0)]
    running = [
        subprocess.Popen([*command, "--strategies", str(share)], stdout=subprocess.PIPE, text=True) for share in shares
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("a worker failed")
    results = [json.loads(output) for output in outputs]
    found = {stage: (max(r[stage][0] for r in results), max(r[stage][1] for r in results)) for stage in STAGES}
    return {**found, "whole": (time.perf_counter() - start, sum(max(m for _, m in r.values()) for r in results))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--strategies", type=int, nargs="+", default=[5, 50])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        print(json.dumps(measure(arguments.one, entrants(arguments.strategies[0]), arguments.resamples)))
        return
    print(f"T = {TIMESTEPS}, K = {CLASSES}, one thread each, {arguments.resamples} resamples; seconds (MiB so far)")
    print("| samples | strategies | workers | " + " | ".join(STAGES) + " | whole |")
    print("|---" * (len(STAGES) + 4) + "|")
    found: dict[tuple[int, int, int], dict[str, tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for samples in arguments.samples:
            path = Path(folder) / f"{samples}.safetensors"
            write_trace(path, samples)
            for strategies in arguments.strategies:
                for workers in arguments.workers:
                    one = in_processes(path, strategies, workers, arguments.resamples)
                    found[samples, strategies, workers] = one
                    cells = [f"{seconds:.2f} ({mib:.0f})" if seconds else "" for seconds, mib in one.values()]
                    print(f"| {samples:,} | {strategies} | {workers} | " + " | ".join(cells) + " |", flush=True)
            path.unlink()
    small, large = min(arguments.samples), max(arguments.samples)
    for strategies in arguments.strategies if small < large else ():
        first, last = found[small, strategies, 1], found[large, strategies, 1]
        exponents = [math.log(last[name][0] / first[name][0]) / math.log(large / small) for name in (*STAGES, "whole")]
        print(f"| exponent of N | {strategies} | 1 | " + " | ".join(f"{e:.2f}" for e in exponents) + " |")


if __name__ == "__main__":
    main()
