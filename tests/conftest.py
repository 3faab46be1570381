"""What holds for all tests, and the command line in their process."""

import atexit
import os
import shutil
import signal
import sys
import tempfile

import pytest
import torch

from bench_core.cli import main
from tests.helpers.command import Answer

# No test relies on what a home or a folder of data holds; processes that tests start inherit that.
_nobody = tempfile.mkdtemp(prefix="exitbench-nobody-")
atexit.register(shutil.rmtree, _nobody, ignore_errors=True)
os.environ |= {"HOME": _nobody, "XDG_CACHE_HOME": f"{_nobody}/.cache"}
os.environ.pop("EXITBENCH_DATA", None)

# A job in the background may have been started deaf to Ctrl-C; the processes that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def threads():
    """A stage that is carried out in this process sets how many there are; what is trained next depends on it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def exitbench(monkeypatch, capfd):
    """The command line in this process: arguments to ``Answer``."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["exitbench", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return Answer(code, *capfd.readouterr())

    return call
