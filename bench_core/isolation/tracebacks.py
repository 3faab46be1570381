"""Where a failure comes from: one line with file and line of the code that raised it, or its whole traceback."""

import os
import sys
import traceback
from types import FrameType

from bench_core.errors import ExitBenchError, one_line

__all__ = ["debugging", "described", "full_traceback", "is_foreign", "raised_at", "show_tracebacks"]

# What plugins are built on: an error raised in there is the doing of whoever called it.
_LIBRARIES = frozenset(
    {
        "bench_core",
        "click",
        "distributed",
        "numpy",
        "pandas",
        "pluggy",
        "pydantic",
        "safetensors",
        "scipy",
        "torch",
        "typer",
    }
)


_wanted = False


def show_tracebacks(wanted: bool) -> None:
    """Show tracebacks of plugins' errors from now on, or no longer."""
    global _wanted  # noqa: PLW0603  # one process, one command line
    _wanted = wanted


def debugging() -> bool:
    """Return whether tracebacks are wanted, by ``--debug`` or by the variable that makes plugins' errors ours."""
    return _wanted or os.environ.get("EXITBENCH_STRICT_PLUGINS") == "1"


def raised_at(error: BaseException) -> str:
    """Return FILE:LINE of the innermost call in code that is neither ours nor a library's, else of the innermost call.

    For a file that isn't Python it is the place of the mistake. Empty where nothing is known.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{error.filename}:{error.lineno}"
    calls = list(traceback.walk_tb(error.__traceback__))
    foreign = [call for call in calls if not _is_library(call[0])]
    for frame, line in reversed(foreign or calls):
        return f"{frame.f_code.co_filename}:{line}"
    return ""


def is_foreign(error: BaseException) -> bool:
    """Return whether code that is neither ours nor a library's had a part in raising it."""
    return any(not _is_library(frame) for frame, _ in traceback.walk_tb(error.__traceback__))


def described(error: BaseException) -> str:
    """Return one line: FILE:LINE, then the error's type and message; an error of ours is its own message."""
    if isinstance(error, ExitBenchError):
        return str(error)
    said = " ".join(_message(error).split())
    words = type(error).__name__ + (f": {said}" if said else "")
    place = raised_at(error)
    return one_line(f"{place}: {words}" if place else words)


def full_traceback(error: BaseException) -> str:
    """Return the traceback as Python prints it, ending with a newline."""
    return "".join(traceback.format_exception(error))


def _message(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return error.msg or ""
    try:
        return str(error)
    except Exception:  # an author's own __str__ may fail too
        return "(its message can't be shown)"


def _is_library(frame: FrameType) -> bool:
    root = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return root != "__main__" and (root in _LIBRARIES or root in sys.stdlib_module_names)
