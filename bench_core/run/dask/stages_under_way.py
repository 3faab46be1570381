"""The waiting and running stages of a run on Dask workers: assignment, monitoring, retries, failures.

A stage is assigned to a free worker. Stages that are ready without a free worker are queued at the scheduler as tasks
that no worker can take, so that an adaptive cluster sees how many workers are needed. Answers and notes arrive as
Dask events, so nothing has to be fetched from a worker that may be gone.
"""

import queue
import secrets
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import mean
from typing import TYPE_CHECKING, Any

from bench_core.errors import ClusterError, StoreError, one_line
from bench_core.run.dask.worker_process import SLOT, work
from bench_core.run.dask.workers import Lost, Worker, Workers
from bench_core.run.plan import Limits
from bench_core.run.stages import Answer, Order, Stage, read_answer, stage_request
from bench_core.store.local import Store
from bench_core.util.progress import note

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["DEATHS", "StagesUnderWay", "duration"]

DEATHS = 3  # workers that may die running a stage before it fails
_TRIES = 50  # maximum number of attempts at a stage, for any reason
_WANTED = {f"{SLOT}-wanted": 1.0}  # which no worker offers
_PATIENCE = 60.0  # seconds until a file written by another machine is visible here
_LATE = 5.0  # seconds that an answer may arrive after its stage ended


@dataclass
class _Attempt:
    """A running stage: its worker, start and messages."""

    stage: Stage
    worker: str
    future: "Future[str]"
    placed: float
    begun: float | None = None
    pid: int | None = None
    heard: int = 0  # lines
    answer: Answer | None = None
    finished: float | None = None


