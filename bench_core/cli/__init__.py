"""The command line: parse, call, print. Heavy imports happen inside the commands, so ``--help`` answers at once.

Each module holds the commands of one room of the house and registers them on ``common.app``.
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
# Importing a room registers its commands; `exitbench --help` shows them in this order.
from bench_core.cli import run, boards, replay, record, listings, data, store, plugins  # noqa: F401
# isort: on

__all__ = ["main"]

INTERRUPTED = 130


def main() -> None:
    """Run the command line; errors a user can cause are one line and exit code 2, Ctrl-C is 130.

    Whatever is printed can be printed: see ``cli.streams``. Output that is lost, because its disk is full, say, is an
    error as well; a reader that goes away and an output that was closed from the start are not.
    """
    # Threads that spin for long make small operations many times slower on a machine that does other work too.
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
    except SystemExit as error:  # nothing of ours leaves in this way
        print(f"exitbench: something called sys.exit({error.code!s:.60}); the command is not finished", file=sys.stderr)
        return 1
    except ExitBenchError as error:
        _show_traceback(error)
        _complain(f"{error}{_their_place(error)}")
        return 2
    except BaseException as error:  # a plugin's, or a defect; SystemExit too: of ours there is none in this mode
        if hasattr(error, "format_message"):  # a click usage error
            if message := " ".join(error.format_message().split()):  # empty where the help was shown instead
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
        exec("")  # Ctrl-C in code that came from a string, as a dataclass's, would end us by signal 2; this clears that
        print("stopped; what is finished is kept, the same command continues", file=sys.stderr)
        gc.freeze()  # else Python looks at every object once more before it ends: seconds, with PyTorch loaded
    return int(code or 0)


def _complain(message: str) -> None:
    """Print one line of error."""
    print(f"exitbench: {one_line(message)}", file=sys.stderr)


def _their_place(error: ExitBenchError) -> str:
    """Return where the plugin's code is that ended in such an error; empty where none did."""
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
    debug: Annotated[  # read by common._Commands, which accepts it after a command too
        bool, typer.Option("--debug", help="Show tracebacks of errors; may also follow a command.")
    ] = False,
) -> None:
    del debug
    if version:
        print(f"exitbench {__version__}")
        raise typer.Exit
