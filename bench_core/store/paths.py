"""What may be touched below a store's root: never what a link leads to, and regular files only.

The root itself may be a link. Below it a link could lead anywhere, and whoever deletes through it deletes what isn't
the store's; a FIFO or a device would block whoever opens it.
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
UNSENT = ".unsent"  # of a store that others share
_SUFFIX = ".safetensors"


def refuse_links(root: Path, path: Path) -> None:
    """Raise StoreError where one of the folders between ``root`` and ``path`` is a link."""
    for folder in _between(root, path):
        if folder.is_symlink():
            raise StoreError(
                one_line(
                    f"{folder}: is a link, and a store follows none; put the folder itself there, or set "
                    "EXITBENCH_HOME to a store on the other disk"
                )
            )


def refuse_others(path: Path) -> None:
    """Raise StoreError where a path below the root leads to something else than a regular file; it may be missing."""
    try:
        mode = path.lstat().st_mode
    except OSError:  # missing, or what is done next says why it can't be had
        return
    if not stat.S_ISREG(mode):
        raise StoreError(one_line(f"{path}: is {_what(mode)} where a store keeps regular files; move it away"))


def is_regular(root: Path, path: Path) -> bool:
    """Whether there is a regular file at ``path``, with no link on the way from ``root``."""
    return _is(stat.S_ISREG, path) and all(_is(stat.S_ISDIR, folder) for folder in _between(root, path))


def artifact_files(root: Path, kind: str) -> Iterator[Path]:
    """The regular files that are where an artifact of this kind would be, by name."""
    for folder in _key_folders(root, kind):
        for path in _entries(folder):
            if path.suffix == _SUFFIX and path.stem[:2] == folder.name and _is(stat.S_ISREG, path):
                yield path


def notes_of(root: Path, name: str) -> Iterator[tuple[str, str]]:
    """Kind and key of every regular file called KIND-KEY in the folder ``name``, which may be missing."""
    if not _is(stat.S_ISDIR, root / name):
        return
    for path in _entries(root / name):
        kind, _, key = path.name.rpartition("-")
        if kind in KINDS and _is_key(key) and _is(stat.S_ISREG, path):
            yield kind, key


def abandoned(root: Path, *, remove: bool) -> Iterator[Path]:
    """What stopped processes left where a store writes: unfinished folders, locks that nobody holds."""
    for kind, key in notes_of(root, LOCKS):
        yield from unfinished(root / LOCKS, pattern=f"{kind}-{key}", remove=remove)
    for folder in [root, *(found for kind in KINDS for found in _key_folders(root, kind))]:
        yield from unfinished(folder, remove=remove)


def strangers(root: Path) -> Iterator[tuple[Path, str]]:
    """Everything in the folders of a store that is neither folder nor regular file, and what it is; follow no link."""
    for top in (*KINDS, LOCKS, UNSENT):
        found = [root / top]
        for folder, folders, files in os.walk(root / top) if not (root / top).is_symlink() else ():
            found += [Path(folder, name) for name in sorted([*folders, *files])]
        for path in found:
            with suppress(OSError):  # gone meanwhile
                mode = path.lstat().st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    yield path, _what(mode)


def _key_folders(root: Path, kind: str) -> Iterator[Path]:
    """The folder of a kind, and those in it that are named by how keys begin."""
    top = root / kind
    if _is(stat.S_ISDIR, top):
        yield top
        yield from (path for path in _entries(top) if len(path.name) == 2 and _is(stat.S_ISDIR, path))


def _between(root: Path, path: Path) -> list[Path]:
    """The folders on the way, the uppermost first."""
    return [root / folder for folder in reversed(path.relative_to(root).parents[:-1])]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # gone meanwhile, or nobody may look
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
