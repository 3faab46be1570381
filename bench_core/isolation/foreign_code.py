"""Runs plugin and user code, restoring the process afterwards; only a real Ctrl-C ends the run.

``sys.exit``, other exceptions that aren't errors, and code that never returns become a ``ForeignCodeError`` that names
the code's owner. Settings that the code changed are restored, and reported once. Its output goes to stderr, because
stdout holds results.
"""

import contextlib
import faulthandler
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

from bench_core.errors import ForeignCodeError
from bench_core.isolation.plugin_code import shipped_packages
from bench_core.isolation.process_state import restore, snapshot
from bench_core.util.progress import note

__all__ = ["STAGE_MINUTES", "STRATEGY_MINUTES", "end_stray_child", "foreign_code", "is_ours"]

STRATEGY_MINUTES = 60.0  # default limit for one call of a strategy, cost model or import
STAGE_MINUTES = 1440.0  # for a training, conversion or recording
_PATIENCE = 60.0  # seconds until a note says whose code is running
_GRACE = 30.0  # seconds that interrupted code has to end
_BETWEEN_LOOKS = 0.25
_end_process = os._exit
_told: set[str] = set()


class _TimeIsUp(BaseException):
    """Raised in foreign code that exceeds its time limit; no plugin's ``except Exception`` catches it."""


def end_stray_child() -> None:
    """End this process if foreign code forked it: after such code returns, only the parent may continue."""
    if _process and os.getpid() != _process[-1]:
        _end_process(1)


def is_ours(made: object) -> bool:
    """Return whether an object's class belongs to this package."""
    return type(made).__module__.partition(".")[0] in shipped_packages()


@dataclass
class _Running:
    """Foreign code in progress.

    Attributes:
        who: the owner of the code.
        limit: seconds.
        announced: whether its name has been reported, or need not be.
        start: value of the monotonic clock at the start, in seconds.
        interrupted: whether Ctrl-C arrived meanwhile.
        done: whether it has ended, in any way.
    """

    who: str
    limit: float
    announced: bool
    start: float = field(default_factory=time.monotonic)
    interrupted: bool = False
    done: bool = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start


_process: list[int] = []  # ids of the processes that entered foreign code, innermost last
_running: list[_Running] = []  # foreign code in the main thread, innermost last
_watching = threading.Event()


@contextmanager
def foreign_code(who: str, *, minutes: float = STRATEGY_MINUTES, ours: bool = False) -> Iterator[None]:
    """Run the block as foreign code.

    Outside the main thread nothing can be interrupted, so no limit applies there; the code that started the thread must
    enforce one.

    Args:
        who: the owner of the code, as errors name it.
        minutes: time limit, after which it is interrupted; may be infinite.
        ours: whether it is this package's own code; its changes and duration are then not reported.

    Raises:
        ForeignCodeError: for ``sys.exit``, a KeyboardInterrupt that the user did not type, other exceptions that aren't
            errors, and at the limit. Errors pass through unchanged.
    """
    running, changed = _Running(who, 60.0 * minutes, announced=ours), list[str]()
    try:
        with _interruptible(running), _stdout_to_stderr(), _without_sudden_exit(), _restored(running, changed):
            yield
    except Exception:
        if running.interrupted:
            raise KeyboardInterrupt from None
        raise
    except _TimeIsUp as error:
        if error.args[0] is not running:
            raise  # the limit of an enclosing block
        raise ForeignCodeError(who, f"didn't end within the limit of {minutes:g} minutes") from None
    except BaseException as error:
        if running.interrupted:
            raise KeyboardInterrupt from None
        raise ForeignCodeError(who, _as_text(error)) from error
    finally:
        if not ours:
            _report(who, changed)
    if running.interrupted:
        raise KeyboardInterrupt  # the code swallowed it


@contextmanager
def _restored(running: _Running, changed: list[str]) -> Iterator[None]:
    """Restore the process at the end and record what had changed; a child that the block forked ends there."""
    _process.append(os.getpid())
    before = snapshot()
    try:
        yield
    finally:
        running.done = True
        end_stray_child()
        _process.pop()
        changed += restore(before)


def _as_text(error: BaseException) -> str:
    """Describe an exception that is not an error."""
    if isinstance(error, SystemExit):
        return f"called sys.exit({error.code!s:.60})"
    return f"raised {type(error).__name__}" + f": {error!s:.200}" * bool(str(error))


