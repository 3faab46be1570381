"""What holds for all tests, and the command line in their process."""

import signal
import sys

import pytest
import torch

from bench_core.cli import main
from tests.helpers.command import Answer

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
