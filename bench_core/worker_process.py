"""What a worker process of ``exitbench run --jobs`` does first: leave Ctrl-C to the process that started it."""

import signal

__all__ = ["dask_setup"]


def dask_setup(_worker: object) -> None:
    """Called by Dask in the worker's main thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
