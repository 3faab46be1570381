"""What a newcomer does: README's first command, then a plugin of their own; with an empty home and virtual environment.

    python tests/newcomer.py FOLDER

README's first line runs as it stands there, in a copy of the tree. The board that it makes must be the committed one,
as closely as the contract for numbers says (docs/reproducing.md): ``exitbench reproduce --board`` compares them. Then
the example plugin is installed as somebody else's package, tested, checked by the conformance kit and put on a board,
and so is a new one, as ``exitbench plugin new`` writes it.
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
INSTALL = ["pip", "install", "--no-deps"]
TEST = ["pytest", "-p", "no:cacheprovider"]
EXAMPLE, NEW, ON_BOARD = "plugins/example", "new-exit", "scaled-gap"
PLUGINS = [
    [*INSTALL, EXAMPLE],
    [*TEST, EXAMPLE],
    [*TEST, "--pyargs", "bench_core.conformance", "--exit-strategy", ON_BOARD],
    ["exitbench", "plugin", "check", "exitbench-example"],
    ["exitbench", "plugin", "new", NEW],
    [*INSTALL, f"./{NEW}"],
    [*TEST, NEW],
    ["exitbench", "plugin", "check", NEW],
    ["exitbench", "run", "--only", f"fashion-direct,fixed,{ON_BOARD},{NEW}"],
]


def first_commands() -> list[list[str]]:
    """Return the command's parts, split as a shell would."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = (line.split("#")[0] for line in lines if line.strip().startswith(START))
    return [shlex.split(part) for part in line.split("&&")]


def main() -> None:
    (target,) = sys.argv[1:]
    folder = Path(target) / "newcomer"
    shutil.rmtree(folder, ignore_errors=True)
    tree, environment = folder / "exitbench", folder / "venv"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    venv.create(environment, with_pip=True)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    variables |= {"PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    bare = {**variables, "HOME": str(folder / "nobody"), "EXITBENCH_HOME": str(folder / "home")}
    install, run = first_commands()
    compare = ["exitbench", "reproduce", str(ROOT / "results" / "quick"), "--board", "exitbench-results/quick"]
    for command in (install, run, compare, *PLUGINS):
        program, *arguments = command
        print(f"$ {shlex.join(command)}", flush=True)
        known = variables if program == "pip" else bare
        subprocess.run([environment / "bin" / program, *arguments], cwd=tree, env=known, check=True)
    (board,) = (tree / "exitbench-results").glob("*-only/leaderboard.md")
    missing = {ON_BOARD, NEW} - set(board.read_text(encoding="utf-8").replace("|", " ").split())
    sys.exit(f"{board}: has no row of {', '.join(sorted(missing))}" if missing else 0)


if __name__ == "__main__":
    main()
