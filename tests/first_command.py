"""README's first command, as it stands there, in a copy of the tree and a virtual environment that has nothing.

    python tests/first_command.py FOLDER

The board that it makes must be the committed one: byte by byte on a machine like that which made it, else within half
a point of accuracy and a tenth of a timestep, since single spikes flip where rounding differs.
"""

import csv
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
KEYS = ("workload", "strategy", "operating_point")
TOLERANCES = {"accuracy": 0.005, "average_exit_timestep": 0.1}


def first_commands() -> list[list[str]]:
    """The command's parts, split as a shell would."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = (line.split("#")[0] for line in lines if line.strip().startswith(START))
    return [shlex.split(part) for part in line.split("&&")]


def run_all(folder: Path) -> Path:
    """Carry them out below ``folder``; the folder of the board."""
    tree, environment = folder / "exitbench", folder / "venv"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    venv.create(environment, with_pip=True)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    variables |= {"PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    variables |= {"EXITBENCH_HOME": str(folder / "home")}
    for program, *arguments in first_commands():
        subprocess.run([environment / "bin" / program, *arguments], cwd=tree, env=variables, check=True)
    return tree / "exitbench-results" / "quick"


def rows_of(board: Path) -> dict[tuple[str, ...], dict[str, str]]:
    with (board / "rows.csv").open(encoding="utf-8", newline="") as stream:
        return {tuple(row[key] for key in KEYS): row for row in csv.DictReader(stream)}


def difference(found: dict[tuple[str, ...], dict[str, str]], expected: dict[tuple[str, ...], dict[str, str]]) -> str:
    """What is beyond the tolerances, in words; empty where nothing is."""
    if found.keys() != expected.keys():
        return f"other rows than the committed board's: {sorted(found.keys() ^ expected.keys())[:5]}"
    for key, row in expected.items():
        for column, tolerance in TOLERANCES.items():
            here, there = found[key][column], row[column]
            if here != there and (not here or not there or abs(float(here) - float(there)) > tolerance):
                return f"{', '.join(key)}: {column} {here or 'n/a'}, committed {there or 'n/a'}"
    return ""


def main() -> None:
    (target,) = sys.argv[1:]
    folder = Path(target) / "first-command"
    shutil.rmtree(folder, ignore_errors=True)
    committed = ROOT / "results" / "quick"
    made = run_all(folder)
    if (made / "rows.csv").read_bytes() == (committed / "rows.csv").read_bytes():
        print("the board is the committed one, byte by byte")
        return
    if far := difference(rows_of(made), rows_of(committed)):
        raise SystemExit(far)
    print("the board is the committed one within the tolerances")


if __name__ == "__main__":
    main()
