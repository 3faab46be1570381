"""Dask client: runs stages on local processes or on any Dask cluster.

Messages are JSON; only the names of the functions in ``worker_process`` are pickled. The run decides which stages are
ready and on which worker they run (``stages_under_way``); Dask delivers them and reports which workers exist.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from bench_core.errors import ClusterError, UsageError, one_line
from bench_core.run.dask.stages_under_way import StagesUnderWay, duration
from bench_core.run.dask.worker_shares import share_cores
from bench_core.run.dask.workers import Workers, kept_behind
from bench_core.run.plan import Limits
from bench_core.run.stages import Order, Stage, place_of
from bench_core.store.local import Store
from bench_core.util.progress import progress

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "StagesUnderWay",
    "check_address",
    "duration",
    "local_workers",
    "require_dask",
    "run_stages",
    "scheduler_at",
    "share_cores",
]

_BETWEEN_LOOKS = 0.05  # seconds
_CONNECT = "10s"
# Defaults of Dask that a local run undoes, and what takes their place; other values are the user's and stay.
_UNDONE: dict[str, tuple[object, object]] = {
    # Returning freed memory at once makes page faults half of a recording's time; None is glibc's adaptive rule.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": (65536, None),
    # Workers that are silent for minutes are killed, but code that holds the GIL is not at fault.
    "distributed.scheduler.worker-ttl": ("5 minutes", None),
    # A nanny whose new worker takes longer to start is dismissed for good.
    "distributed.deploy.lost-worker-timeout": ("15s", "1 day"),
}
_START = 10.0  # seconds without a process that could become a worker
_own_workers: "WeakKeyDictionary[Client, Callable[[], bool]]" = WeakKeyDictionary()  # whether more workers may appear


def require_dask(flag: str) -> None:
    """Raise ClusterError, naming ``flag``, if Dask is not installed."""
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise ClusterError(f"{flag} needs dask: pip install 'exitbench[cluster]'") from error


def check_address(address: str) -> None:
    """Raise UsageError if a scheduler's address is invalid, such as one without a port; does not connect."""
    from distributed.comm.addressing import get_address_host_port, parse_address

    try:
        if parse_address(address)[0] == "inproc":  # a scheduler in the calling process
            return
        port = get_address_host_port(address)[1]
        if not 0 < port < 65536:
            raise ValueError(f"port {port} is not in 1 .. 65535")
    except ValueError as error:
        line = f"--scheduler {address or repr(address)}: no address ({error!s:.200}); write tcp://HOST:PORT"
        raise UsageError(one_line(line)) from error


@contextmanager
def local_workers(jobs: int) -> Iterator["Client"]:
    """Yield a client of a scheduler in this process, with worker processes on loopback that always end with it."""
    require_dask("--jobs")
    from distributed import Client, LocalCluster

    _quiet()
    _undo_defaults()
    others = set(active_children())
    cluster = LocalCluster(
        n_workers=0,  # so that Ctrl-C finds a cluster to close, even during the start of its workers
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",  # a free port; the default 8787 may be taken by another run
        memory_limit=0,  # Dask cannot spill torch's memory
        silence_logs=logging.CRITICAL,
        preload=["bench_core.run.dask.worker_process"],
    )
    try:
        with Client(cluster, set_as_default=False) as client:
            _own_workers[client] = lambda: bool(set(active_children()) - others)
            cluster.scale(jobs)
            _await_worker(client, others)
            yield client
    except BaseException:  # Ctrl-C does not wait for stages; files are written atomically
        cluster.shutdown_on_close = False  # otherwise Python's exit would retry, slowly
        for nanny in cluster.workers.values():
            nanny.close_gracefully()  # so that no worker is restarted
        for worker in set(active_children()) - others:
            worker.kill()
        with suppress(AssertionError, TimeoutError):  # from a worker that was starting
            cluster.close(timeout=1)
        raise
    cluster.close()


def _undo_defaults() -> None:
    """Replace Dask's defaults in ``_UNDONE``."""
    import dask

    for setting, (default, ours) in _UNDONE.items():
        if dask.config.get(setting, None) == default:
            dask.config.set({setting: ours})


def _await_worker(client: "Client", others: Set[BaseProcess]) -> None:
    """Wait for the first worker; raise ClusterError if the processes that should become one are gone."""
    patience = time.monotonic() + _START
    while not client.nthreads():
        if set(active_children()) - others:
            patience = time.monotonic() + _START
        elif time.monotonic() > patience:
            raise ClusterError(
                "--jobs: the worker processes ended as soon as they began; a script that calls run_suite with jobs "
                'does so below `if __name__ == "__main__":`'
            )
        time.sleep(_BETWEEN_LOOKS)


@contextmanager
def scheduler_at(address: str) -> Iterator["Client"]:
    """Yield a client of a running scheduler; raise ClusterError if none answers."""
    require_dask("--scheduler")
    from distributed import Client

    _quiet()
    client = Client.__new__(Client)  # exists before it connects, so that it can be closed if that fails
    try:
        try:
            Client.__init__(client, address, timeout=_CONNECT, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            raise ClusterError(f"--scheduler {address}: no scheduler answers there ({error!s:.200})") from error
        yield client
    finally:
        with suppress(Exception):  # the scheduler may be gone
            client.close(timeout=1)


def _quiet() -> None:
    """Silence Dask's logging; errors are reported in our own messages."""
    import distributed  # noqa: F401  # sets the levels that are changed here

    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] in ("asyncio", "distributed", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def run_stages(
    client: "Client", stages: Sequence[Stage], order: Order, store: Store, *, limits: Limits | None = None
) -> dict[str, str]:
    """Run stages on a cluster's workers, each as soon as its inputs exist.

    Args:
        client: from ``local_workers`` or ``scheduler_at``.
        stages: ordered so that each comes after what it needs.
        order: what they have in common.
        store: where their artifacts are expected.
        limits: time limits in minutes, after which the worker is killed and the stage fails; None for no limit.

    Returns:
        By subject, why stages failed, or could not start because another failed.

    Raises:
        ClusterError: the scheduler is gone or does not answer, no worker appeared, or the workers store their artifacts
            elsewhere.
        StoreError: the store cannot be written to.
    """
    workers = Workers(
        client,
        torch.get_num_threads(),
        token=order.token,
        place=place_of(order.token),
        may_come=_own_workers.get(client),
    )
    run = StagesUnderWay(client, order, store, {stage.name: stage for stage in stages}, workers, limits)
    with progress("stages", len(stages), "stages", estimate=False) as advance:
        try:
            run.listen()
            while run.left:
                ended = run.step()
                advance(ended, run.remark())
                if not ended:
                    time.sleep(_BETWEEN_LOOKS)
        except _gone_errors() as error:
            place = client.scheduler.address if client.scheduler else ""
            raise kept_behind(f"the scheduler {place} went away") from error
        finally:
            run.withdraw()
    return run.failed


def _gone_errors() -> tuple[type[Exception], ...]:
    from distributed import CancelledError

    return CancelledError, OSError
