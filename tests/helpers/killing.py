"""A process that runs a suite in forked children, kills each at a seeded moment, and looks at the store after each.

    python -m tests.helpers.killing PLACE SUITE moments|steps KILLS SEED

It imports once what a run imports, so that kills hit the work and not the imports. Two ways to choose when: ``moments``
are times after the start, ``steps`` are numbers of the system calls by which files come and go. What it found is
printed as JSON.
"""

import importlib
import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from bench_core import cli
from bench_core.plugins import load_registry
from bench_core.store.inventory import verify
from bench_core.store.local import Store
from tests.helpers.suites import TINY_PLUGIN

CALLS = ("fsync", "mkdir", "replace", "rmdir", "unlink")
FINISHED = ("networks", "traces", "policies")


def fork_run(place, suite, die_at=None):
    """Start the run in a child; its id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        with (place / "said.txt").open("a") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        os.environ["EXITBENCH_HOME"] = str(place / "home")
        sys.argv = ["exitbench", "run", suite, "--plugin", str(TINY_PLUGIN), "--output", str(place / "board")]
        if die_at is not None:
            die_at_step(die_at)
        cli.main()
    except SystemExit as end:
        code = end.code
    finally:
        (place / "modules.txt").write_text("\n".join(sys.modules))
        os._exit(code)


def die_at_step(step):
    """Kill this process before or after the system call with this number."""
    seen = 0

    def count():
        nonlocal seen
        seen += 1
        if seen == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(real):
        def call(*arguments, **options):
            count()
            result = real(*arguments, **options)
            count()
            return result

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def artifacts(root):
    """Identity and date of every finished artifact: a file that is written again has others."""
    found = {}
    for kind in FINISHED:
        for path in sorted((root / kind).rglob("*.safetensors")):
            if not any(part.startswith(".") for part in path.relative_to(root).parts):
                status = path.stat()
                found[str(path.relative_to(root))] = [status.st_ino, status.st_mtime_ns]
    return found


def main():
    place, suite, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    kills, seed = int(sys.argv[4]), int(sys.argv[5])
    rng = random.Random(seed)
    store = Store(place / "home", zoo=None)
    load_registry([TINY_PLUGIN])
    undisturbed = place / "undisturbed"
    undisturbed.mkdir()
    assert os.waitpid(fork_run(undisturbed, suite), 0)[1] == 0, (undisturbed / "said.txt").read_text()
    for name in (undisturbed / "modules.txt").read_text().splitlines():
        with suppress(ImportError):
            importlib.import_module(name)
    start = time.monotonic()
    assert os.waitpid(fork_run(undisturbed, suite), 0)[1] == 0
    again = time.monotonic() - start  # seconds that a run takes with all artifacts at hand
    signals, seen, damage = [], [], []
    for number in range(kills):
        late = number >= kills * 2 // 3  # by then most is trained and recorded: let it come to the board
        if how == "moments":
            child = fork_run(place, suite)
            time.sleep(rng.uniform(0.0, again))
            os.kill(child, signal.SIGKILL)
        else:
            child = fork_run(place, suite, die_at=rng.randint(1, 40 if late else 200))
        status = os.waitpid(child, 0)[1]
        signals.append(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)
        seen.append(artifacts(store.root))
        damage += verify(store)[1]
    print(json.dumps({"signals": signals, "seen": seen, "damage": damage, "again": again}))


if __name__ == "__main__":
    main()