@dataclass
class StagesUnderWay:
    """The waiting and running stages, with their workers.

    Attributes:
        client: connected to the scheduler.
        order: what the stages have in common.
        store: where their artifacts are expected.
        waiting: stages by name, each after what it needs.
        workers: of the cluster.
        limits: time limits of stages in minutes; None for no limit.
        running: attempts by stage.
        problems: by stage, why it failed.
        failed: by subject, why it failed.
        seconds: durations of finished stages by kind.
        left: number of waiting and running stages.
    """

    client: "Client"
    order: Order
    store: Store
    waiting: dict[str, Stage]
    workers: Workers
    limits: Limits | None = None
    running: dict[str, _Attempt] = field(default_factory=dict)  # by stage
    problems: dict[str, str] = field(default_factory=dict)  # by stage
    failed: dict[str, str] = field(default_factory=dict)  # by subject
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # by kind, of finished stages
    left: int = 0
    _keys: dict[str, _Attempt] = field(default_factory=dict)  # by key, including abandoned attempts
    _wanted: "dict[str, Future[str]]" = field(default_factory=dict)  # by stage
    _deaths: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _tries: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _take_over: set[str] = field(default_factory=set)  # stages whose locks may be held by a frozen worker
    _events: "queue.SimpleQueue[dict[str, Any]]" = field(default_factory=queue.SimpleQueue)
    _topic: str = field(default_factory=lambda: f"{SLOT}-{secrets.token_hex(8)}")

    def __post_init__(self) -> None:
        """Count the stages."""
        self.left = len(self.waiting)

    def listen(self) -> None:
        """Subscribe to the workers' reports and to workers leaving."""
        self.client.subscribe_topic(self._topic, lambda event: self._events.put(event[1]))
        self.client.subscribe_topic("all", lambda event: self._events.put(event[1]))

    def step(self) -> int:
        """Process everything that happened; return how many stages finished or failed since the last step.

        Raises:
            ClusterError: the scheduler does not answer, or the workers cannot do the work.
            StoreError: the store cannot be written to.
            OSError: the connection to the scheduler broke.
        """
        self.hear()
        self.look_around()
        self.collect()
        self.end_overdue()
        self.drop_hopeless()
        self.hand_out()
        before, self.left = self.left, len(self.waiting) + len(self.running)
        return before - self.left

    def hear(self) -> None:
        """Print notes of running stages, and record their answers."""
        while not self._events.empty():
            event = self._events.get()
            if not isinstance(event, dict):
                continue
            if event.get("action") == "remove-worker":
                self.workers.left(str(event.get("worker")), expected=bool(event.get("expected")))
            attempt = self._keys.get(str(event.get("key")))
            if attempt is None or self.running.get(attempt.stage.name) is not attempt:  # superseded by another attempt
                continue
            if event["what"] == "begun":
                if attempt.pid not in (None, event["pid"]):
                    self._count_death(attempt)  # Dask restarted it on its own, on a worker with the same address
                attempt.begun, attempt.pid, attempt.heard = self.workers.now, event["pid"], 0
            elif event["what"] == "said":
                attempt.heard += 1
                note(event["text"])
            elif event["what"] == "answer":
                attempt.answer = read_answer(event["text"])

    def look_around(self) -> None:
        """Update the list of workers, and take back the stages of workers that are gone."""
        for lost in self.workers.look():
            again = [self._lose(attempt, lost) for attempt in self._on(lost.address)]
            if any(again) and not lost.frozen:
                note(f"worker {lost.address} left; what it was doing is begun again")
            elif lost.died and not lost.frozen:
                note(f"worker {lost.address} left")

    def _on(self, address: str) -> list[_Attempt]:
        return [one for one in self.running.values() if one.worker == address and one.answer is None]

    def _lose(self, attempt: _Attempt, lost: Lost) -> bool:
        """Take a stage back from a lost worker; return whether it will be retried."""
        self._take_back(attempt)
        if lost.frozen:
            self._take_over.add(attempt.stage.name)
        if lost.died:
            self._count_death(attempt)
        return attempt.stage.name in self.waiting

    def _take_back(self, attempt: _Attempt) -> None:
        """Abandon an attempt; its stage waits again."""
        attempt.future.release()
        self.running.pop(attempt.stage.name, None)
        self.waiting = {attempt.stage.name: attempt.stage, **self.waiting}
        if self._tries[attempt.stage.name] >= _TRIES:
            self._give_up(attempt.stage, f"failed: begun {_TRIES} times, and its worker left each time")

    def _count_death(self, attempt: _Attempt) -> None:
        name = attempt.stage.name
        self._deaths[name] += 1
        if self._deaths[name] >= DEATHS:
            self._give_up(attempt.stage, f"failed: its worker died {DEATHS} times (killed, crashed, or out of memory)")

    def _give_up(self, stage: Stage, problem: str) -> None:
        if (attempt := self.running.pop(stage.name, None)) is not None:
            attempt.future.release()
        self.waiting.pop(stage.name, None)
        note(f"{stage.name}: {problem}")
        self._fails(stage, problem)

    def _fails(self, stage: Stage, problem: str) -> None:
        self.problems[stage.name] = problem
        self.failed.setdefault(stage.subject, problem)

    def end_overdue(self) -> None:
        """Kill the workers of stages that exceed the time limit."""
        if self.limits is None:
            return
        for attempt in list(self.running.values()):
            worker = self.workers.known.get(attempt.worker)
            since = attempt.begun
            if since is None and worker is not None and worker.heard < attempt.placed:
                since = attempt.placed  # it hung before it could report its start
            minutes = self.limits.strategy if attempt.stage.strategy else self.limits.stage
            if attempt.answer is None and since is not None and self.workers.now - since > 60.0 * minutes:
                if worker is not None and worker.ending is None:
                    self.workers.end(worker)
                self._give_up(attempt.stage, f"failed: didn't end within the limit of {minutes:g} minutes")

    def drop_hopeless(self) -> None:
        """Drop stages of failed subjects, and those that need the result of a failed stage."""
        for name, stage in list(self.waiting.items()):  # a stage comes after those it needs
            needed = (self.problems[needed] for needed in stage.after if needed in self.problems)
            if problem := self.failed.get(stage.subject) or next(needed, ""):
                self._fails(stage, problem)
                del self.waiting[name]

    def hand_out(self) -> None:
        """Assign stages to free workers, in order; request workers for the other ready stages."""
        taken = {attempt.worker for attempt in self.running.values()}
        free = [worker for worker in self.workers.usable() if worker.address not in taken]
        ready = [stage for stage in self.waiting.values() if self._is_ready(stage)]
        left = []
        for stage in ready:
            worker = self._best(stage, free)
            if worker is None:
                left.append(stage)
                continue
            free.remove(worker)
            del self.waiting[stage.name]
            self._place(stage, worker)
        self._want(left)

    def _is_ready(self, stage: Stage) -> bool:
        return not any(needed in self.waiting or needed in self.running for needed in stage.after)

    def _best(self, stage: Stage, free: list[Worker]) -> Worker | None:
        """Return the most suitable free worker, leaving scarce resources to stages that may need them."""
        offered = {name for worker in self.workers.usable() for name in worker.offered}
        asked = {name for name in stage.resources if name in offered}
        suited = [
            worker
            for worker in free
            if asked <= worker.offered.keys() and (worker.full or not stage.depends_on_threads)
        ]
        return min(suited, key=lambda worker: (worker.busy, len(worker.offered), worker.full), default=None)

    def _place(self, stage: Stage, worker: Worker) -> None:
        threads = self.workers.threads if stage.depends_on_threads else worker.threads
        resources = {name: amount for name, amount in stage.resources.items() if name in worker.offered}
        resources |= {SLOT: 1.0, **({self.workers.full_share: 1.0} if stage.depends_on_threads else {})}
        request = stage_request(self.order, stage, threads, take_over=stage.name in self._take_over)
        key = self._key(stage)
        future = self.client.submit(
            work,
            request,
            worker.address,
            self._topic,
            key,
            key=key,
            pure=False,
            workers=[worker.address],
            resources=resources,
        )
        attempt = _Attempt(stage, worker.address, future, self.workers.now)
        self.running[stage.name] = self._keys[key] = attempt
        self._tries[stage.name] += 1

    @staticmethod
    def _key(stage: Stage) -> str:
        return f"{SLOT}-{stage.kind}-{secrets.token_hex(8)}"  # Dask estimates by the text before the last hyphen

    def _want(self, stages: list[Stage]) -> None:
        """Show the scheduler which stages are ready but lack a worker."""
        names = {stage.name for stage in stages}
        for name in self._wanted.keys() - names:
            self._wanted.pop(name).release()
        for stage in stages:
            if stage.name not in self._wanted:
                self._wanted[stage.name] = self.client.submit(
                    work, "", "", "", "", key=self._key(stage), pure=False, resources=_WANTED
                )

    def collect(self) -> None:
        """Take the answers of stages that ended."""
        for attempt in list(self.running.values()):
            status = attempt.future.status
            if status == "cancelled":
                raise OSError("its stages are cancelled")
            if attempt.answer is not None:
                self._take(attempt, attempt.answer)
            elif status == "error":
                self._errs(attempt)
            elif status in ("finished", "lost"):
                attempt.finished = self.workers.now if attempt.finished is None else attempt.finished
                if self.workers.now - attempt.finished > _LATE:  # its artifacts are in the store
                    self._take_back(attempt)

    def _errs(self, attempt: _Attempt) -> None:
        """Handle Dask's error for a stage that ended without an answer."""
        error = attempt.future.exception()
        if type(error).__name__ == "KilledWorker":
            self._take_back(attempt)
            self._count_death(attempt)
        else:
            self._give_up(attempt.stage, one_line(f"failed: {type(error).__name__}: {error!s:.200}"))

    def _take(self, attempt: _Attempt, answer: Answer) -> None:
        for line in answer.said[attempt.heard :]:
            note(line)
        if answer.stop:
            raise StoreError(answer.stop)
        if answer.stale:
            self._renew(attempt, answer)
            return
        attempt.future.release()
        del self.running[attempt.stage.name]
        if answer.problem:
            self._fails(attempt.stage, answer.problem)
        else:
            self._see(answer)
        self.seconds[attempt.stage.kind].append(self.workers.now - (attempt.begun or attempt.placed))

    def _renew(self, attempt: _Attempt, answer: Answer) -> None:
        """Have the nanny of a worker with outdated code restart it, if it has one."""
        worker = self.workers.known.get(attempt.worker)
        if worker is not None and not worker.nanny:
            self._give_up(attempt.stage, f"failed: {answer.stale}; restart the worker {attempt.worker}")
            return
        self._take_back(attempt)
        if worker is not None and worker.ending is None:
            note(f"worker {attempt.worker}: {answer.stale}; its process is started again")
            self.workers.end(worker)

    def _see(self, answer: Answer) -> None:
        """Wait until an artifact made by a worker is in this process's store; other machines' files may appear late."""
        if self.store.url:
            return
        patience = time.monotonic() + _PATIENCE
        while answer.artifact and not self.store.path(*answer.artifact).exists():
            if time.monotonic() > patience:
                raise ClusterError(
                    f"a worker made {self.store.path(*answer.artifact)}, but it isn't here; "
                    "EXITBENCH_HOME must be a place that all machines share"
                )
            time.sleep(0.05)

    def withdraw(self) -> None:
        """Cancel everything unfinished; workers finish the stage that they are running."""
        for future in [attempt.future for attempt in self.running.values()] + list(self._wanted.values()):
            with suppress(Exception):  # the scheduler may be gone
                future.release()
        for topic in (self._topic, "all"):
            with suppress(Exception):
                self.client.unsubscribe_topic(topic)

    def remark(self) -> str:
        """Describe what is running, how many stages wait, and the remaining time."""
        if not self.workers.usable():
            return "no worker is there"
        running = f"running: {', '.join(self.running)}; " if self.running else ""
        return f"{running}{len(self.waiting)} waiting{self._time_to_go()}"

    def _time_to_go(self) -> str:
        """Estimate the remaining time from finished stages of the same kind and the number of workers."""
        if not any(self.seconds.values()):
            return ""
        overall = mean(second for seconds in self.seconds.values() for second in seconds)
        now = self.workers.now
        left = 0.0
        under_way = [(attempt.stage, attempt.placed) for attempt in self.running.values()]
        for stage, start in [(stage, now) for stage in self.waiting.values()] + under_way:
            usual = mean(self.seconds[stage.kind]) if self.seconds[stage.kind] else overall
            left += max(0.0, usual - (now - start))
        return f"; about {duration(left / len(self.workers.usable()))} to go"


def duration(seconds: float) -> str:
    """Format seconds in the unit, of seconds, minutes or hours, that needs few digits."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(1.0, seconds):.0f} s"
