"""The loop over the cases of one loader: seeded, with a time limit, each accepted, refused in one line, or failed."""

import os
import random
import shutil
import sys
import time
from collections import Counter
from contextlib import suppress

from bench_core.util.progress import collected
from tests.fuzz.files import mutate_bytes, try_case
from tests.fuzz.loaders import loader

__all__ = ["fuzz"]


def fuzz(name, folder, cases, seed, *, keep=None, report=print):
    """Give a loader so many damaged files, shared by its targets; how many were accepted, refused and failed.

    The valid files have to be accepted. ``report`` gets a line for each failure and one at the end; files that failed
    are copied into ``keep``.
    """
    os.environ["EXITBENCH_HOME"] = str(folder / "home")
    start = time.perf_counter()
    counts = Counter()
    targets = loader(name, folder)
    for number, target in enumerate(targets):
        rng = random.Random(f"{seed} {name} {target.name}")
        path = folder / f"case{target.suffix}"
        for content in target.seeds:
            outcome = try_case(target, content, path)
            assert outcome == "accepted", (target.name, outcome)
        for case in range(cases // len(targets) + (number < cases % len(targets))):
            content = rng.choice(target.seeds)
            for _ in range(rng.choice((1, 1, 1, 2))):
                with suppress(Exception):  # what is broken already may be too broken for another change by meaning
                    content = (target.mutate if rng.random() < 0.6 else mutate_bytes)(content, rng)
            with collected() as notes:
                outcome = try_case(target, content, path)
            if not all(note.isprintable() for note in notes):
                outcome = f"a note that is no plain line: {notes}"
            if outcome not in ("accepted", "refused"):
                report(f"{name}, {target.name}, seed {seed}, case {case}: {outcome}")
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, keep / f"{name}-{number}-{case}{target.suffix}")
                outcome = "failed"
            counts[outcome] += 1
    report(
        f"{name:12s} {sum(counts.values()):7d} cases: {counts['refused']} documented errors, {counts['accepted']} "
        f"accepted, {counts['failed']} failures, {time.perf_counter() - start:.0f} s"
    )
    sys.stdout.flush()
    return counts
