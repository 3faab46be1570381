"""Dask: the stages of a run on local processes or on any Dask cluster. What travels is in ``graph``; nothing is pickled
but the name of the function that does the work.

The run decides what is ready and hands out as many stages as there are workers; Dask places them, notices workers that
die, and gives their stages to others.
"""

import logging
import os
import secrets
import socket
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from bench_core.errors import ClusterError, StoreError, UsageError, one_line
from bench_core.graph import Answer, Order, Stage, perform, read_answer, stage_request
from bench_core.progress import note, progress
from bench_core.store import Store

if TYPE_CHECKING:
    from distributed import Client, Future

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
_BETWEEN_CENSUSES = 1.0
_PATIENCE = 60.0  # until a file that another machine wrote is seen here
_CONNECT = "10s"
_TRIM, _TRIM_DEFAULT = "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_", 65536  # in Dask's settings
_START = 10.0  # seconds without a process that might become a worker
_ENDED = ("finished", "error", "cancelled")
_GONE = "what is finished is kept, the same command continues"


def require_dask(flag: str) -> None:
    """Raises ClusterError, which names ``flag``, where Dask isn't installed."""
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise ClusterError(f"{flag} needs dask: pip install 'exitbench[cluster]'") from error


def check_address(address: str) -> None:
    """Raises UsageError for what is no scheduler's address, such as one without a port; nobody is asked."""
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
    """A client of a scheduler in this process, with worker processes on loopback that end with it, however it ends."""
    require_dask("--jobs")
    from distributed import Client, LocalCluster

    _quiet()
    _let_workers_keep_memory()
    others = set(active_children())
    cluster = LocalCluster(
        n_workers=0,  # so that Ctrl-C finds a cluster to end, even while its workers start
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",  # a free port; none would be 8787, which a second run finds taken
        memory_limit=0,  # torch's memory is none that Dask could spill
        silence_logs=logging.CRITICAL,
        preload=["bench_core.worker_process"],
    )
    try:
        with Client(cluster, set_as_default=False) as client:
            cluster.scale(jobs)
            _await_worker(client, others)
            yield client
    except BaseException:  # Ctrl-C waits for no stage; files are written whole or not at all
        cluster.shutdown_on_close = False  # else it is tried again when Python ends, patiently
        for nanny in cluster.workers.values():
            nanny.close_gracefully()  # so that no worker is started again
        for worker in set(active_children()) - others:
            worker.kill()
        with suppress(AssertionError, TimeoutError):  # of a worker that was about to start
            cluster.close(timeout=1)
        raise
    cluster.close()


def _let_workers_keep_memory() -> None:
    """Undo Dask's default of giving freed memory back at once, with which half of a recording's time is page faults.

    glibc's own rule, which adapts to what is allocated, holds again; what somebody else set stays.
    """
    import dask

    if dask.config.get(_TRIM, None) == _TRIM_DEFAULT:
        dask.config.set({_TRIM: None})


