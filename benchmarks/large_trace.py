"""What the offline part costs on a large trace: time of score strategies alone and together, memory, and growth.

    python benchmarks/large_trace.py [--samples 50000] [--timesteps 8] [--classes 1000] [--shards 1] [--folder FOLDER]

A random trace of N x T x K float32 logits is written once and memory-mapped. ``plain`` is one float32 pass in chunks:
cumulative sum, softmax, maximum; of several chunk sizes the fastest counts. Strategies are run in two ways, first each
alone, then all in one read:

- ``board`` is what a board does with so many samples. A third of them are for calibration, as in the shipped suites:
  strategies are fitted on half of these, thresholds compared on both halves, a policy chosen for every operating point
  of the suite ``quick``, and the chosen ones and the curve of all thresholds replayed on the other two thirds.
- ``fit``, ``scores`` and ``sweep`` are the same of all samples each: fitted on every sample, every sample scored, every
  distinct threshold swept. No board does that, since nothing is scored on what it was fitted on; it says what each
  part costs.

``a share`` is the time of all together divided by their number: what one of so many costs on average, not what one
would cost alone. The predictions are computed once for all in either case, and timed on their own. Memory is the
largest anonymous resident memory seen meanwhile, which leaves the mapped file out; PyTorch alone takes the first
figure. All times are processor time of this one run, which a busy machine disturbs less, the better of two; the growth
is that of a board over N / 4, N / 2 and N.
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

from bench_core import Trace, load_registry, load_suite, load_trace, save_trace, save_trace_shards
from bench_core.exits.strategy import ScoreFamily, observe
from bench_core.replay.controller import score_tables
from bench_core.replay.sweep import distinct_thresholds, sort_scores
from bench_core.scoring.operating_points import OperatingPoint
from bench_core.scoring.scores import Contest, Recorded, fit_family, halve, score_together

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


def run_board(names: Sequence[str], trace: Trace) -> float:
    """Seconds of everything that a board does with score strategies on a trace of calibration and test samples."""
    strategies = [load_registry().strategies[name] for name in names]
    calibration = len(trace) // 3
    halves = halve(Recorded(part(trace, torch.arange(calibration))))
    contest = Contest(*halves, Recorded(part(trace, torch.arange(calibration, len(trace)))))
    for recorded in (contest.fit, contest.select):
        known = trace.predictions[torch.isin(trace.sample_ids, recorded.trace.sample_ids)]
        recorded.trace.__dict__["predictions"] = known
    points = [OperatingPoint.parse(point) for point in load_suite("quick").operating_points]
    return seconds(lambda: [scores() for scores in score_together(strategies, contest, points)])


def run_parts(names: Sequence[str], trace: Trace) -> list[float]:
    """Seconds of fit, score tables and sweep of strategies that share what reads they can, each on all samples."""
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
    return [later - earlier for earlier, later in itertools.pairwise(times)]


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
    """Time some strategies in shared reads, boards at three sizes, and print what that comes to."""
    sizes = [len(trace) // 4, len(trace) // 2, len(trace)]
    with peak_memory() as peak:
        times = [min(run_board(names, part(trace, torch.arange(size))) for _ in range(2)) for size in sizes]
        parts = min((run_parts(names, trace) for _ in range(2)), key=sum)
    exponent = np.polyfit(np.log(sizes), np.log(times), 1)[0]
    fit, score, sweep = (time / one_pass for time in parts)
    share = f", a share {times[-1] / one_pass / len(names):.2f} x" if len(names) > 1 else ""
    print(
        f"{title:20s} board {', '.join(f'{t:.2f}' for t in times)} s, {times[-1] / one_pass:4.2f} x plain{share}, "
        f"~ N^{exponent:.2f}; all samples: fit {fit:.2f}, scores {score:.2f}, sweep {sweep:.2f} x; {peak[0]:4.0f} MiB",
        flush=True,
    )


def part(trace: Trace, positions: torch.Tensor) -> Trace:
    """Some of the samples, with the predictions that were shared and timed before."""
    selected = trace.select(positions)
    selected.__dict__["predictions"] = trace.predictions[positions]
    return selected


if __name__ == "__main__":
    main()
