"""Whatever is printed can be printed: any encoding, closed, full and abandoned streams, names that drive a terminal."""

import io
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench_core.cli.streams import Printable, standard_streams
from bench_core.errors import DataError, ExitBenchError, UsageError, printable, visible
from bench_core.util import progress as progress_module
from bench_core.util.progress import note, progress
from tests.browser.boards import make_board
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.suites import write_plugin

COMMAND = [sys.executable, "-m", "bench_core"]
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
ENCODINGS = {"ascii": {"PYTHONIOENCODING": "ascii"}, "cp1252": {"PYTHONIOENCODING": "cp1252"}, "C": C_LOCALE}
ODD = "a\x1b[31m\x9b2J\u202eb\x07\x00\r\u2028c\x85"


def shell(line, cwd, **variables):
    """A shell's command line, ``$@`` of which is exitbench; code, output and errors."""
    return subprocess.run(
        ["bash", "-c", line, "bash", *COMMAND],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A folder with a board whose tables have signs that ASCII lacks."""
    folder = tmp_path_factory.mktemp("printing")
    make_board(folder=folder / "board", strategy="größe", workload="first")
    return folder


@pytest.mark.parametrize("arguments", ["--help", "leaderboard board"])
@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_will_do(board, name, arguments):
    done = shell(f'"$@" {arguments}', board, **ENCODINGS[name])
    assert (done.returncode, done.stderr) == (0, b"")
    # In the C locale Python may choose UTF-8 (PEP 540), whose ASCII part is the same.
    text = done.stdout.decode({"cp1252": "cp1252", "C": "utf-8"}.get(name, "ascii"))
    if arguments == "--help":
        assert "Usage" in text
    else:
        assert ("größe" if name == "cp1252" else r"gr\xf6\xdfe") in text
        assert "iso-accuracy:0.5" in text


@pytest.mark.parametrize("arguments", ["--help", "--version", "leaderboard board"])
def test_a_full_stdout_is_one_line_and_no_success(board, arguments):
    done = shell(f'"$@" {arguments} > /dev/full', board)
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("exitbench: standard output: can't be written (No space left on device)")


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full", "| true", "2>&1 | true"])
def test_a_stream_that_is_closed_or_not_read_leaves_the_result_as_it_is(board, redirection):
    for arguments, code in (("--help", 0), ("leaderboard --nothing", 2)):
        done = shell(f'set -o pipefail; "$@" {arguments} {redirection}', board)
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stdout + done.stderr
        assert b"Exception ignored" not in done.stdout + done.stderr


def test_what_is_said_on_a_closed_stderr_does_not_get_into_the_result(board):
    plugin = write_plugin(board / "broken.py", "raise ValueError('boom')")
    done = shell(f'"$@" list cost-models --plugin {plugin} 2>&-', board)
    assert done.returncode == 0
    assert b"boom" not in done.stdout


def test_a_failed_stream_is_noticed_once_and_swallows_the_rest(tmp_path):
    class Full(io.StringIO):
        encoding = "utf-8"
        writes = 0

        def write(self, text):
            self.writes += 1
            raise OSError(28, "No space left on device")

    stream = Full()
    shown = Printable(stream)
    assert shown.write("a") == 1
    shown.rich_proxied_file.write("b")
    shown.flush()
    assert stream.writes == 1
    assert shown.failure.errno == 28


def test_streams_are_put_back_and_missing_ones_are_replaced(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    before = sys.stderr
    with standard_streams() as (output, _):
        print("into nothing")
        assert sys.stdout is output
    assert sys.stdout is None
    assert sys.stderr is before


@given(st.text())
def test_text_for_a_terminal_has_lines_and_nothing_else(text):
    assert all(line.isprintable() for line in printable(text).split("\n"))
    assert printable(text).count("\n") == text.count("\n")
    stream = SimpleNamespace(encoding="ascii", write=lambda written: written.encode("ascii"))
    Printable(stream).write(text)


@given(st.lists(st.text(), min_size=2, max_size=2, unique=True).filter(lambda pair: "\\" not in "".join(pair)))
def test_different_names_stay_different(pair):
    assert visible(pair[0]) != visible(pair[1])
    assert "".join(map(visible, pair)).isprintable()


@given(st.text())
def test_an_error_is_one_plain_line(text):
    for error in (UsageError(text), DataError(f"{text}: wrong"), ExitBenchError(text, text)):
        assert str(error).isprintable()


def test_an_error_of_several_lines_keeps_its_words():
    assert str(UsageError("first\r\n\tsecond\x1b[0m\n")) == "first  second?[0m"


class Terminal(io.StringIO):
    """What isatty calls a terminal."""

    encoding = "ascii"

    def isatty(self):
        return True


@pytest.mark.parametrize("title", ["dt-snn[alpha=2]", "[/red]", "{task.x}", "{", ODD])
def test_a_bar_shows_any_name_and_only_rich_drives_the_terminal(monkeypatch, title):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", Printable(stream))
    with progress(title, 3, title) as advance:
        note(f"in between {ODD}")
        advance(1, f"loss {title}")
        advance(2)
    shown = stream.getvalue()
    assert "3/3" in shown
    assert "31m\x9b" not in shown
    for bad in ("\x9b", "\u202e", "\x07", "\x00", "\x1b[31m"):
        assert bad not in shown.replace("\x1b[31m\x1b", "")
    if title == "dt-snn[alpha=2]":
        assert title in shown


def test_a_note_on_a_closed_stderr_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    note("lost")
    with progress("work", 2) as advance:
        advance(2)
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    note("lost")
    with progress("work", 2) as advance:
        advance(2)
    assert progress_module._collected is None
    assert capsys.readouterr().out == ""
