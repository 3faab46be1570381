"""Path checks for a store: below its root, use regular files only and follow no link.

The root itself may be a link. A link below it could lead anywhere, and deleting through it would delete files that are
not the store's; opening a FIFO or a device would block.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from bench_core.errors import StoreError, one_line
from bench_core.util.files import unfinished

__all__ = [
    "KINDS",
    "LOCKS",
    "UNSENT",
    "abandoned",
    "artifact_files",
    "is_regular",
    "notes_of",
    "refuse_links",
    "refuse_others",
    "strangers",
]

KINDS = ("converted", "networks", "policies", "scores", "trace-parts", "traces", "training")
LOCKS = ".locks"
UNSENT = ".unsent"  # in shared stores only
_SUFFIX = ".safetensors"


def refuse_links(root: Path, path: Path) -> None:
    """Raise StoreError if one of the folders between ``root`` and ``path`` is a link."""
    for folder in _between(root, path):
        if folder.is_symlink():
            raise StoreError(
                one_line(
                    f"{folder}: is a link, and a store follows none; put the folder itself there, or set "
                    "EXITBENCH_HOME to a store on the other disk"
                )
            )


def refuse_others(path: Path) -> None:
    """Raise StoreError if a path below the root exists and is not a regular file."""
    try:
        mode = path.lstat().st_mode
    except OSError:  # missing, or the next operation reports why it is inaccessible
        return
    if not stat.S_ISREG(mode):
        raise StoreError(one_line(f"{path}: is {_what(mode)} where a store keeps regular files; move it away"))


def is_regular(root: Path, path: Path) -> bool:
    """Return whether there is a regular file at ``path``, with no link between it and ``root``."""
    return _is(stat.S_ISREG, path) and all(_is(stat.S_ISDIR, folder) for folder in _between(root, path))


def artifact_files(root: Path, kind: str) -> Iterator[Path]:
    """Yield the regular files in the places of artifacts of this kind, by name."""
    for folder in _key_folders(root, kind):
        for path in _entries(folder):
            if path.suffix == _SUFFIX and path.stem[:2] == folder.name and _is(stat.S_ISREG, path):
                yield path


def notes_of(root: Path, name: str) -> Iterator[tuple[str, str]]:
    """Yield the kind and key of every regular file called KIND-KEY in the folder ``name``, which may be missing."""
    if not _is(stat.S_ISDIR, root / name):
        return
    for path in _entries(root / name):
        kind, _, key = path.name.rpartition("-")
        if kind in KINDS and _is_key(key) and _is(stat.S_ISREG, path):
            yield kind, key


def abandoned(root: Path, *, remove: bool) -> Iterator[Path]:
    """Yield the leftovers of stopped processes: unfinished folders, and locks that no process holds."""
    for kind, key in notes_of(root, LOCKS):
        yield from unfinished(root / LOCKS, pattern=f"{kind}-{key}", remove=remove)
    for folder in [root, *(found for kind in KINDS for found in _key_folders(root, kind))]:
        yield from unfinished(folder, remove=remove)


def strangers(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield every path in a store that is neither folder nor regular file, and its type; follow no link."""
    for top in (*KINDS, LOCKS, UNSENT):
        found = [root / top]
        for folder, folders, files in os.walk(root / top) if not (root / top).is_symlink() else ():
            found += [Path(folder, name) for name in sorted([*folders, *files])]
        for path in found:
            with suppress(OSError):  # removed meanwhile
                mode = path.lstat().st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    yield path, _what(mode)


def _key_folders(root: Path, kind: str) -> Iterator[Path]:
    """Yield the folder of a kind, and its subfolders, which are named after the first digits of keys."""
    top = root / kind
    if _is(stat.S_ISDIR, top):
        yield top
        yield from (path for path in _entries(top) if len(path.name) == 2 and _is(stat.S_ISDIR, path))


def _between(root: Path, path: Path) -> list[Path]:
    """Return the folders from ``root`` (exclusive) to ``path`` (exclusive), outermost first."""
    return [root / folder for folder in reversed(path.relative_to(root).parents[:-1])]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # removed meanwhile, or not readable
        return []


def _is(such: Callable[[int], bool], path: Path) -> bool:
    try:
        return such(path.lstat().st_mode)
    except OSError:
        return False


def _is_key(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _what(mode: int) -> str:
    names = {
        stat.S_ISLNK: "a link",
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a FIFO",
        stat.S_ISSOCK: "a socket",
    }
    return next((name for such, name in names.items() if such(mode)), "a device")
