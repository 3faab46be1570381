"""The command line: parse, call, print. Heavy imports happen inside the commands, so ``--help`` answers at once.

Each module holds the commands of one room of the house and registers them on ``common.app``.
"""

import gc
import os
import sys
from typing import Annotated

import typer

from bench_core import __version__
from bench_core.cli.common import app
from bench_core.errors import ExitBenchError

# isort: off
# Importing a room registers its commands; `exitbench --help` shows them in this order.
from bench_core.cli import main_job, boards, methods, networks, listings, data, store, plugins  # noqa: F401
# isort: on

__all__ = ["main"]

INTERRUPTED = 130


def main() -> None:
    """Run the command line; errors a user can cause are one line and exit code 2, Ctrl-C is 130."""
    # Threads that spin for long make small operations many times slower on a machine that does other work too.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        sys.exit(_exit_code())
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # whoever read our output has gone; the interpreter's last flush must not complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_code() -> int:
    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except SystemExit as error:  # nothing of ours leaves in this way
        print(f"exitbench: something called sys.exit({error.code!s:.60}); the command is not finished", file=sys.stderr)
        return 1
    except ExitBenchError as error:
        print(f"exitbench: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if not hasattr(error, "format_message"):  # not a click usage error: a defect, shown whole
            raise
        if message := " ".join(error.format_message().split()):  # empty where the help was shown instead
            print(f"exitbench: {message}", file=sys.stderr)
        return 2
    if code == INTERRUPTED:
        exec("")  # Ctrl-C in code that came from a string, as a dataclass's, would end us by signal 2; this clears that
        print("stopped; what is finished is kept, the same command continues", file=sys.stderr)
        gc.freeze()  # else Python looks at every object once more before it ends: seconds, with PyTorch loaded
    return int(code or 0)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(f"exitbench {__version__}")
        raise typer.Exit
