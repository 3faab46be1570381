"""Run one loader, or all, on many damaged files; exit code 1 where one did anything but accept or refuse."""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from tests.fuzz.driver import fuzz
from tests.fuzz.files import limit_memory
from tests.fuzz.loaders import LOADERS


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("loader", choices=[*LOADERS, "all"])
    parser.add_argument("--cases", type=int, default=20_000, help="of each loader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files that failed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    limit_memory()
    failed = 0
    for name in LOADERS if arguments.loader == "all" else [arguments.loader]:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
            counts = fuzz(name, Path(scratch).resolve(), arguments.cases, arguments.seed, keep=arguments.keep)
        failed += counts["failed"]
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
