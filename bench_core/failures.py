"""A failure is a row with a reason, never the end of a run; running out of memory is told apart."""

import traceback
from collections.abc import Callable
from typing import Any

import torch

from bench_core.errors import ExitBenchError, StoreError
from bench_core.progress import note

__all__ = ["guarded", "out_of_memory"]


def guarded(what: str, stage: Callable[..., Any], *arguments: Any) -> Any:
    """The stage's result, or in words why it has none: a failure is a row, never the end of the run.

    Only a store that can't or mayn't be written to ends it: that fails for everything, and is soon put right.
    """
    try:
        return stage(*arguments)
    except StoreError:
        raise
    except ExitBenchError as error:
        note(f"{what}: failed: {error}")
        return f"failed: {error}"
    except Exception as error:  # plugins may raise anything
        note(f"{what}: failed\n{traceback.format_exc()}")
        return f"failed: {type(error).__name__}: {error}"


def out_of_memory(error: Exception) -> bool:
    """Whether it says that memory ran out, of this machine or of its GPU."""
    refused = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # by torch's CPU allocator
    return refused or isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
