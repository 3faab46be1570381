"""The worker's side of a run on Dask: introduce itself, carry out a stage, report while it runs, end when told to.

Nothing here imports Dask: the worker object comes as an argument (``dask_worker``), as Dask hands it to functions that
are called outside of tasks. Functions travel by name, everything else as JSON.
"""

import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

__all__ = ["SLOT", "dask_setup", "end_worker", "introduce", "leave", "offer", "standstill", "work"]

SLOT = "exitbench"  # Dask resource of which each worker has one: it carries out one stage at a time
_present: dict[str, Any] = {}  # Dask workers of this process, by address


def dask_setup(_worker: object) -> None:
    """Leave Ctrl-C to the process that started this one. Dask calls this in the worker's main thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def introduce(dask_worker: Any, token: str = "", place: str = "") -> dict[str, Any]:
    """Return a worker's host, process id, and the cores that it may use.

    Args:
        dask_worker: the worker.
        token: the name under which orders refer to ``place``; empty for none.
        place: a store's URL with its password, which orders don't carry.
    """
    from bench_core.run.stages import remember_place  # heavy, and so no part of the first stage

    if token:
        remember_place(token, place)
    _present[dask_worker.address] = dask_worker
    return {"host": socket.gethostname(), "pid": os.getpid(), "cores": sorted(os.sched_getaffinity(0))}


async def offer(resources: dict[str, float], dask_worker: Any) -> None:
    """Have a worker offer Dask resources, beside those that it was started with."""
    await dask_worker.set_resources(**resources)


def work(request: str, address: str, topic: str, key: str) -> str:
    """Carry out a stage. What happens is reported as events of ``topic`` while it happens, the answer too.

    Args:
        request: the stage, as ``stage_request`` returns it.
        address: the worker's own.
        topic: of Dask's events.
        key: names this attempt at the stage in events.

    Returns:
        The answer, as ``read_answer`` reads it.
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
    """End the worker process of a nanny, which then starts a new one.

    Args:
        dask_worker: the nanny.
        only_stopped: leave a process alone that isn't stopped (SIGSTOP).

    Returns:
        ``ended``, ``running`` for a process that was left alone, or ``gone``.
    """
    if not dask_worker.pid:
        return "gone"
    if only_stopped and not standstill(dask_worker.pid):
        return "running"
    os.kill(dask_worker.pid, signal.SIGKILL)
    return "ended"


def leave() -> None:
    """End a worker process that has no nanny, once this call is answered."""
    threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGKILL]).start()


def standstill(pid: int) -> bool:
    """Whether a process of this machine is stopped, as by SIGSTOP or Slurm's ``scontrol suspend``."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False
