"""Files below an fsspec URL, with a limit on server silence, and with passwords kept out of messages.

Each file system has time limits of its own, or none. Here each call runs in its own thread, and is abandoned if
nothing has moved for ``EXITBENCH_REMOTE_SECONDS``; the thread may keep hanging, but ends with the process.
"""

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from bench_core.errors import UsageError, one_line

__all__ = ["RemoteFiles", "SilentError", "scrubbed", "without_password"]

T = TypeVar("T")
_SECONDS = "EXITBENCH_REMOTE_SECONDS"
_SECONDS_DEFAULT = 30.0
_SLOWEST = 65_536  # bytes per second, assumed for file systems that don't report upload progress
_BETWEEN_LOOKS = 0.25  # seconds
_SHORTEST = 3  # characters; shorter passwords are not searched for on their own


class SilentError(OSError):
    """A server that hasn't answered within the time limit."""


class RemoteFiles:
    """Files below a URL.

    Args:
        url: such as ``s3://bucket/exitbench``.

    Raises:
        UsageError: ``EXITBENCH_REMOTE_SECONDS`` is not a number of seconds.
        ImportError: fsspec, or a package that it needs for this kind of URL, isn't installed.
        SilentError: the server doesn't answer.
        Exception: of any kind, if the URL can't be used.
    """

    def __init__(self, url: str) -> None:
        """Open the file system of ``url``; see the class."""
        from fsspec.core import url_to_fs

        self.seconds = _seconds()
        self.filesystem, base = _answer(lambda _: url_to_fs(url), self.seconds)
        self.base = str(base).rstrip("/")

    @property
    def protocols(self) -> tuple[str, ...]:
        """Return the names of the file system's protocol, such as ``s3``."""
        protocol = self.filesystem.protocol
        return (protocol,) if isinstance(protocol, str) else tuple(protocol)

    def ask(self, call: Callable[[Any], T]) -> T:
        """Return the result of ``call`` on the file system. Raises SilentError, and what the call raises."""
        return _answer(lambda _: call(self.filesystem), self.seconds)

    def get(self, remote: str, here: Path) -> None:
        """Download a file. Raises SilentError if no data arrives, and what the file system raises."""
        _answer(
            lambda callback: self.filesystem.get_file(remote, str(here), callback=callback), self.seconds, grows=here
        )

    def remove(self, remote: str) -> None:
        """Delete a file. Raises SilentError, and what the file system raises."""
        self.ask(lambda files: files.rm_file(remote))

    def put(self, here: Path, remote: str) -> None:
        """Upload a file. Raises SilentError if nothing moves, and what the file system raises.

        A file system that doesn't report progress may take the time that an upload at 64 KiB per second takes.
        """
        _answer(
            lambda callback: self.filesystem.put_file(str(here), remote, callback=callback),
            self.seconds,
            more=here.stat().st_size / _SLOWEST,
        )


def without_password(url: str) -> str:
    """Return a URL for display, without user, password and query."""
    return _USER.sub("//…@", _QUERY.sub("?…", url)).rstrip("/")


def scrubbed(text: str, url: str) -> str:
    """Return a text without the user and password of a URL, and without its query."""
    for secret in _secrets(url):
        text = text.replace(secret, "…")
    return text


# Up to the last @ before the path; a password with a slash in it ends with the last @ of all. Not matched: HOST:PORT.
_USER = re.compile(r"//(?![^/?#@:]*:\d+(?:[/?#]|$))(?:[^/?#@]*:[^@]*@(?:[^/?#]*@)*|[^/?#]*@)")
_QUERY = re.compile(r"\?.*", re.DOTALL)


def _secrets(url: str) -> list[str]:
    """Return the secret parts of a URL, longest first."""
    found = set()
    for match in [*_USER.finditer(_QUERY.sub("", url))]:
        user = match.group()[2:-1]
        password = user.partition(":")[2]
        found |= {user, unquote(user)} if password or len(user) >= _SHORTEST else set()
        found |= {text for text in (password, unquote(password)) if len(text) >= _SHORTEST}
    if query := _QUERY.search(url):
        found |= {query.group()[1:]}
        found |= {value for part in query.group()[1:].split("&") if len(value := part.partition("=")[2]) >= _SHORTEST}
    return sorted(filter(None, found), key=len, reverse=True)


class _Moves:
    """State shared by a transfer's thread and the thread that waits for it."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.told = False
        self.ended = threading.Event()
        self.answers: list[Any] = []
        self.error: BaseException | None = None

    def callback(self) -> Any:
        """Return an fsspec callback that records the progress of a transfer."""
        from fsspec.callbacks import Callback

        moves = self

        class Told(Callback):  # type: ignore[misc]
            def call(self, *_arguments: Any, **_more: Any) -> None:
                moves.last, moves.told = time.monotonic(), True

        return Told()


def _answer(call: Callable[[Any], T], seconds: float, *, grows: Path | None = None, more: float = 0.0) -> T:
    """Return the result of a call, unless nothing moves for some seconds: no callback call, and no file growth.

    Args:
        call: takes an fsspec callback.
        seconds: of silence.
        grows: a file that is being written.
        more: further seconds of silence allowed for a call that never called the callback.
    """
    moves = _Moves()

    def ask() -> None:
        try:
            moves.answers.append(call(moves.callback()))
        except BaseException as error:  # re-raised in the waiting thread
            moves.error = error
        moves.ended.set()

    threading.Thread(target=ask, daemon=True).start()
    size = -1
    while not moves.ended.wait(min(_BETWEEN_LOOKS, seconds)):
        if grows is not None and grows.exists() and grows.stat().st_size != size:
            size, moves.last = grows.stat().st_size, time.monotonic()
        if time.monotonic() - moves.last > seconds + (0.0 if moves.told else more):
            raise SilentError(f"no answer for {seconds:g} s ({_SECONDS} sets for how long to wait)")
    if moves.error is not None:
        raise moves.error
    return moves.answers[0]  # type: ignore[no-any-return]


def _seconds() -> float:
    said = os.environ.get(_SECONDS, "")
    try:
        seconds = float(said or _SECONDS_DEFAULT)
        if not 0 < seconds < float("inf"):
            raise ValueError
    except ValueError as error:
        raise UsageError(one_line(f"{_SECONDS}={said}: not a number of seconds above 0")) from error
    return seconds
