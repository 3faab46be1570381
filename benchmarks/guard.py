"""What surrounding foreign code costs: one guard, its share of the main job, and the main job with it and without.

    python benchmarks/guard.py [--repetitions 5] [--only fashion-direct]

The share is the time that entering and leaving guards takes inside a run, over the time of that run, so that it
doesn't depend on what else the machine does. Without guards, ``foreign_code`` does nothing. The store is filled first
and scores are made again, so a turn is replay, ranks and wall clock of one workload.
"""

import argparse
import io
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path
from unittest.mock import patch

from bench_core import load_registry
from bench_core.isolation import foreign_code
from bench_core.run.run import run_suite
from bench_core.run.suite import load_suite
from bench_core.store.local import Store


@contextmanager
def nothing(*_arguments, **_options):
    """Stand in for ``foreign_code``."""
    yield


@contextmanager
def replaced(stand_in):
    """Have every module call ``stand_in`` instead of ``foreign_code``."""
    real = foreign_code.foreign_code
    users = [module for name, module in list(sys.modules.items()) if name.startswith("bench_core")]
    with ExitStack() as stack:
        for module in users:
            if getattr(module, "foreign_code", None) is real:
                stack.enter_context(patch.object(module, "foreign_code", stand_in))
        yield real


def timed(real, spent):
    """Return ``foreign_code`` that adds to ``spent`` the seconds that entering and leaving take."""

    @contextmanager
    def stand_in(*arguments, **options):
        start = time.perf_counter()
        with real(*arguments, **options):
            spent.append(time.perf_counter() - start)
            try:
                yield
            finally:
                start = time.perf_counter()
        spent.append(time.perf_counter() - start)

    return stand_in


def seconds(suite, registry, store, folder):
    """Return how long a run with scores made again takes."""
    shutil.rmtree(store.root / "scores", ignore_errors=True)
    start = time.perf_counter()
    with redirect_stderr(io.StringIO()):
        run_suite(suite, registry=registry, output=folder, store=store, remeasure=True)
    return time.perf_counter() - start


def main():
    """Print the time of one guard, and the ratio of the main job with guards to one without."""
    options = argparse.ArgumentParser()
    options.add_argument("--repetitions", type=int, default=5)
    options.add_argument("--only", default="fashion-direct")
    chosen = options.parse_args()
    registry, suite = load_registry(), load_suite("quick").only([chosen.only])
    rounds = 200
    start = time.perf_counter()
    for _ in range(rounds):
        with foreign_code.foreign_code("benchmark"):
            pass
    print(f"one guard: {1e6 * (time.perf_counter() - start) / rounds:.0f} us")
    with tempfile.TemporaryDirectory() as place:
        store = Store(Path(place) / "store")
        seconds(suite, registry, store, Path(place) / "board")
        ratios, shares = [], []
        for _ in range(chosen.repetitions):
            spent: list[float] = []
            with replaced(timed(foreign_code.foreign_code, spent)):
                guarded = seconds(suite, registry, store, Path(place) / "board")
            with replaced(nothing):
                bare = seconds(suite, registry, store, Path(place) / "board")
            ratios.append(guarded / bare)
            shares.append(sum(spent) / guarded)
            guards = f"{len(spent) // 2} guards took {sum(spent):.2f} s"
            print(f"main job with guards {guarded:.2f} s, without {bare:.2f} s: {ratios[-1]:.3f}; {guards}")
    print(f"median of the ratios: {statistics.median(ratios):.3f}")
    print(f"median of the guards' share: {statistics.median(shares):.1%}")


if __name__ == "__main__":
    main()
