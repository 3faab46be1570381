"""Atomic replacement of a folder's own files: killed at any moment, it holds all the old ones or all the new ones.

New files are written to a folder next to it, together with hard links to everything else it holds, and one rename
exchanges the two. If that is impossible (an old system or a network file system, a folder in use as a working
directory, a parent that can't be written to), the files are written inside the folder, to ``PENDING``, which appears by
one rename. From then on ``place_of`` returns them; they are copied to their final paths, and ``PENDING`` disappears by
one rename. The next writer removes, or completes, what a killed process left.
"""

import ctypes
import errno
import glob
import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from bench_core.errors import StoreError
from bench_core.util.files import CONTESTED, UNFINISHED, alone_in, flush, unfinished, whole_file, workspace

__all__ = ["PENDING", "Writer", "place_of", "replace_files"]

PENDING = ".pending"
Writer = Callable[[Path], object]
_DIGITS = "[0-9a-f]" * 16  # the suffix of the names that ``workspace`` creates


def replace_files(folder: Path, files: Mapping[str, Writer], owned: Collection[str] = ()) -> None:
    """Replace a folder's files atomically; files that others put there stay.

    Args:
        folder: created if necessary; may be a symbolic link.
        files: a function that writes each file, by the file's path in the folder. It is called with a path, once or
            twice.
        owned: paths of files that are deleted unless they are among ``files``.

    Raises:
        StoreError: a file can't be written; the folder is unchanged.
    """
    names = {*owned, *files}
    patience = time.monotonic() + CONTESTED
    while True:
        try:
            with alone_in(folder):
                _replace(folder.resolve(), files, names)
            return
        except OSError as error:
            if time.monotonic() > patience or not isinstance(error, FileNotFoundError):
                raise StoreError.unwritable(folder, error) from error
            # Another process removed the folder while it was empty.


def place_of(folder: Path, name: str = "") -> Path:
    """Return the path of the file ``name`` in a folder; without a name, the folder that holds all of its own files."""
    pending = folder / PENDING / name
    return pending if pending.exists() and not (folder / PENDING).is_symlink() else folder / name


def _replace(real: Path, files: Mapping[str, Writer], names: Collection[str]) -> None:
    _refuse_folders(real, names)
    _remove_abandoned(real, names)
    _settle(real, names)
    if not _exchanged(real, files, names):
        _write_inside(real, files, names)


def _exchanged(real: Path, files: Mapping[str, Writer], names: Collection[str]) -> bool:
    """Return whether the new folder replaced the old one. Raises StoreError for a file that can't be written."""
    if not _may_be_exchanged(real, files):
        return False
    try:
        with workspace(real.parent, _prefix(real)) as place:
            new = place / real.name
            new.mkdir()
            _write(files, new, real)
            _link(real, new, names)
            for folder, _, _ in os.walk(new):
                flush(Path(folder))
            with alone_in(new):  # processes that wait for the old folder then wait for this one
                _exchange(real, new)
                flush(real.parent)
                _link(new, real, names)  # files that others added in the meantime
        return True
    except OSError:
        return False


def _may_be_exchanged(real: Path, files: Mapping[str, Writer]) -> bool:
    """Return whether no one would lose a folder that they own, work in, or have linked or mounted."""
    status, beside = real.stat(), real.parent.stat()
    if status.st_dev != beside.st_dev or os.path.samestat(status, beside) or status.st_uid != os.geteuid():
        return False
    with suppress(OSError):
        if Path.cwd().is_relative_to(real):
            return False
    inside = {real / parent for name in files for parent in Path(name).parents}
    return not any(folder.is_symlink() for folder in inside - {real})


