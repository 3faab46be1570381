"""What surrounding foreign code costs: one guard, and the main job with it and without, in turns.

    python benchmarks/guard.py [--repetitions 5] [--only fashion-direct]

Without it, ``foreign_code`` does nothing. The store is filled first and scores are made again, so a turn is replay,
ranks and wall clock of one workload.
"""

import argparse
import io
import shutil
import statistics
import tempfile
import time
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from unittest.mock import patch

from bench_core import load_registry
from bench_core.isolation import failures, foreign_code
from bench_core.run.run import run_suite
from bench_core.run.suite import load_suite
from bench_core.store.local import Store


@contextmanager
def nothing(*_arguments, **_options):
    """Stand in for ``foreign_code``."""
    yield


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
        ratios = []
        for _ in range(chosen.repetitions):
            guarded = seconds(suite, registry, store, Path(place) / "board")
            with patch.object(failures, "foreign_code", nothing):
                bare = seconds(suite, registry, store, Path(place) / "board")
            ratios.append(guarded / bare)
            print(f"main job with guards {guarded:.2f} s, without {bare:.2f} s: {ratios[-1]:.3f}")
    print(f"median of the ratios: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
