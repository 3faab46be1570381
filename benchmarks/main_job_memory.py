"""Peak memory and time of the main job on an empty store, as a new user runs it.

python benchmarks/main_job_memory.py [SUITE]
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    suite = sys.argv[1] if len(sys.argv) > 1 else "quick"
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "EXITBENCH_HOME": str(Path(scratch) / "home")}
        command = [sys.executable, "-m", "bench_core", "run", suite, "--output", str(Path(scratch) / "board")]
        for turn in ("first run", "second run"):
            start = time.perf_counter()
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            elapsed = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
            print(f"{turn}: {elapsed:.0f} s, peak resident memory so far {peak:.2f} GiB")


if __name__ == "__main__":
    main()