def _link(source: Path, target: Path, names: Collection[str], inside: str = "") -> None:
    """Hard-link the content of ``source`` into ``target``, except ``names``; folders are recreated. Raises OSError."""
    with os.scandir(source) as entries:
        for entry in entries:
            place, name = target / entry.name, f"{inside}{entry.name}"
            if name in names:
                continue
            if entry.is_dir(follow_symlinks=False):
                _refuse_foreign(Path(entry.path), source)
                with suppress(FileExistsError):
                    place.mkdir()
                _link(Path(entry.path), place, names, f"{name}/")
            elif not os.path.lexists(place):
                os.link(entry.path, place, follow_symlinks=False)
            elif not os.path.samestat(place.lstat(), entry.stat(follow_symlinks=False)):
                with workspace(target) as between:
                    os.link(entry.path, between / entry.name, follow_symlinks=False)
                    (between / entry.name).replace(place)
    os.chown(target, -1, source.stat().st_gid)
    shutil.copystat(source, target)


def _refuse_foreign(folder: Path, parent: Path) -> None:
    """Raise OSError for a folder that can't be recreated: it belongs to another user, or is a mount point."""
    status = folder.stat()
    if status.st_uid != os.geteuid() or not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    if status.st_dev != parent.stat().st_dev:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(folder))


def _exchange(one: Path, other: Path) -> None:
    """Exchange two folders on one disk atomically. Raises OSError, also if the system does not support it."""
    system = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(one), os.fsencode(other)
    if hasattr(system, "renameat2"):  # Linux; -100 is AT_FDCWD, 2 is RENAME_EXCHANGE
        failed = system.renameat2(-100, paths[0], -100, paths[1], 2)
    elif hasattr(system, "renamex_np"):  # macOS; 2 is RENAME_SWAP
        failed = system.renamex_np(*paths, 2)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(one))


def _write_inside(real: Path, files: Mapping[str, Writer], names: Collection[str]) -> None:
    """Write the files to ``PENDING``, and then to their final paths. Raises OSError, StoreError."""
    with workspace(real) as place:
        new = place / PENDING
        new.mkdir()
        _write(files, new, real)
        for folder, _, _ in os.walk(new):
            flush(Path(folder))
        new.rename(real / PENDING)
        flush(real)
    _settle(real, names)


def _settle(real: Path, names: Collection[str]) -> None:
    """Copy the files in ``PENDING``, if it exists, to their final paths, then remove it. Raises OSError."""
    pending = real / PENDING
    if pending.is_symlink() or not pending.is_dir():
        return
    found = {path.relative_to(pending).as_posix(): path for path in sorted(pending.rglob("*")) if path.is_file()}
    for name, path in found.items():
        with whole_file(real / name) as file:
            shutil.copyfile(path, file)
    for name in set(names) - found.keys():
        (real / name).unlink(missing_ok=True)
    flush(real)
    with workspace(real) as place:
        pending.rename(place / PENDING)
        flush(real)


def _write(files: Mapping[str, Writer], place: Path, real: Path) -> None:
    """Write every file into ``place`` and flush it. Raises StoreError, which names the file by its final path."""
    for name, write in files.items():
        file = place / name
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write(file)
            flush(file)
        except OSError as error:
            raise StoreError.unwritable(real / name, error) from error
        except StoreError as error:
            raise StoreError(str(error).replace(str(file), str(real / name))) from error


def _refuse_folders(real: Path, names: Collection[str]) -> None:
    for name in sorted(names):
        if (real / name).is_dir():
            raise StoreError(f"{real / name}: is a folder where a file is to be written; move it away")


def _remove_abandoned(real: Path, names: Collection[str]) -> None:
    """Remove what a killed process left next to the folder, in it, and in the folders of its files."""
    unfinished(real.parent, pattern=glob.escape(_prefix(real)) + _DIGITS, remove=True)
    for folder in sorted({real / parent for name in names for parent in Path(name).parents}):
        if not folder.is_symlink():
            unfinished(folder, pattern=glob.escape(UNFINISHED) + _DIGITS, remove=True)


def _prefix(real: Path) -> str:
    """Return the prefix of the names of temporary folders next to a folder."""
    return f".{real.name}{UNFINISHED}"
