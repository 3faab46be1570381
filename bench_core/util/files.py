"""Atomic file writes, and locks that the kernel releases when their process ends.

``refuse_outputs`` rejects output files that cannot be written before any work begins.

Unfinished output is written to its own folder, ``.writing-…``, next to its final location. The writer holds a lock on
that folder, which the kernel releases however the process ends; an unlocked folder was left by a killed process.
"""

import atexit
import errno
import fcntl
import os
import secrets
import shutil
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bench_core.errors import UsageError

__all__ = [
    "CONTESTED",
    "UNFINISHED",
    "alone_in",
    "exclusive",
    "flush",
    "open_regular",
    "publish",
    "read_text",
    "refuse_outputs",
    "unfinished",
    "whole_file",
    "workspace",
]

UNFINISHED = ".writing-"
CONTESTED = 3.0  # seconds to keep trying to create a folder that other processes remove whenever it is empty
_SECONDS_PER_DAY = 86_400.0
_claims: set[tuple[int, Path]] = set()  # descriptors and folders that this process holds


@contextmanager
def workspace(folder: Path, prefix: str = UNFINISHED) -> Iterator[Path]:
    """Create a temporary folder in ``folder`` (so on the same disk) for unfinished files; remove it at the end.

    Args:
        folder: created if it does not exist.
        prefix: start of the new folder's name; 16 hexadecimal digits follow.

    Raises OSError.
    """
    claimed: tuple[int, Path] | None = None
    try:
        with _uninterrupted():
            claimed = _claim(folder, prefix)
            _claims.add(claimed)
        yield claimed[1]
    finally:
        if claimed is not None:
            with _uninterrupted():
                _release(claimed)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; at the end, flush the file to disk and rename it to ``path``. Raises OSError."""
    with workspace(path.parent) as place:
        written = place / path.name
        yield written
        publish(written, path)


def publish(written: Path, path: Path) -> None:
    """Flush a file to disk, give it the default permissions for new files, and rename it. Raises OSError."""
    written.chmod(written.parent.stat().st_mode & 0o666)  # safetensors writes for the owner only
    flush(written)
    written.replace(path)
    flush(path.parent)  # flush the new name too, before the caller removes anything that this file replaces


def flush(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, refusing FIFOs (which block) and devices (which never end). Raises OSError."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # ``open`` has its own message for a folder
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def read_text(path: Path) -> str:
    """Return the text of a regular UTF-8 file. Raises OSError, and ValueError if it is not text."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path.name} is no regular file")
    with path.open(encoding="utf-8", newline="") as stream:
        return stream.read()


def refuse_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[Path]) -> None:
    """Raise UsageError for output files that can't be written, or that would overwrite an input or one another.

    Args:
        outputs: path by the flag that names it; None if the flag is not given.
        inputs: files to protect, and folders in which nothing may be written; they need not exist.
    """
    read = list(inputs)
    wanted = {f"{flag} {path}": path for flag, path in outputs.items() if path is not None}
    for number, (name, path) in enumerate(wanted.items()):
        try:
            _refuse_place(name, path)
            for other, second in list(wanted.items())[:number]:
                if _leads_into(path, second):
                    raise UsageError(f"{name}: the same file as {other}; name another")
            for source in read:
                if _leads_into(path, source):
                    raise UsageError(
                        f"{name}: would overwrite what exitbench reads from {source}; choose another place"
                    )
            with workspace(path.parent):  # the same steps as the real write
                pass
        except OSError as error:
            raise UsageError(f"{name}: can't be written ({error.strerror}); choose another place") from error


def unfinished(folder: Path, *, pattern: str = f"{UNFINISHED}*", remove: bool = False) -> list[Path]:
    """Return the unfinished files, folders and locks of ended processes in ``folder``; with ``remove``, delete them."""
    return [path for path in sorted(folder.glob(pattern)) if _is_abandoned(path, remove=remove)]


@contextmanager
def exclusive(path: Path, waiting: Callable[[], None], *, patience: float | None = None) -> Iterator[None]:
    """Hold the lock file ``path``; if another process holds it, call ``waiting`` once and wait. Raises OSError.

    On a file system without locks, every process enters: two processes may then do the same work, and the last file
    written wins. The same happens after ``patience`` seconds, in case the holder is frozen; None waits indefinitely.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if patience is not None and not _free_within(path, patience):
        yield
        return
    handle = _held(path, waiting)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock a folder, created if necessary, against other callers of ``alone_in`` on it. Raises OSError."""
    handle = _held_folder(folder)
    try:
        yield
    finally:
        os.close(handle)


