"""Traces beside a board: where they lie, and whether they are the ones that its manifest names."""

from pathlib import Path

from bench_core.errors import UsageError
from bench_core.trace.files import load_trace
from bench_core.trace.trace import Trace
from bench_core.util.whole_folder import place_of

__all__ = ["kept_trace", "trace_name", "trace_path"]


def trace_path(results: Path, workload: str, split: str) -> Path:
    """Where the board in ``results`` keeps a trace."""
    return place_of(results, f"traces/{trace_name(workload, split)}")


def trace_name(workload: str, what: str) -> str:
    """Return the file name of a trace beside a board: of a split, or of corrupted samples of one."""
    return f"{workload}-{what}.safetensors"


def kept_trace(path: Path, digest: str | None) -> Trace:
    """The trace at ``path``.

    Args:
        digest: of its tensors, as the manifest has it; None where the manifest has none.

    Raises:
        TraceError: for a file that is missing or no trace.
        UsageError: for another trace than the manifest's.
    """
    trace = load_trace(path)
    if trace.digest != digest:
        raise UsageError(f"{path}: not the trace that the manifest names; restore it, or make the board again")
    return trace
