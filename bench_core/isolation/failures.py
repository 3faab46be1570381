"""Failure handling: a failed stage becomes a row with a reason, and does not end the run.

Running out of memory is recognised separately.
"""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench_core.errors import ExitBenchError, ForeignCodeError, StoreError, one_line
from bench_core.isolation.foreign_code import STRATEGY_MINUTES, foreign_code
from bench_core.isolation.tracebacks import debugging, described, full_traceback
from bench_core.util.progress import note

__all__ = ["attempted", "guarded", "out_of_memory"]

_REFUSALS = ("can't allocate memory", "could not create a primitive")  # from PyTorch's CPU allocator, and oneDNN


def guarded(
    what: str, stage: Callable[..., Any], *arguments: Any, minutes: float = STRATEGY_MINUTES, ours: bool = False
) -> Any:
    """Return the result of ``stage``, or the reason for its failure as text, so that the run continues.

    The stage runs as foreign code (``bench_core.isolation.foreign_code``). Only Ctrl-C, and a store that cannot or must
    not be written to, end the run: a store error would recur for everything else, and is quick to fix.

    Args:
        what: whose code it is, or what it makes.
        stage: the function to call.
        *arguments: its arguments.
        minutes: time limit, after which it is interrupted.
        ours: whether it is this package's own code.
    """

    def surrounded() -> Any:
        with foreign_code(what, minutes=minutes, ours=ours):
            return stage(*arguments)

    return attempted(what, surrounded)


def attempted(what: str, stage: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a stage of this package's own code, or the reason for its failure, as ``guarded`` does."""
    try:
        return stage(*arguments)
    except StoreError as error:
        if _raised_here(error):
            raise
        return _failure(what, error)
    except Exception as error:  # plugins may raise anything
        return _failure(what, error)


def _failure(what: str, error: Exception) -> str:
    """Report a failure and return its reason; show a traceback only for unexpected errors and in debugging mode."""
    if isinstance(error, ForeignCodeError):
        note(f"{what}: failed: {error.message}")
        return f"failed: {error.message}"
    if isinstance(error, ExitBenchError):
        note(f"{what}: failed: {error}")
        return one_line(f"failed: {error}")
    note(f"{what}: failed: {described(error)}" + ("" if debugging() else "; --debug shows the traceback"))
    for line in full_traceback(error).splitlines() if debugging() else ():
        note(line)
    return one_line(f"failed: {type(error).__name__}: {error}")


def _raised_here(error: Exception) -> bool:
    """Return whether this package raised the error, rather than a plugin that reuses its class."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent.parent)


def out_of_memory(error: Exception) -> bool:
    """Return whether the error means that this machine or its GPU ran out of memory."""
    refused = isinstance(error, RuntimeError) and any(words in str(error) for words in _REFUSALS)
    return refused or isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
