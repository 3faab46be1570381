"""A failure is a row with a reason, never the end of a run; running out of memory is told apart."""

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

_REFUSALS = ("can't allocate memory", "could not create a primitive")  # of PyTorch's CPU allocator, and of oneDNN


def guarded(
    what: str, stage: Callable[..., Any], *arguments: Any, minutes: float = STRATEGY_MINUTES, ours: bool = False
) -> Any:
    """Return what the stage gives, or in words why it gives nothing: a failure is a row, never the end of the run.

    The stage runs as foreign code (``bench_core.isolation.foreign_code``). Only Ctrl-C, and a store that can't or
    mayn't be written to, end the run: that fails for everything, and is soon put right.

    Args:
        what: whose code it is, or what is made.
        minutes: until it is interrupted.
        ours: it is this package's own code.
    """

    def surrounded() -> Any:
        with foreign_code(what, minutes=minutes, ours=ours):
            return stage(*arguments)

    return attempted(what, surrounded)


def attempted(what: str, stage: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a stage of this package's own code gives, or in words why it gives nothing, as ``guarded`` does."""
    try:
        return stage(*arguments)
    except StoreError as error:
        if _raised_here(error):
            raise
        return _failure(what, error)
    except Exception as error:  # plugins may raise anything
        return _failure(what, error)


def _failure(what: str, error: Exception) -> str:
    """Say that something failed, and return why; a traceback where that is news."""
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
    """Whether this package raised the error, not a plugin that borrowed its class."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent.parent)


def out_of_memory(error: Exception) -> bool:
    """Whether it says that memory ran out, of this machine or of its GPU."""
    refused = isinstance(error, RuntimeError) and any(words in str(error) for words in _REFUSALS)
    return refused or isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
