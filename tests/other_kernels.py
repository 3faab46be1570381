"""What depends on rounding, under the kernels of another processor: tests, and a committed board in both ways.

python -m tests.other_kernels avx2 | default
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.kernels import KERNELS

ROOT = Path(__file__).parent.parent
BOARD = str(ROOT / "results" / "quick")
COMMANDS = (
    ["pytest", "-p", "no:cacheprovider", "-m", "numerics"],
    ["exitbench", "reproduce", BOARD, "--from", "traces"],
    ["exitbench", "reproduce", BOARD, "--from", "weights"],
)


def main() -> None:
    (kernels,) = sys.argv[1:]
    environment = {**os.environ, **KERNELS[kernels]}
    for program, *arguments in COMMANDS:
        print(f"{kernels} kernels: {program} {' '.join(arguments)}", flush=True)
        threads = {"OMP_NUM_THREADS": "1"} if program == "pytest" else {}  # tests work on small tensors
        command = [Path(sys.executable).parent / program, *arguments]
        subprocess.run(command, cwd=ROOT, env=environment | threads, check=True)


if __name__ == "__main__":
    main()
