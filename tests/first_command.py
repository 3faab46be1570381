"""README's first command, as it stands there, in a copy of the tree, with an empty home and a virtual environment.

    python tests/first_command.py FOLDER

The board that it makes must be the committed one, as closely as the contract for numbers says (docs/reproducing.md):
``exitbench reproduce --board`` of the same virtual environment compares them.
"""

import os
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
START = "pip install -c constraints.txt . && "
LEFT_BEHIND = (".git", ".tox", ".hypothesis", ".*_cache", "__pycache__", "exitbench-results", "results")


def first_commands() -> list[list[str]]:
    """Return the command's parts, split as a shell would."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = (line.split("#")[0] for line in lines if line.strip().startswith(START))
    return [shlex.split(part) for part in line.split("&&")]


def main() -> None:
    (target,) = sys.argv[1:]
    folder = Path(target) / "first-command"
    shutil.rmtree(folder, ignore_errors=True)
    tree, environment = folder / "exitbench", folder / "venv"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    venv.create(environment, with_pip=True)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    variables |= {"PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    bare = {**variables, "HOME": str(folder / "nobody"), "EXITBENCH_HOME": str(folder / "home")}
    install, run = first_commands()
    compare = ["exitbench", "reproduce", str(ROOT / "results" / "quick"), "--board", "exitbench-results/quick"]
    for (program, *arguments), known in ((install, variables), (run, bare), (compare, bare)):
        subprocess.run([environment / "bin" / program, *arguments], cwd=tree, env=known, check=True)


if __name__ == "__main__":
    main()
