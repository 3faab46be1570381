"""The worker's side of a run on Dask: introduce itself, run a stage, report during the run, end on request.

Nothing here imports Dask: the worker object comes as an argument (``dask_worker``), as Dask passes it to functions
called outside of tasks. Functions are sent by name, everything else as JSON.
"""

import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

__all__ = ["SLOT", "dask_setup", "end_worker", "introduce", "leave", "offer", "standstill", "work"]

SLOT = "exitbench"  # Dask resource, one per worker: it runs one stage at a time
_present: dict[str, Any] = {}  # Dask workers of this process, by address


def dask_setup(_worker: object) -> None:
    """Leave Ctrl-C to the process that started this one. Dask calls this in the worker's main thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def introduce(dask_worker: Any, token: str = "", place: str = "") -> dict[str, Any]:
    """Return a worker's host, process id, and the cores that it may use.

    Args:
        dask_worker: the worker.
        token: by which orders refer to ``place``; empty for none.
        place: a store's URL with its password, which orders do not contain.
    """
    from bench_core.run.stages import remember_place  # heavy: imported before the first stage

    if token:
        remember_place(token, place)
    _present[dask_worker.address] = dask_worker
    return {"host": socket.gethostname(), "pid": os.getpid(), "cores": sorted(os.sched_getaffinity(0))}


async def offer(resources: dict[str, float], dask_worker: Any) -> None:
    """Make a worker offer Dask resources in addition to those it was started with."""
    await dask_worker.set_resources(**resources)


def work(request: str, address: str, topic: str, key: str) -> str:
    """Run a stage; report its progress and answer as events of ``topic``.

    Args:
        request: the stage, from ``stage_request``.
        address: the worker's own.
        topic: of Dask's events.
        key: identifies this attempt at the stage in events.

    Returns:
        The answer, for ``read_answer``.
    """
    from bench_core.run.stages import perform

    worker, counter = _present[address], iter(range(1 << 62))

    def report(what: str, text: str = "") -> None:
        worker.log_event(topic, {"key": key, "what": what, "text": text, "number": next(counter), "pid": os.getpid()})

    report("begun")
    answer = perform(request, address, say=lambda line: report("said", line))
    report("answer", answer)
    return answer


def end_worker(dask_worker: Any, only_stopped: bool = False) -> str:
    """Kill the worker process of a nanny, which then starts a new one.

    Args:
        dask_worker: the nanny.
        only_stopped: spare a process that is not stopped (SIGSTOP).

    Returns:
        ``ended``, ``running`` for a process that was spared, or ``gone``.
    """
    if not dask_worker.pid:
        return "gone"
    if only_stopped and not standstill(dask_worker.pid):
        return "running"
    os.kill(dask_worker.pid, signal.SIGKILL)
    return "ended"


def leave() -> None:
    """Kill this worker process, which has no nanny, once this call is answered."""
    threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGKILL]).start()


def standstill(pid: int) -> bool:
    """Return whether a process of this machine is stopped, as by SIGSTOP or Slurm's ``scontrol suspend``."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False
