"""Origins of failures: one line with the file and line of the code that raised it, or the full traceback."""

import os
import sys
import traceback
from types import FrameType

from bench_core.errors import ExitBenchError, one_line

__all__ = ["debugging", "described", "full_traceback", "is_foreign", "raised_at", "show_tracebacks"]

# Plugins build on these: the code that called them is responsible for an error raised inside.
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
    """Turn tracebacks of plugin errors on or off."""
    global _wanted  # noqa: PLW0603  # one process, one command line
    _wanted = wanted


def debugging() -> bool:
    """Return whether tracebacks are wanted, by ``--debug`` or by ``EXITBENCH_STRICT_PLUGINS=1``."""
    return _wanted or os.environ.get("EXITBENCH_STRICT_PLUGINS") == "1"


def raised_at(error: BaseException) -> str:
    """Return FILE:LINE of the innermost call outside this package and known libraries, else of the innermost call.

    For a file that isn't valid Python, it is the location of the syntax error. Empty if nothing is known.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{error.filename}:{error.lineno}"
    calls = list(traceback.walk_tb(error.__traceback__))
    foreign = [call for call in calls if not _is_library(call[0])]
    for frame, line in reversed(foreign or calls):
        return f"{frame.f_code.co_filename}:{line}"
    return ""


def is_foreign(error: BaseException) -> bool:
    """Return whether code outside this package and known libraries was involved in raising the error."""
    return any(not _is_library(frame) for frame, _ in traceback.walk_tb(error.__traceback__))


def described(error: BaseException) -> str:
    """Return one line: FILE:LINE, then the error's type and message; an ``ExitBenchError`` is its own message."""
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
    except Exception:  # a custom __str__ may fail too
        return "(its message can't be shown)"


def _is_library(frame: FrameType) -> bool:
    root = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return root != "__main__" and (root in _LIBRARIES or root in sys.stdlib_module_names)
