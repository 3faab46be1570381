"""What the offline part costs on a large trace: time of score strategies alone and together, memory, and growth.

    python benchmarks/large_trace.py [--samples 50000] [--timesteps 8] [--classes 1000] [--shards 1] [--folder FOLDER]

A random trace of N x T x K float32 logits is written once and memory-mapped. ``plain`` is one float32 pass in chunks:
cumulative sum, softmax, maximum; of several chunk sizes the fastest counts. Each strategy is fitted, its scores
computed, and every distinct threshold swept, first alone, then all in one read as a board does it: what their fits
observe comes from one read, what they learn beside that from a read each, all scores from one more. ``a share`` is the
time of all together divided by their number: what one of so many costs on average, not what one would cost alone.
The predictions are computed once for all in either case, and timed on their own. Memory is the largest anonymous
resident memory seen meanwhile, which leaves the mapped file out; PyTorch alone takes the first figure. All times are
processor time of this one run, which a busy machine disturbs less, the better of two; the growth is over N / 4, N / 2
and N.
"""

import argparse
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from bench_core import Trace, load_registry, load_trace, save_trace, save_trace_shards
from bench_core.exits import ScoreFamily, observe
from bench_core.replay import score_tables
from bench_core.scoring import Recorded, fit_family
from bench_core.sweep import distinct_thresholds, sort_scores

PLAIN_CHUNKS = (8, 32, 128, 500)  # thousands of logits of a timestep
STRATEGIES = ("seenn-i", "dt-snn", "dynamic-confidence", "topk-cutoff", "margin", "spikecp")


def write_trace(path: Path, samples: int, timesteps: int, classes: int, shards: int = 1) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    logits = torch.empty(samples, timesteps, classes)
    for part in logits.split(1000):
        part.normal_(generator=generator)
    logits[torch.arange(samples), :, labels] += torch.linspace(1.0, 3.0, timesteps)
    trace = Trace(logits, labels, torch.arange(samples))
    if shards == 1:
        save_trace(trace, path)
    else:
        save_trace_shards(trace, path, -(-samples // shards))


def plain(trace: Trace, chunk: int) -> None:
    for start in range(0, len(trace), chunk):
        torch.softmax(trace.rows.read(start, start + chunk).cumsum(1), 2).max(2)


def fastest_plain(trace: Trace) -> float:
    chunks = [max(1, thousands * 1000 // trace.classes) for thousands in PLAIN_CHUNKS]
    return min(seconds(lambda: plain(trace, chunk)) for chunk in chunks for _ in range(3))  # noqa: B023


def run_together(names: Sequence[str], trace: Trace) -> tuple[float, float, float]:
    """Seconds of fit, score tables and sweep of strategies that share what reads they can."""
    strategies = [load_registry().strategies[name] for name in names]
    times = [time.process_time()]
    observed = observe(trace, list(dict.fromkeys(wanted for strategy in strategies for wanted in strategy.observes)))
    families = [fit_family(strategy, Recorded(trace), None, observed) for strategy in strategies]
    times.append(time.process_time())
    tables = score_tables([family.strategy for family in families if isinstance(family, ScoreFamily)], trace)
    times.append(time.process_time())
    for table in tables:
        assert isinstance(table, torch.Tensor)
        scores = sort_scores(table, trace)
        scores.curve(distinct_thresholds(scores))
    times.append(time.process_time())
    fit, score, sweep = (later - earlier for earlier, later in itertools.pairwise(times))
    return fit, score, sweep


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


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
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the trace is written; default a temporary folder")
    arguments = parser.parse_args()
    print(f"{'PyTorch alone':20s} {anonymous_mib():.0f} MiB")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / f"large.{'safetensors' if arguments.shards == 1 else 'json'}"
        pid = os.fork()  # a process of its own, so that its memory is not counted
        if pid == 0:
            write_trace(path, arguments.samples, arguments.timesteps, arguments.classes, arguments.shards)
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            raise SystemExit("the trace could not be written")
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e9
        shape = f"{arguments.samples} x {arguments.timesteps} x {arguments.classes}, {arguments.shards} shard(s)"
        print(f"{shape}, {size:.2f} GB, {torch.get_num_threads()} threads")
        with peak_memory() as peak:
            start = time.process_time()
            trace = load_trace(path)
            print(f"{'load and validate':20s} {time.process_time() - start:7.2f} s")
            measure(trace)
        print(f"largest anonymous memory {peak[0]:.0f} MiB")


def measure(trace: Trace) -> None:
    one_pass = fastest_plain(trace)
    print(f"{'plain float32 pass':20s} {one_pass:7.2f} s")
    shared = seconds(lambda: trace.correct)
    print(f"{'predictions, shared':20s} {shared:7.2f} s, {shared / one_pass:4.1f} x plain")
    for name in STRATEGIES:
        show(name, [name], trace, one_pass)
    show("all together", STRATEGIES, trace, one_pass)


def show(title: str, names: Sequence[str], trace: Trace, one_pass: float) -> None:
    """Time some strategies in shared reads at three sizes, and print what that comes to."""
    sizes = [len(trace) // 4, len(trace) // 2, len(trace)]
    with peak_memory() as peak:
        runs = [min((run_together(names, first(trace, size)) for _ in range(2)), key=sum) for size in sizes]
    times = [sum(run) for run in runs]
    exponent = np.polyfit(np.log(sizes), np.log(times), 1)[0]
    fit, score, sweep = (part / one_pass for part in runs[-1])
    share = f", a share {times[-1] / one_pass / len(names):.2f} x" if len(names) > 1 else ""
    print(
        f"{title:20s} {times[-1]:7.2f} s, {times[-1] / one_pass:4.1f} x plain{share} "
        f"(fit {fit:.2f}, scores {score:.2f}, sweep {sweep:.2f}); {peak[0]:4.0f} MiB; "
        f"{', '.join(f'{t:.2f}' for t in times)} s: time ~ N^{exponent:.2f}",
        flush=True,
    )


def first(trace: Trace, samples: int) -> Trace:
    """The first so many samples, with the predictions that were shared and timed before."""
    part = trace if samples == len(trace) else trace.select(torch.arange(samples))
    part.__dict__["predictions"] = trace.predictions[:samples]
    return part


if __name__ == "__main__":
    main()
