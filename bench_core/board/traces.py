"""Traces stored with a board: their paths, and whether they match its manifest."""

from pathlib import Path

from bench_core.errors import UsageError
from bench_core.trace.files import load_trace
from bench_core.trace.trace import Trace
from bench_core.util.whole_folder import place_of

__all__ = ["kept_trace", "trace_name", "trace_path"]


def trace_path(results: Path, workload: str, split: str) -> Path:
    """Return the path of a trace stored with the board in ``results``."""
    return place_of(results, f"traces/{trace_name(workload, split)}")


def trace_name(workload: str, what: str) -> str:
    """Return the file name of a trace stored with a board: of a split, or of corrupted samples."""
    return f"{workload}-{what}.safetensors"


def kept_trace(path: Path, digest: str | None) -> Trace:
    """Load the trace at ``path`` and check it against the manifest.

    Args:
        path: of the trace file.
        digest: of its tensors, from the manifest; None if the manifest has none.

    Raises:
        TraceError: the file is missing or not a trace.
        UsageError: the trace differs from the manifest's.
    """
    trace = load_trace(path)
    if trace.digest != digest:
        raise UsageError(f"{path}: not the trace that the manifest names; restore it, or make the board again")
    return trace
