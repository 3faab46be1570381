"""The stages of a run that wait, and those that are under way on Dask workers: placed, watched, begun again, given up.

A stage is placed on a worker that is free; what is ready and finds none stands in the scheduler's queue as a task that
no worker can take, so that an adaptive cluster sees how many workers are wanted. Answers and notes arrive as Dask's
events, so that nothing has to be fetched from a worker that may be gone.
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

DEATHS = 3  # workers that may die of a stage before it fails
_TRIES = 50  # times that a stage is begun, whatever for
_WANTED = {f"{SLOT}-wanted": 1.0}  # which no worker has
_PATIENCE = 60.0  # seconds until a file that another machine wrote is seen here
_LATE = 5.0  # seconds that an answer may come after its stage's end


@dataclass
class _Attempt:
    """A stage that is under way: on which worker, since when, and what was heard of it."""

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
    """Which stages wait, which are under way, and on what.

    Attributes:
        limits: minutes that stages may take on a worker; None for no limit.
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
    _keys: dict[str, _Attempt] = field(default_factory=dict)  # by key, also of attempts that were given up
    _wanted: "dict[str, Future[str]]" = field(default_factory=dict)  # by stage
    _deaths: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _tries: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _take_over: set[str] = field(default_factory=set)  # stages whose locks a frozen worker may hold
    _events: "queue.SimpleQueue[dict[str, Any]]" = field(default_factory=queue.SimpleQueue)
    _topic: str = field(default_factory=lambda: f"{SLOT}-{secrets.token_hex(8)}")

    def __post_init__(self) -> None:
        self.left = len(self.waiting)

    def listen(self) -> None:
        """Begin to listen to what workers report, and to who leaves."""
        self.client.subscribe_topic(self._topic, lambda event: self._events.put(event[1]))
        self.client.subscribe_topic("all", lambda event: self._events.put(event[1]))

    def step(self) -> int:
        """Bring everything on by what has happened since; how many stages are done or have failed since the last step.

        Raises:
            ClusterError: the scheduler doesn't answer, or the workers can't do the work.
            StoreError: the store can't be written to.
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
        """Say what running stages have said, and note what they answered."""
        while not self._events.empty():
            event = self._events.get()
            if not isinstance(event, dict):
                continue
            if event.get("action") == "remove-worker":
                self.workers.left(str(event.get("worker")), expected=bool(event.get("expected")))
            attempt = self._keys.get(str(event.get("key")))
            if attempt is None or self.running.get(attempt.stage.name) is not attempt:  # another one has been begun
                continue
            if event["what"] == "begun":
                if attempt.pid not in (None, event["pid"]):
                    self._count_death(attempt)  # Dask began it again by itself, on a worker of the same address
                attempt.begun, attempt.pid, attempt.heard = self.workers.now, event["pid"], 0
            elif event["what"] == "said":
                attempt.heard += 1
                note(event["text"])
            elif event["what"] == "answer":
                attempt.answer = read_answer(event["text"])

    def look_around(self) -> None:
        """See who is there, and take back the stages of workers that are gone."""
        for lost in self.workers.look():
            again = [self._lose(attempt, lost) for attempt in self._on(lost.address)]
            if any(again) and not lost.frozen:
                note(f"worker {lost.address} left; what it was doing is begun again")
            elif lost.died and not lost.frozen:
                note(f"worker {lost.address} left")

    def _on(self, address: str) -> list[_Attempt]:
        return [one for one in self.running.values() if one.worker == address and one.answer is None]

    def _lose(self, attempt: _Attempt, lost: Lost) -> bool:
        """Take a stage back from a worker that is gone; whether it is begun again."""
        self._take_back(attempt)
        if lost.frozen:
            self._take_over.add(attempt.stage.name)
        if lost.died:
            self._count_death(attempt)
        return attempt.stage.name in self.waiting

    def _take_back(self, attempt: _Attempt) -> None:
        """Have an attempt forgotten; its stage waits again."""
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
        """End the workers of stages that have taken longer than the limit."""
        if self.limits is None:
            return
        for attempt in list(self.running.values()):
            worker = self.workers.known.get(attempt.worker)
            since = attempt.begun
            if since is None and worker is not None and worker.heard < attempt.placed:
                since = attempt.placed  # it hung before it could say that it began
            minutes = self.limits.strategy if attempt.stage.strategy else self.limits.stage
            if attempt.answer is None and since is not None and self.workers.now - since > 60.0 * minutes:
                if worker is not None and worker.ending is None:
                    self.workers.end(worker)
                self._give_up(attempt.stage, f"failed: didn't end within the limit of {minutes:g} minutes")

    def drop_hopeless(self) -> None:
        """Drop stages of what has failed, and those that need what a failed one should have made."""
        for name, stage in list(self.waiting.items()):  # what a stage needs stands before it
            needed = (self.problems[needed] for needed in stage.after if needed in self.problems)
            if problem := self.failed.get(stage.subject) or next(needed, ""):
                self._fails(stage, problem)
                del self.waiting[name]

    def hand_out(self) -> None:
        """Place stages on free workers, those first that stand first; the others that are ready are wanted."""
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
        """The free worker that suits best: what others may need is left to them."""
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
        return f"{SLOT}-{stage.kind}-{secrets.token_hex(8)}"  # Dask estimates by what stands before the last hyphen

    def _want(self, stages: list[Stage]) -> None:
        """Show the scheduler which stages are ready and find no worker."""
        names = {stage.name for stage in stages}
        for name in self._wanted.keys() - names:
            self._wanted.pop(name).release()
        for stage in stages:
            if stage.name not in self._wanted:
                self._wanted[stage.name] = self.client.submit(
                    work, "", "", "", "", key=self._key(stage), pure=False, resources=_WANTED
                )

    def collect(self) -> None:
        """Take the answers of the stages that ended since."""
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
                if self.workers.now - attempt.finished > _LATE:  # what it made is in the store
                    self._take_back(attempt)

    def _errs(self, attempt: _Attempt) -> None:
        """What Dask says of a stage that ended without an answer."""
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
        """Have a worker that holds old code started again, where a nanny can."""
        worker = self.workers.known.get(attempt.worker)
        if worker is not None and not worker.nanny:
            self._give_up(attempt.stage, f"failed: {answer.stale}; restart the worker {attempt.worker}")
            return
        self._take_back(attempt)
        if worker is not None and worker.ending is None:
            note(f"worker {attempt.worker}: {answer.stale}; its process is started again")
            self.workers.end(worker)

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
            time.sleep(0.05)

    def withdraw(self) -> None:
        """Have everything forgotten that isn't done; a worker finishes the stage that it is in."""
        for future in [attempt.future for attempt in self.running.values()] + list(self._wanted.values()):
            with suppress(Exception):  # the scheduler may be gone
                future.release()
        for topic in (self._topic, "all"):
            with suppress(Exception):
                self.client.unsubscribe_topic(topic)

    def remark(self) -> str:
        """What is running, how many wait, how long to go."""
        if not self.workers.usable():
            return "no worker is there"
        running = f"running: {', '.join(self.running)}; " if self.running else ""
        return f"{running}{len(self.waiting)} waiting{self._time_to_go()}"

    def _time_to_go(self) -> str:
        """As long as finished stages of the same kind took, on the workers there are."""
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
    """Return seconds, minutes or hours, whichever says it in few digits."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(1.0, seconds):.0f} s"