def _report(who: str, changed: list[str]) -> None:
    """Report once what the code of ``who`` changed."""
    line = f"{who} changed {', '.join(changed)}; put back"
    if changed and line not in _told:
        _told.add(line)
        note(line)


@contextmanager
def _without_sudden_exit() -> Iterator[None]:
    """Make ``os._exit`` raise SystemExit in this thread, and in threads that foreign code starts.

    It still ends forked children, and ends this process if another thread calls it, such as the thread of a Dask worker
    whose run was killed.
    """
    process, usual = os.getpid(), os._exit
    others = {*threading.enumerate()} - {threading.current_thread()}

    def leave(status: int) -> NoReturn:
        if os.getpid() != process or threading.current_thread() in others:
            usual(status)
        raise SystemExit(status)

    os._exit = leave
    try:
        yield
    finally:
        os._exit = usual


class _Shielded:
    """A stream that can be written to but not closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.ends_a_line = True

    def write(self, text: str) -> int:
        """Write the text, and record whether it leaves a line open."""
        if text:
            self.ends_a_line = text.endswith("\n")
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def close(self) -> None:
        """Flush the stream without closing it."""
        self._stream.flush()


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Redirect the block's output to a stderr that it cannot close; reopen a stream that it closes anyway."""
    before = {"stdout": sys.stdout, "stderr": sys.stderr}
    shielded = None if sys.stderr is None else _Shielded(sys.stderr)
    if shielded is not None:
        sys.stdout = sys.stderr = cast(TextIO, shielded)
    try:
        yield
    finally:
        if shielded is not None and not shielded.ends_a_line:
            with contextlib.suppress(OSError, ValueError):
                shielded.write("\n")
        for number, (name, stream) in enumerate(before.items(), start=1):
            if getattr(stream, "closed", False):
                stream = open(number, "w", encoding=stream.encoding, errors="replace", closefd=False)  # noqa: PLW2901, SIM115
            setattr(sys, name, stream)


@contextmanager
def _interruptible(running: _Running) -> Iterator[None]:
    """Detect Ctrl-C, and interrupt the code at its limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = signal.getsignal(signal.SIGINT)
    handlers: dict[int, Any] = {signal.SIGALRM: _time_is_up}
    if callable(usual):
        handlers[signal.SIGINT] = _noticing(running, usual)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    outermost = not _running
    _running.append(running)
    _watch()
    if outermost and math.isfinite(running.limit):  # for code that blocks all other threads
        faulthandler.dump_traceback_later(running.limit + 3 * _GRACE, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        _running.remove(running)
        if outermost and math.isfinite(running.limit):
            faulthandler.cancel_dump_traceback_later()
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def _noticing(running: _Running, usual: Callable[[int, FrameType | None], Any]) -> Callable[..., None]:
    def handler(number: int, frame: FrameType | None) -> None:
        running.interrupted = True
        usual(number, frame)

    return handler


def _time_is_up(_number: int, _frame: FrameType | None) -> None:
    """Interrupt the outermost code that has exceeded its limit."""
    for running in _running:
        if running.seconds >= running.limit and not running.done:
            raise _TimeIsUp(running)


def _watch() -> None:
    """Start the thread that checks time limits, once per process."""
    if not _watching.is_set():
        _watching.set()
        threading.Thread(target=_look_at_the_time, name="exitbench-limits", daemon=True).start()


def _look_at_the_time() -> None:
    main = threading.main_thread()
    while main.is_alive():
        time.sleep(_BETWEEN_LOOKS)
        for running in list(_running):
            if not running.announced and running.seconds >= _PATIENCE:
                running.announced = True
                note(
                    f"{running.who}: still running after {_PATIENCE:.0f} s; its limit is {running.limit / 60:g} minutes"
                )
            if running.done:
                continue
            if running.seconds >= running.limit + _GRACE:
                line = f"exitbench: {running.who}: can't be interrupted at its limit; what is finished is kept\n"
                with contextlib.suppress(OSError):
                    os.write(2, line.encode("ascii", "replace"))
                _end_process(1)
            if running.seconds >= running.limit and main.ident is not None:
                signal.pthread_kill(main.ident, signal.SIGALRM)


os.register_at_fork(after_in_child=_watching.clear)  # threads do not survive a fork
