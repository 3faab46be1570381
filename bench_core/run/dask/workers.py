"""The workers of a Dask cluster: which exist, which respond, which may run what; killed if necessary.

No call here waits for the scheduler or a worker, since either may be frozen: requests run in threads of their own,
and those that take too long are reported.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bench_core.errors import ClusterError, UsageError, one_line
from bench_core.run.dask.worker_process import SLOT, end_worker, introduce, leave, offer, standstill
from bench_core.run.dask.worker_shares import full_share_holders, share_cores
from bench_core.util.progress import note

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Lost", "Worker", "Workers", "kept_behind"]

T = TypeVar("T")
_BETWEEN_CENSUSES = 1.0  # seconds, as are all below
_SCHEDULER = 60.0  # until an unresponsive scheduler is given up
_SAID = 60.0  # until an unresponsive worker is checked, and between checks
_REMOVED = 300.0  # until a worker without any sign of life is given up, as in Dask
_ENDING = 30.0  # until a worker that is being killed must be gone
_STARTING = 120.0  # that new workers of this process may take
_NONE_STARTS = 10.0  # without a process that could become one
_LONGEST_TICK = 5.0  # of the clock: time while this process is stopped does not count
_MINUTES = "EXITBENCH_WORKER_MINUTES"
_MINUTES_DEFAULT = 60.0


def kept_behind(what: str) -> ClusterError:
    """Return the error for a run that can be continued."""
    return ClusterError(f"{what}; what is finished is kept, the same command continues")


class _Question(Generic[T]):
    """A call in its own thread, so that the caller need not wait for it."""

    def __init__(self, ask: Callable[[], T], now: float) -> None:
        """Start the call."""
        self.asked = now
        self.error: Exception | None = None
        self._answers: list[T] = []
        self._thread = threading.Thread(target=self._ask, args=[ask], daemon=True)
        self._thread.start()

    def _ask(self, ask: Callable[[], T]) -> None:
        try:
            self._answers.append(ask())
        except Exception as error:  # the connection may fail in many ways
            self.error = error

    @property
    def done(self) -> bool:
        """Whether the call has returned or raised."""
        return bool(self._answers) or self.error is not None

    @property
    def answer(self) -> T:
        """The call's result; raises what the call raised."""
        if self.error is not None:
            raise self.error
        return self._answers[0]