def _refuse_place(name: str, path: Path) -> None:
    if not path.parent.is_dir():
        raise UsageError(f"{name}: its folder doesn't exist; make {path.parent} first")
    if path.is_dir():
        raise UsageError(f"{name}: is a folder; name a file")
    if path.exists() and not path.is_file():
        raise UsageError(f"{name}: is no regular file; name a file")


def _leads_into(path: Path, place: Path) -> bool:
    """Return whether ``path`` is ``place``, under any name, or is inside it."""
    if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(place)):
        return True
    try:
        return path.samefile(place)
    except OSError:  # one of the two does not exist
        return False


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Defer Ctrl-C until the block ends; only the main thread receives it, so other threads do nothing."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is None:  # None: not set from Python
        yield
        return
    waiting: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if waiting:
            signal.raise_signal(waiting[0])


def _held(path: Path, waiting: Callable[[], None]) -> int:
    """Lock a lock file and return its descriptor."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "no regular file", str(path))
            if _lock(handle, wait=False) is False:
                waiting()
                _lock(handle, wait=True)
            if _names(path, handle):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its last holder has since removed it
        waiting = _nothing


def _held_folder(folder: Path) -> int:
    """Lock a folder and return its descriptor."""
    patience = time.monotonic() + CONTESTED
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, FileExistsError):  # another process may remove it while it is empty
            if time.monotonic() > patience or (os.path.lexists(folder) and not folder.is_dir()):
                raise
            continue
        try:
            _lock(handle, wait=True)
            if _names(folder, handle):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its last holder has replaced it with another folder


def _free_within(path: Path, seconds: float) -> bool:
    """Return whether a lock file that another process holds is released within ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if _lock(handle, wait=False) is not False:
                return True
        finally:
            os.close(handle)
        if time.monotonic() >= end:
            return False
        time.sleep(0.05)


def _nothing() -> None:
    pass


def _claim(folder: Path, prefix: str) -> tuple[int, Path]:
    """Create and lock a new folder; return its descriptor and path."""
    while True:
        place = _new_folder(folder, prefix)
        try:
            handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another process removed it as abandoned before it was locked
        _lock(handle, wait=True)
        if _names(place, handle):
            return handle, place
        os.close(handle)


def _new_folder(folder: Path, prefix: str) -> Path:
    """Create a folder in ``folder``, retrying because another process may remove the empty parent between two steps."""
    patience = time.monotonic() + CONTESTED
    while True:
        place = folder / f"{prefix}{secrets.token_hex(8)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            place.mkdir()
            return place
        except (FileNotFoundError, FileExistsError):
            in_the_way = os.path.lexists(folder) and not folder.is_dir()
            if in_the_way or time.monotonic() > patience:
                raise


def _release(claimed: tuple[int, Path]) -> None:
    """Remove a folder that this process holds."""
    shutil.rmtree(claimed[1], ignore_errors=True)
    os.close(claimed[0])
    _claims.discard(claimed)


@atexit.register
def _release_all() -> None:
    """Remove what remains at exit: Ctrl-C may prevent a ``finally`` block from running."""
    for claimed in list(_claims):
        _release(claimed)


os.register_at_fork(after_in_child=_claims.clear)  # a child holds no claims and must not remove its parent's


def _is_abandoned(path: Path, *, remove: bool) -> bool:
    """Return whether no process holds an unfinished file or folder; remove it under the lock if ``remove`` is set."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        mode = os.fstat(handle).st_mode
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            return False
        lock = _lock(handle, wait=False)
        old = time.time() - os.fstat(handle).st_mtime > _SECONDS_PER_DAY
        abandoned = old if lock is None else lock
        if abandoned and remove and stat.S_ISDIR(mode):
            shutil.rmtree(path, ignore_errors=True)  # follows no links, nor ``path`` itself if it is one
        elif abandoned and remove:
            path.unlink(missing_ok=True)
        return abandoned
    finally:
        os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool | None:
    """Return whether the lock was acquired; None if the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _names(path: Path, handle: int) -> bool:
    """Return whether ``path`` still refers to the file that the descriptor has open."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
