"""Whether every public name has a type for a project that has installed this one: asks mypy to reveal it.

python -m tests.public_types
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import bench_core


def main() -> None:
    """End with exit code 1 where mypy knows a name as Any, or not at all."""
    lines = ["from typing import reveal_type"]
    for module in ("bench_core", "exitbench"):
        for name in bench_core.__all__:
            alias = f"{module}_{name}"
            lines += [f"from {module} import {name} as {alias}", f"reveal_type({alias})"]
    with tempfile.TemporaryDirectory() as folder:
        consumer = Path(folder) / "consumer.py"
        consumer.write_text("\n".join(lines))
        command = [sys.executable, "-m", "mypy", str(consumer)]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    revealed = [line for line in said if "Revealed type is" in line]
    wrong = [line for line in said if line.endswith('Revealed type is "Any"') or ": error:" in line]
    print(f"{len(revealed)} of {2 * len(bench_core.__all__)} public names are typed", *wrong, sep="\n")
    sys.exit(1 if wrong or len(revealed) != 2 * len(bench_core.__all__) else 0)


if __name__ == "__main__":
    main()