@dataclass
class Worker:
    """A worker process.

    Attributes:
        address: Dask's; a new process has a new one.
        nanny: whether a process supervises it, which can kill it and start another.
        offered: Dask resources that it was started with.
        host: as it introduced itself.
        pid: as it introduced itself; 0 before that.
        cores: as it introduced itself.
        threads: its share of its host's cores.
        full: whether it may run stages that use as many threads as the run's own process.
        ready: whether it offers the Dask resources by which stages are assigned.
        heard: when it last showed a sign of life.
        last_seen: Dask's timestamp of that sign.
        asked_after: when it was last checked.
        silent: seconds since its last sign of life.
        given_up: it does not respond and cannot be killed; it gets no stage unless it responds again.
        ending: since when it is being killed; it gets no stage.
        missed: number of successive listings without it.
        busy: number of tasks of other runs.
        questions: pending calls.
    """

    address: str
    nanny: bool = False
    offered: Mapping[str, float] = field(default_factory=dict)
    host: str = ""
    pid: int = 0
    cores: tuple[int, ...] = ()
    threads: int = 1
    full: bool = False
    ready: bool = False
    heard: float = 0.0
    last_seen: float = 0.0
    asked_after: float = 0.0
    silent: float = 0.0
    given_up: bool = False
    ending: float | None = None
    missed: int = 0
    busy: int = 0
    questions: dict[str, "_Question[Any]"] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether it may get a stage."""
        return self.ready and not self.given_up and self.ending is None


@dataclass(frozen=True)
class Lost:
    """A worker that is gone or will not respond again.

    Attributes:
        address: Dask's.
        died: whether it was killed, crashed or stopped responding, rather than having been asked to leave.
        frozen: whether its process may still exist, with its locks.
    """

    address: str
    died: bool
    frozen: bool = False


class Workers:
    """The workers of a cluster, listed every second.

    Args:
        client: connected to the scheduler.
        threads: of stages whose last bits depend on their number.
        token: as for ``introduce``.
        place: as for ``introduce``.
        may_come: for workers started by this process, whether more may still appear; None for a scheduler's workers.
    """

    def __init__(
        self,
        client: "Client",
        threads: int,
        *,
        token: str = "",
        place: str = "",
        may_come: Callable[[], bool] | None = None,
    ) -> None:
        """Start without known workers; see the class for the arguments."""
        self.client = client
        self.threads = threads
        self.known: dict[str, Worker] = {}
        self.now = 0.0  # seconds of this run
        self._introduce = partial(introduce, token=token, place=place)
        self._may_come = may_come
        self._left: dict[str, bool] = {}  # by address, whether it was asked to leave
        self._real = time.monotonic()
        self._census: _Question[tuple[Mapping[str, Any], Mapping[str, Any]]] | None = None
        self._counted = float("-inf")
        self._last_usable = 0.0
        self._said = 0.0
        self._patience = _patience() if may_come is None else None

    @property
    def full_share(self) -> str:
        """Dask resource of workers that may run stages of this many threads."""
        return f"{SLOT}-{self.threads}-threads"

    def usable(self) -> list[Worker]:
        """Return the workers that may get a stage."""
        return [worker for worker in self.known.values() if worker.usable]

    def left(self, address: str, *, expected: bool) -> None:
        """Record that a worker left; ``expected`` if it was asked to, as at the end of its lifetime."""
        self._left[address] = expected

    def look(self) -> list[Lost]:
        """Update everything without waiting; return the workers lost since.

        Raises:
            ClusterError: the scheduler does not answer, a worker cannot take part, or no worker has existed for long.
        """
        real = time.monotonic()
        self.now += min(real - self._real, _LONGEST_TICK)
        self._real = real
        lost = self._ask_scheduler()
        for worker in self.known.values():
            self._settle(worker)
        self._share()
        lost += self._ask_after()
        self._refuse_to_wait_for_ever()
        return lost

    def end(self, worker: Worker) -> None:
        """Start killing a worker's process; a nanny starts another. Later calls of ``look`` return it as lost."""
        worker.ending = self.now
        nanny, address, client = worker.nanny, worker.address, self.client
        function = end_worker if nanny else leave
        call = partial(client.run, function, workers=[address], nanny=nanny, on_error="return")
        worker.questions["end"] = _Question(call, self.now)

    # --- listing the workers ------------------------------------------------------------------------------------------

    def _ask_scheduler(self) -> list[Lost]:
        if self.client.status != "running":
            raise OSError(f"the client is {self.client.status}")
        if self._census is None:
            if self.now - self._counted >= _BETWEEN_CENSUSES:
                self._census = _Question(self._found, self.now)
            return []
        if not self._census.done:
            if self.now - self._census.asked > _SCHEDULER:
                raise kept_behind(f"the scheduler {self._place} has not answered for {_SCHEDULER:.0f} s")
            return []
        census, self._census, self._counted = self._census, None, self.now
        return self._compare(*census.answer)

    @property
    def _place(self) -> str:
        return str(self.client.scheduler.address) if self.client.scheduler else ""

    def _found(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return dict(self.client.scheduler_info(n_workers=-1)["workers"]), self.client.processing()

    def _compare(self, present: Mapping[str, Any], processing: Mapping[str, Any]) -> list[Lost]:
        left, self._left = self._left, {}
        lost = []
        for address, worker in list(self.known.items()):
            worker.missed += 1
            if address in left or (address not in present and worker.missed > 1):
                del self.known[address]  # if the address is present, it belongs to another process
                lost.append(Lost(address, died=not left.get(address, False)))
        for address, facts in present.items():
            worker = self.known.setdefault(address, Worker(address, heard=self.now, asked_after=self.now))
            worker.missed = 0
            worker.nanny = bool(facts.get("nanny"))
            worker.offered = worker.offered or dict(facts.get("resources") or {})
            worker.busy = sum(not str(key).startswith(SLOT) for key in processing.get(address, ()))
            if facts["last_seen"] != worker.last_seen:
                worker.last_seen, worker.heard, worker.asked_after = facts["last_seen"], self.now, self.now
                worker.given_up = False
            worker.silent = self.now - worker.heard
        return lost

    def _settle(self, worker: Worker) -> None:
        """Have a new worker introduce itself."""
        call = partial(self.client.run, workers=[worker.address], on_error="return")
        if not worker.pid and "who" not in worker.questions:
            worker.questions["who"] = _Question(partial(call, self._introduce), self.now)
        if (asked := worker.questions.get("who")) and asked.done and not worker.pid:
            said = _answered(asked, worker)
            if said is None:
                del worker.questions["who"]
                return
            worker.host, worker.pid, worker.cores = said["host"], said["pid"], tuple(said["cores"])

    def _share(self) -> None:
        """Share cores, and have workers offer the resources by which stages are assigned."""
        introduced = {worker.address: worker for worker in self.known.values() if worker.pid}
        alive = {a: (w.host, w.cores) for a, w in introduced.items() if not w.given_up and w.ending is None}
        shares, _ = share_cores(alive, self.threads)
        holders = full_share_holders(alive, self.threads, {a: w.full for a, w in introduced.items()})
        for address, worker in introduced.items():
            worker.threads = shares.get(address, worker.threads)
            wanted = {SLOT: 1.0, **({self.full_share: 1.0} if worker.full or address in holders else {})}
            asked = worker.questions.get("offer")
            if asked is None and (not worker.ready or (address in holders and not worker.full)):
                call = partial(self.client.run, offer, wanted, workers=[address], on_error="return")
                worker.questions["offer"] = _Question(call, self.now)
            elif asked is not None and asked.done:
                del worker.questions["offer"]
                if _answered(asked, worker, none="done") is not None:
                    worker.ready, worker.full = True, worker.full or address in holders

    # --- unresponsive workers -----------------------------------------------------------------------------------------

    def _ask_after(self) -> list[Lost]:
        """Check silent workers, and give up those that cannot respond."""
        lost = []
        for worker in self.known.values():
            if worker.ending is not None:
                if self.now - worker.ending > _ENDING and not worker.given_up:
                    worker.given_up = True
                    note(f"worker {worker.address} can't be ended; no stage is given to it")
                continue
            if worker.given_up:
                continue
            lost += self._hear_of(worker)
            if self.now - worker.asked_after > _SAID and "state" not in worker.questions:
                worker.asked_after = self.now
                call = partial(end_worker, only_stopped=True)
                ask = partial(self.client.run, call, workers=[worker.address], nanny=True, on_error="return")
                worker.questions["state"] = _Question(ask if worker.nanny else dict, self.now)
        return lost

    def _hear_of(self, worker: Worker) -> list[Lost]:
        """Handle the state of a silent worker's process: stopped (it is killed), running, or unknown."""
        asked = worker.questions.get("state")
        if asked is None or (not asked.done and self.now - asked.asked < _SAID / 2):
            return []
        del worker.questions["state"]
        said = asked.answer.get(worker.address) if asked.done and asked.error is None else None
        line = f"worker {worker.address} has not answered for {worker.silent:.0f} s"
        if said in ("ended", "gone"):
            note(f"{line}: its process was stopped and is ended; its nanny starts another")
            worker.ending = self.now
        elif said == "running":
            note(f"{line}: it runs, in code that doesn't come back to Python")
        elif worker.silent > _REMOVED or _stopped_here(worker):
            note(f"{line} and can't be ended; what it was doing is begun again elsewhere")
            worker.given_up = True
            return [Lost(worker.address, died=True, frozen=True)]
        else:
            note(f"{line}; it is given up after {_REMOVED:.0f} s")
        return []

    def _refuse_to_wait_for_ever(self) -> None:
        if self.usable() or any(w.pid and w.ending is None and not w.given_up for w in self.known.values()):
            self._last_usable = self._said = self.now
            return
        waited = self.now - self._last_usable
        if self._may_come is not None:
            if waited > _STARTING or (waited > _NONE_STARTS and not self._may_come()):
                raise kept_behind(f"--jobs: no worker process has been there for {waited:.0f} s")
        elif self._patience is not None and waited > self._patience:
            raise kept_behind(
                f"the scheduler {self._place} has had no worker for {waited / 60:g} min ({_MINUTES} sets for how long "
                "to wait)"
            )
        elif self.now - self._said > _SAID:
            self._said = self.now
            note(f"no worker is there; waiting for one, {waited:.0f} s so far")


def _answered(asked: "_Question[Any]", worker: Worker, none: Any = None) -> Any:
    """Return a worker's answer, ``none`` for None; None if it is gone. Raise ClusterError for a worker's error."""
    if asked.error is not None or worker.address not in asked.answer:
        return None
    said = asked.answer[worker.address]
    said = none if said is None else said
    if isinstance(said, Exception) and not isinstance(said, OSError):
        raise ClusterError(one_line(f"worker {worker.address} can't take part: {type(said).__name__}: {said!s:.200}"))
    return None if isinstance(said, Exception) else said


def _stopped_here(worker: Worker) -> bool:
    """Return whether a worker's process is on this machine and stopped."""
    return worker.host == socket.gethostname() and standstill(worker.pid)


def _patience() -> float:
    """Return how many seconds a run waits for a scheduler's workers; raise UsageError for an invalid setting."""
    said = os.environ.get(_MINUTES, "")
    try:
        minutes = float(said or _MINUTES_DEFAULT)
        if not minutes > 0:
            raise ValueError
    except ValueError as error:
        raise UsageError(one_line(f"{_MINUTES}={said}: not a number of minutes above 0")) from error
    return 60.0 * minutes
