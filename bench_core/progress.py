"""Progress of long work: a bar on a terminal, plain lines elsewhere, both on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Advance", "note", "progress"]

Advance = Callable[..., None]
_SECONDS_BETWEEN_LINES = 10.0


def note(text: str) -> None:
    """One line about what is happening."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(title: str, total: int, unit: str = "") -> Iterator[Advance]:
    """Show progress of ``total`` units of work; call the yielded function with units done and an optional remark."""
    show = _bar if sys.stderr.isatty() else _lines
    with show(title, total, unit) as advance:
        yield advance


@contextmanager
def _bar(title: str, total: int, unit: str) -> Iterator[Advance]:
    from rich.console import Console  # heavy, and needed on a terminal only
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[remark]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=total, remark="")

        def advance(units: int = 1, remark: str = "") -> None:
            bars.update(task, advance=units, remark=remark)

        yield advance


@contextmanager
def _lines(title: str, total: int, unit: str) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def advance(units: int = 1, remark: str = "") -> None:
        nonlocal done, last
        done += units
        now = time.monotonic()
        if done < total and now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            note(f"{title}: {done}/{total} {unit} after {now - start:.0f} s {remark}".rstrip())

    yield advance
    note(f"{title}: {done}/{total} {unit} in {time.monotonic() - start:.1f} s".rstrip())
