"""The command line: parse, call, print. Heavy imports happen inside the commands, so that ``--help`` is fast.

Each module holds related commands and registers them on ``common.app``.
"""

import gc
import os
import sys
from typing import Annotated

import typer

from bench_core.cli.common import app
from bench_core.cli.streams import reader_left, standard_streams
from bench_core.errors import ExitBenchError, ForeignCodeError, PluginError, one_line
from bench_core.util.version import __version__

# isort: off
# Importing a module registers its commands; `exitbench --help` shows them in this order.
from bench_core.cli import run, boards, replay, record, listings, data, store, plugins  # noqa: F401
# isort: on

__all__ = ["main"]

INTERRUPTED = 130


def main() -> None:
    """Run the command line; user errors print one line with exit code 2, Ctrl-C exits with 130.

    All output is made printable: see ``cli.streams``. Lost output, for instance on a full disk, is an error too; a
    reader that leaves, or an output that was closed from the start, is not.
    """
    # Long spinning of threads makes small operations many times slower on a busy machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    with standard_streams() as (output, _):
        code = _exit_code()
        output.flush()
        if output.failure is not None and not reader_left(output.failure):
            reason = getattr(output.failure, "strerror", None) or output.failure
            _complain(f"standard output: can't be written ({reason}); free space or send it elsewhere")
            code = code or 2
    sys.exit(code)


def _exit_code() -> int:
    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except SystemExit as error:  # our own code never exits this way
        print(f"exitbench: something called sys.exit({error.code!s:.60}); the command is not finished", file=sys.stderr)
        return 1
    except ExitBenchError as error:
        _show_traceback(error)
        _complain(f"{error}{_their_place(error)}")
        return 2
    except BaseException as error:  # a plugin's, or a defect; also SystemExit, which is never ours in this mode
        if hasattr(error, "format_message"):  # a click usage error
            if message := " ".join(error.format_message().split()):  # empty if the help was shown instead
                _complain(message)
            return 2
        from bench_core.isolation.tracebacks import debugging, described, is_foreign

        _show_traceback(error)
        if isinstance(error, OSError) and not is_foreign(error):
            _complain(f"{_named(error)}{error.strerror or error}")
            return 2
        _complain(f"{described(error)}" + ("" if debugging() else "; --debug shows the traceback"))
        return 2
    if code == INTERRUPTED:
        exec("")  # after Ctrl-C in code from a string (a dataclass's), Python would end by signal 2; this prevents it
        print("stopped; what is finished is kept, the same command continues", file=sys.stderr)
        gc.freeze()  # otherwise Python examines every object once more on exit: seconds with PyTorch
    return int(code or 0)


def _complain(message: str) -> None:
    """Print an error in one line."""
    print(f"exitbench: {one_line(message)}", file=sys.stderr)


def _their_place(error: ExitBenchError) -> str:
    """Return the location in a plugin's code that caused an error; empty if no plugin did."""
    if error.__cause__ is None or not isinstance(error, ForeignCodeError | PluginError):
        return ""
    from bench_core.isolation.tracebacks import is_foreign, raised_at

    return f" ({raised_at(error.__cause__)})" if is_foreign(error.__cause__) else ""


def _show_traceback(error: BaseException) -> None:
    from bench_core.isolation.tracebacks import debugging, full_traceback

    if debugging():
        print(full_traceback(error), end="", file=sys.stderr)


def _named(error: OSError) -> str:
    return "".join(f"{name}: " for name in (error.filename, error.filename2) if name is not None)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[  # read by common._Commands, which also accepts it after a command
        bool, typer.Option("--debug", help="Show tracebacks of errors; may also follow a command.")
    ] = False,
) -> None:
    del debug
    if version:
        print(f"exitbench {__version__}")
        raise typer.Exit
