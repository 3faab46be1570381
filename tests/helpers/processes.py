"""Runs of the command line in processes of their own. Whoever starts one ends it, by its id."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

from tests.helpers.suites import TINY_PLUGIN

ROOT = TINY_PLUGIN.parent.parent.parent
PATIENCE = 120.0  # seconds that a tiny run may take on a busy machine


def run_command(suite, *options):
    """The command that runs a suite with the tiny plugin."""
    return [sys.executable, "-m", "bench_core", "run", str(suite), "--plugin", str(TINY_PLUGIN), *map(str, options)]


def environment(home):
    """The variables that a run with its store in ``home`` gets."""
    return {**os.environ, "EXITBENCH_HOME": str(home), "OMP_NUM_THREADS": "1"}


def module_path():
    """Return the PYTHONPATH of a process that imports tests: their root, and this process's own."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


@contextmanager
def started(command, *, home, cwd, **options):
    """A running process with its output caught, in a session of its own; killed at the end if it still runs."""
    process = subprocess.Popen(
        command,
        env=environment(home),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def completed(command, *, home, cwd, **options):
    """The process after it has ended, with ``returncode``, ``stdout`` and ``stderr``."""
    with started(command, home=home, cwd=cwd, **options) as process:
        stdout, stderr = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def wait_until(condition, process):
    """Wait until a condition holds, while the process runs."""
    patience = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < patience
        time.sleep(0.005)


def in_session(session):
    """Ids of the processes of a session, those that only wait to be collected aside."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (OSError, psutil.Error):
            continue
    return found
