"""Data folders: one per data set, in ``$EXITBENCH_DATA`` or the user's exitbench folder."""

import os
from pathlib import Path

from bench_core.store.local import default_root, home_path

__all__ = ["data_folder", "data_root"]


def data_root() -> Path:
    """Return ``$EXITBENCH_DATA``, or ``data`` in ``$EXITBENCH_HOME`` or the platform's cache folder.

    Raises UsageError if no home is known; ``~`` is expanded.
    """
    if place := os.environ.get("EXITBENCH_DATA"):
        return home_path("EXITBENCH_DATA", place)
    return default_root() / "data"


def data_folder(name: str) -> Path:
    """Return the folder of the data set called ``name``, which may not exist."""
    return data_root() / name
