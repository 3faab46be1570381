"""What depends on rounding, under the kernels of other processors: tests, and a committed board in both ways.

python -m tests.other_kernels avx2 default

The sets of kernels run at the same time, each on its share of the cores; what one of them said is printed when it ends.
A set that rounds as the processor's own kernels do is left out: everything else in tox has run with it. From weights
one network of each kind is recorded: a converted one, one that was trained directly, and one that sees events.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from tests.helpers.kernels import KERNELS

ROOT = Path(__file__).parent.parent
BOARD = str(ROOT / "results" / "quick")
ONE_OF_EACH = "fashion-qcfs-rcs,fashion-direct-tet,fashion-saccade"
COMMANDS = (
    ["pytest", "-p", "no:cacheprovider", "-m", "numerics"],
    ["exitbench", "reproduce", BOARD, "--from", "traces"],
    [
        "exitbench",
        "reproduce",
        BOARD,
        "--from",
        "weights",
        "--only",
        "fashion-qcfs-rcs,fashion-direct-tet,fashion-saccade",
    ],
)
FINGERPRINT = "from bench_core.util.environment import numerics_fingerprint; print(numerics_fingerprint())"


def fingerprint(variables: Mapping[str, str]) -> str:
    """Return the digest of how Python rounds in an environment with these variables beside its own."""
    command = [sys.executable, "-c", FINGERPRINT]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=True).stdout


def run_with(kernels: str, threads: int, said: IO[str]) -> int:
    """Run all commands until one fails, and return the last exit code."""
    environment = {**os.environ, **KERNELS[kernels]}
    for program, *arguments in COMMANDS:
        print(f"{kernels} kernels: {program} {' '.join(arguments)}", flush=True)
        used = 1 if program == "pytest" else threads  # tests work on small tensors
        code = subprocess.run(
            [Path(sys.executable).parent / program, *arguments],
            cwd=ROOT,
            env=environment | {"OMP_NUM_THREADS": str(used)},
            stdout=said,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
        if code:
            return code
    return 0


def main() -> None:
    """Run every named set; exit with 1 where one of them failed."""
    own = fingerprint({})
    names = [name for name in sys.argv[1:] if fingerprint(KERNELS[name]) != own]
    for name in set(sys.argv[1:]) - {*names}:
        print(f"--- {name} kernels: they round as this processor's own do")
    if not names:
        return
    threads = max(1, (os.cpu_count() or 1) // len(names))
    with ThreadPoolExecutor(len(names)) as pool:

        def run(kernels: str) -> int:
            with tempfile.TemporaryFile("w+") as said:
                code = run_with(kernels, threads, said)
                said.seek(0)
                print(f"--- {kernels} kernels: exit code {code}\n{said.read()}", flush=True)
            return code

        codes = list(pool.map(run, names))
    sys.exit(1 if any(codes) else 0)


if __name__ == "__main__":
    main()
