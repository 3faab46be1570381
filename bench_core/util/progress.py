"""Progress of long-running work: a bar on a terminal, plain lines elsewhere, both on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from bench_core.errors import one_line, printable

__all__ = ["Advance", "collected", "note", "progress"]

Advance = Callable[..., None]
_SECONDS_BETWEEN_LINES = 10.0
_collected: list[str] | None = None
_pass_on: Callable[[str], None] | None = None


def note(text: str) -> None:
    """Print a one-line message to stderr. Never raises: if stderr can't be written to, the message is dropped."""
    text = printable(text)
    if _collected is not None:
        _collected.append(text)
        if _pass_on is not None:
            _pass_on(text)
    elif sys.stderr is not None:
        with suppress(OSError, ValueError):  # ValueError: stderr is closed
            print(text, file=sys.stderr, flush=True)


@contextmanager
def collected(pass_on: Callable[[str], None] | None = None) -> Iterator[list[str]]:
    """Collect this process's notes, and the last line of each progress, instead of printing them.

    ``pass_on`` is called with each line as it is produced.
    """
    global _collected, _pass_on  # process-wide, like stderr
    before, _collected, _pass_on = (_collected, _pass_on), [], pass_on
    try:
        yield _collected
    finally:
        _collected, _pass_on = before


@contextmanager
def progress(title: str, total: int, unit: str = "", *, estimate: bool = True) -> Iterator[Advance]:
    """Show progress of ``total`` units of work; call the yielded function with units done and an optional remark.

    ``estimate`` makes a bar show the estimated time remaining.
    """
    title, unit = one_line(title), one_line(unit)
    if _collected is None and _is_terminal(sys.stderr):
        shown = _bar(title, total, unit, estimate)
    else:
        shown = _lines(title, total, unit)
    with shown as advance:
        yield advance


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # stderr is None or closed
        return False


@contextmanager
def _bar(title: str, total: int, unit: str, estimate: bool) -> Iterator[Advance]:
    from rich.console import Console  # slow to import, and needed only on a terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

    columns: tuple[ProgressColumn, ...] = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(unit.replace("{", "{{").replace("}", "}}"), markup=False),
        *([TimeRemainingColumn(elapsed_when_finished=True)] if estimate else []),
        TextColumn("{task.fields[remark]}", markup=False),
    )
    file = getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # unwrap the command line's own stream for rich
    with Progress(*columns, console=Console(file=file)) as bars:
        task = bars.add_task(title, total=total, remark="")

        def advance(units: int = 1, remark: str = "") -> None:
            bars.update(task, advance=units, remark=one_line(remark))

        yield advance


@contextmanager
def _lines(title: str, total: int, unit: str) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def advance(units: int = 1, remark: str = "") -> None:
        nonlocal done, last
        done += units
        now = time.monotonic()
        if done < total and now - last >= _SECONDS_BETWEEN_LINES and _collected is None:
            last = now
            note(f"{title}: {done}/{total} {unit} after {now - start:.0f} s {remark}".rstrip())

    yield advance
    note(f"{title}: {done}/{total} {unit} in {time.monotonic() - start:.1f} s".rstrip())
