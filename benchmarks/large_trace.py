"""What the offline part costs on a large trace: time of each score strategy, memory, and how time grows.

    python benchmarks/large_trace.py [--samples 50000] [--timesteps 8] [--classes 1000] [--folder FOLDER]

A random trace of N x T x K float32 logits is written once and memory-mapped. ``plain`` is one float32 pass in chunks:
cumulative sum, softmax, maximum. Each strategy is fitted, its scores computed, and every distinct threshold swept;
what all of them share, the predictions, is computed once and timed on its own. Memory is the largest anonymous
resident memory seen, which leaves the mapped file out. All times are from this one run; the growth is over N / 4,
N / 2 and N.
"""

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from bench_core import Calibration, Trace, load_registry, load_trace, save_trace
from bench_core.exits import ScoreFamily
from bench_core.replay import score_table
from bench_core.sweep import distinct_thresholds, sort_scores

STRATEGIES = ("seenn-i", "dt-snn", "dynamic-confidence", "topk-cutoff", "margin", "spikecp")


def write_trace(path: Path, samples: int, timesteps: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    logits = torch.empty(samples, timesteps, classes)
    for part in logits.split(1000):
        part.normal_(generator=generator)
    logits[torch.arange(samples), :, labels] += torch.linspace(1.0, 3.0, timesteps)
    save_trace(Trace(logits, labels, torch.arange(samples)), path)


def plain(trace: Trace, chunk: int) -> None:
    for start in range(0, len(trace), chunk):
        torch.softmax(trace.logits[start : start + chunk].cumsum(1), 2).max(2)


def run_strategy(name: str, trace: Trace) -> None:
    family = load_registry().strategies[name].fit(Calibration(trace))
    assert isinstance(family, ScoreFamily)
    scores = sort_scores(score_table(family.strategy, trace), trace)
    scores.curve(distinct_thresholds(scores))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def anonymous_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) / 1024


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Yields a list that holds the largest anonymous memory so far, MiB."""
    peak, done = [anonymous_mib()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--timesteps", type=int, default=8)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where the trace is written; default a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "large.safetensors"
        pid = os.fork()  # a process of its own, so that its memory is not counted
        if pid == 0:
            write_trace(path, arguments.samples, arguments.timesteps, arguments.classes)
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            raise SystemExit("the trace could not be written")
        shape = f"{arguments.samples} x {arguments.timesteps} x {arguments.classes}"
        print(f"{shape}, {path.stat().st_size / 1e9:.2f} GB, {torch.get_num_threads()} threads")
        with peak_memory() as peak:
            print(f"{'load and validate':20s} {seconds(lambda: load_trace(path)):7.2f} s")
            measure(load_trace(path), arguments.samples)
        print(f"largest anonymous memory {peak[0]:.0f} MiB")


def measure(trace: Trace, samples: int) -> None:
    chunk = max(1, 500_000 // trace.classes)
    plain(trace, chunk)
    one_pass = min(seconds(lambda: plain(trace, chunk)) for _ in range(3))
    print(f"{'plain float32 pass':20s} {one_pass:7.2f} s")
    print(f"{'predictions, shared':20s} {seconds(lambda: trace.correct):7.2f} s")
    sizes = [samples // 4, samples // 2, samples]
    for name in STRATEGIES:
        times = []
        for size in sizes:
            part = Trace(trace.logits[:size], trace.labels[:size], trace.sample_ids[:size])
            part.__dict__["predictions"] = trace.predictions[:size]  # shared, timed above
            times.append(min(seconds(lambda part=part: run_strategy(name, part)) for _ in range(2)))  # noqa: B023
        exponent = np.polyfit(np.log(sizes), np.log(times), 1)[0]
        shown = ", ".join(f"{t:.2f}" for t in times)
        print(f"{name:20s} {times[-1]:7.2f} s, {times[-1] / one_pass:4.1f} x plain; {shown} s: time ~ N^{exponent:.2f}")


if __name__ == "__main__":
    main()
