"""The example of docs/cluster.md on a real Slurm: what it says, run as it stands but for places and sizes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench_core.board.board import TABLES
from tests.helpers.processes import completed, module_path, run_command
from tests.helpers.suites import CONVERTED, DIRECT, TINY_PLUGIN, write_suite
from tests.slurm.daemons import missing, slurm

PAGE = Path(__file__).parent.parent.parent / "docs" / "cluster.md"
PATIENCE = 600.0  # seconds

if problem := missing():
    pytest.exit(f"tox -e slurm: {problem}", returncode=1)


def documented(language, first_line):
    """The code block of the page whose first line begins so."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if block.startswith(first_line)]
    return block


@pytest.fixture
def shared(tmp_path):
    """A folder as the example expects it: its script, the one that starts the run, and an environment to activate."""
    folder = tmp_path / "shared"
    (folder / "venv" / "bin").mkdir(parents=True)
    python = Path(sys.executable).parent
    (folder / "venv" / "bin" / "activate").write_text(f"export PATH={python}:$PATH PYTHONPATH={module_path()}\n")
    here = {
        "/shared/exitbench": str(folder),
        'interface="ib0"': 'interface="lo"',
        "OMP_NUM_THREADS=8": "OMP_NUM_THREADS=1",
        "exitbench run my-suite.toml": f"python -m bench_core run tiny.toml --output board --plugin {TINY_PLUGIN}",
    }
    for name, text in (
        ("cluster.py", documented("python", "# cluster.py")),
        ("run.sh", documented("bash", "#!/usr/bin/env bash\n# run.sh")),
    ):
        (folder / name).write_text(re.sub("|".join(map(re.escape, here)), lambda found: here[found.group()], text))
    write_suite(folder / "tiny.toml", workloads=[DIRECT, CONVERTED])
    return folder


def test_the_documented_example_gives_the_bytes_of_one_process(shared, tmp_path):
    done = completed(run_command("tiny.toml", "--output", "alone"), home=tmp_path / "home", cwd=shared)
    assert done.returncode == 0, done.stderr
    (tmp_path / "slurm").mkdir()
    with slurm(tmp_path / "slurm") as variables:
        done = subprocess.run(
            ["bash", "run.sh"], env=variables, cwd=shared, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, done.stderr
        jobs = subprocess.run(["squeue", "--noheader"], env=variables, capture_output=True, text=True, check=True)
        ran = sorted(shared.glob("slurm-*.out"))
    assert ran  # jobs' logs
    assert all(line.split()[4] == "CG" for line in jobs.stdout.splitlines())  # ended with the run
    for name in TABLES:
        assert (shared / "board" / f"{name}.csv").read_bytes() == (shared / "alone" / f"{name}.csv").read_bytes()


def test_a_script_that_fails_ends_the_example(shared):
    (shared / "cluster.py").write_text("raise SystemExit('no such queue')\n")
    done = subprocess.run(
        ["bash", "run.sh"], env=dict(os.environ), cwd=shared, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[:2] == ["no such queue", "cluster.py failed"]