def _await_worker(client: "Client", others: Set[BaseProcess]) -> None:
    """Wait for the first worker. Raises ClusterError where the processes that should become one are gone."""
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
    """A client of a running scheduler. Raises ClusterError where none answers."""
    require_dask("--scheduler")
    from distributed import Client

    _quiet()
    client = Client.__new__(Client)  # at hand before it connects, so that it is closed where it can't
    try:
        try:
            Client.__init__(client, address, timeout=_CONNECT, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            raise ClusterError(f"--scheduler {address}: no scheduler answers there ({error!s:.200})") from error
        yield client
    finally:
        with suppress(Exception):  # it may be gone
            client.close(timeout=1)


def _quiet() -> None:
    """What goes wrong is said in our own words."""
    import distributed  # noqa: F401  # sets the levels that are changed here

    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] in ("asyncio", "distributed", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def run_stages(client: "Client", stages: Sequence[Stage], order: Order, store: Store) -> dict[str, str]:
    """Run stages on a cluster's workers, each when what it needs is there.

    Returns:
        By subject, why stages failed, or couldn't be begun because another failed.

    Raises:
        ClusterError: the scheduler went away, or the workers keep their artifacts elsewhere.
        StoreError: the store can't be written to.
    """
    run = StagesUnderWay(client, order, store, {stage.name: stage for stage in stages})
    with progress("stages", len(stages), "stages", estimate=False) as advance:
        while run.waiting or run.running:
            try:
                run.count_workers()
                run.hand_out()
                ended = run.collect() + run.give_up()
            except _gone_errors() as error:
                raise ClusterError(f"the scheduler {run.place} went away; {_GONE}") from error
            advance(ended, run.remark())
            if not ended:
                time.sleep(_BETWEEN_LOOKS)
    return run.failed


def _gone_errors() -> tuple[type[Exception], ...]:
    from distributed import CancelledError

    return CancelledError, OSError


@dataclass
class StagesUnderWay:
    """Which stages wait, which are under way, and on what."""

    client: "Client"
    order: Order
    store: Store
    waiting: dict[str, Stage]
    running: dict[str, tuple[Stage, "Future[str]", float]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)  # by stage
    failed: dict[str, str] = field(default_factory=dict)  # by subject
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # by kind, of finished stages
    workers: set[str] = field(default_factory=set)  # addresses
    offered: set[str] = field(default_factory=set)  # Dask resources
    shares: dict[str, int] = field(default_factory=dict)  # of its host's cores, by worker
    at_once: int = 1  # stages that take as many threads as this process would
    counted: float = float("-inf")

    @property
    def place(self) -> str:
        """The scheduler's address."""
        return str(self.client.scheduler.address) if self.client.scheduler else ""

    def count_workers(self) -> None:
        """Look from time to time who is there, and share the cores of each host among its workers."""
        if self.client.status != "running":
            raise OSError(f"the client is {self.client.status}")
        now = time.monotonic()
        if now - self.counted < _BETWEEN_CENSUSES:
            return
        self.counted = now
        present = set(self.client.nthreads())
        for lost in sorted(self.workers - present):
            note(f"worker {lost} left; what it was doing is begun again")
        if present == self.workers:
            return
        found = {}
        for address, said in self.client.run(introduce, on_error="return").items():
            if isinstance(said, Exception) and not isinstance(said, OSError):  # that is one that left just now
                raise ClusterError(f"worker {address} can't take part: {type(said).__name__}: {said}")
            if not isinstance(said, Exception):
                found[address] = said
        self.workers = set(found)
        self.offered = {name for _, _, resources in found.values() for name in resources}
        cores = {address: (host, numbers) for address, (host, numbers, _) in found.items()}
        self.shares, self.at_once = share_cores(cores, torch.get_num_threads())

    def give_up(self) -> int:
        """Drop stages of what has failed, and those that need what a failed one should have made; how many."""
        before = len(self.waiting)
        for name, stage in list(self.waiting.items()):  # what a stage needs stands before it
            needed = (self.problems[needed] for needed in stage.after if needed in self.problems)
            if problem := self.failed.get(stage.subject) or next(needed, ""):
                self._fails(stage, problem)
                del self.waiting[name]
        return before - len(self.waiting)

    def _fails(self, stage: Stage, problem: str) -> None:
        self.problems[stage.name] = problem
        self.failed.setdefault(stage.subject, problem)

    def hand_out(self) -> None:
        """Begin stages while workers are free, those first that stand first."""
        for name, stage in list(self.waiting.items()):
            if len(self.running) < len(self.workers) and self._is_ready(stage):
                del self.waiting[name]
                self.running[name] = (stage, self._submit(stage), time.monotonic())

    def _is_ready(self, stage: Stage) -> bool:
        if any(needed in self.waiting or needed in self.running for needed in stage.after):
            return False
        under_way = sum(other.depends_on_threads for other, _, _ in self.running.values())
        return not stage.depends_on_threads or under_way < self.at_once

    def _submit(self, stage: Stage) -> "Future[str]":
        resources = {name: amount for name, amount in stage.resources.items() if name in self.offered}
        threads = torch.get_num_threads() if stage.depends_on_threads else self.shares
        request, key = stage_request(self.order, stage, threads), f"exitbench-{secrets.token_hex(8)}"
        return self.client.submit(work, request, key=key, pure=False, resources=resources or None)

    def collect(self) -> int:
        """Take the answers of the stages that ended since; how many."""
        ended = [name for name, (_, future, _) in self.running.items() if future.status in _ENDED]
        for name in ended:
            stage, future, start = self.running.pop(name)
            answer = _answer(future)
            for line in answer.said:
                note(line)
            if answer.stop:
                raise StoreError(answer.stop)
            if answer.problem:
                self._fails(stage, answer.problem)
            else:
                self._see(answer)
            self.seconds[stage.kind].append(time.monotonic() - start)
        return len(ended)

    def _see(self, answer: Answer) -> None:
        """Make sure that what a worker made is in this process's store; another machine's files may take a moment."""
        if self.store.url:
            return
        patience = time.monotonic() + _PATIENCE
        while answer.artifact and not self.store.path(*answer.artifact).exists():
            if time.monotonic() > patience:
                raise ClusterError(
                    f"a worker made {self.store.path(*answer.artifact)}, but it isn't here; "
                    "EXITBENCH_HOME must be a place that all machines share"
                )
            time.sleep(_BETWEEN_LOOKS)

    def remark(self) -> str:
        """What is running, how many wait, how long to go."""
        if not self.workers:
            return "no worker is there yet"
        running = f"running: {', '.join(self.running)}; " if self.running else ""
        return f"{running}{len(self.waiting)} waiting{self._time_to_go()}"

    def _time_to_go(self) -> str:
        """As long as finished stages of the same kind took, on the workers there are."""
        if not any(self.seconds.values()):
            return ""
        overall = mean(second for seconds in self.seconds.values() for second in seconds)
        now = time.monotonic()
        left = 0.0
        for stage, start in [(s, now) for s in self.waiting.values()] + [(s, t) for s, _, t in self.running.values()]:
            usual = mean(self.seconds[stage.kind]) if self.seconds[stage.kind] else overall
            left += max(0.0, usual - (now - start))
        return f"; about {duration(left / len(self.workers))} to go"


def _answer(future: "Future[str]") -> Answer:
    if future.status == "cancelled":
        raise OSError("its stages are cancelled")
    if future.status == "finished":
        return read_answer(future.result())
    error = future.exception()
    if type(error).__name__ == "KilledWorker":
        return Answer(problem="failed: every worker that tried it died (killed, or out of memory)")
    return Answer(problem=f"failed: {type(error).__name__}: {error}")


def work(request: str) -> str:
    """What a Dask worker is asked to call."""
    from distributed import get_worker

    return perform(request, get_worker().address)


def introduce(dask_worker: Any) -> tuple[str, list[int], list[str]]:
    """A worker's host, the cores that it may use, and the Dask resources that it offers."""
    return socket.gethostname(), sorted(os.sched_getaffinity(0)), list(dask_worker.state.total_resources)


def share_cores(found: Mapping[str, tuple[str, Sequence[int]]], threads: int) -> tuple[dict[str, int], int]:
    """How many threads each worker may use, by address, and how many stages of ``threads`` threads fit at once.

    Workers that may use the same cores of a host share them evenly.

    Args:
        found: host and cores of each worker.
    """
    together: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for address, (host, numbers) in found.items():
        together[host, tuple(numbers)].append(address)
    shares = {
        address: max(1, len(numbers) // len(addresses))
        for (_, numbers), addresses in together.items()
        for address in addresses
    }
    return shares, sum(max(1, len(numbers) // threads) for _, numbers in together)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever says it in few digits."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(1.0, seconds):.0f} s"
