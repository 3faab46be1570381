"""Archive unpacking, member by member: only wanted regular files, only inside the folder, only up to the size limit.

No library's "extract all" is called. A member with an absolute path, with ``..`` in it, a link or a device makes the
whole archive suspect, and the archive is refused, even if that member is not wanted.
"""

import contextlib
import errno
import gzip
import hashlib
import json
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO

from bench_core.data.fetch.sources import Archive
from bench_core.errors import DataError

__all__ = ["Inventory", "parse_inventory", "unpack"]

Inventory = dict[str, tuple[int, str]]  # path: bytes, sha256

_BLOCK = 1 << 20
MOST_MEMBERS = 3_000_000
_DIGEST = re.compile("[0-9a-f]{64}")
_IMPOSSIBLE = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EILSEQ)
_NESTED = 2  # levels of archives within archives


class _Target:
    """Receives members, and counts them."""

    def __init__(self, archive: Archive, folder: Path) -> None:
        self.archive, self.folder = archive, folder
        self.inventory: Inventory = {}
        self.bytes = self.members = 0

    def take(self, place: Path, path: str, stream: IO[bytes] | gzip.GzipFile) -> None:
        """Write a member to its place, if it is wanted."""
        match = re.fullmatch(self.archive.pick, path)
        if match is None:
            return
        final = match.expand(self.archive.place)
        _refuse_unsafe(place, final)
        if not _is_utf8(final):
            raise DataError(f"{place}: the name of member {final!r} is not UTF-8")
        if final in self.inventory:
            raise DataError(f"{place}: holds {final} twice")
        destination = self.folder / final
        digest = hashlib.sha256()
        written = 0
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            out = destination.open("xb")
        except OSError as error:
            if error.errno not in _IMPOSSIBLE:
                raise
            raise DataError(f"{place}: member {final!r:.300} can't be a file here ({error.strerror})") from error
        with out:
            while block := stream.read(_BLOCK):
                self.bytes += len(block)
                if self.bytes > self.archive.limit:
                    raise DataError(f"{place}: unpacks to more than {self.archive.limit:,} bytes")
                out.write(block)
                digest.update(block)
                written += len(block)
        self.inventory[final] = (written, digest.hexdigest())

    def count(self, place: Path) -> None:
        """Count one more member. Raises DataError above the limit."""
        self.members += 1
        if self.members > MOST_MEMBERS:
            raise DataError(f"{place}: holds more than {MOST_MEMBERS:,} members")


def unpack(path: Path, archive: Archive, folder: Path) -> Inventory:
    """Unpack the wanted members of the file at ``path`` into ``folder``, an empty folder.

    Args:
        path: the archive file.
        archive: its description: which members to take, and their limit.
        folder: the target.

    Returns:
        The files written.

    Raises:
        DataError: the file is damaged, of an unknown kind, unsafe, or larger inside than permitted.
        OSError: a file can't be written.
    """
    target = _Target(archive, folder)
    _unpack(path, target, 0)
    if not target.inventory:
        raise DataError(f"{path}: holds nothing of what is wanted ({archive.pick})")
    return target.inventory


def _unpack(path: Path, target: _Target, level: int) -> None:
    try:
        if path.suffix == ".deb":
            _unpack_deb(path, target)
        elif zipfile.is_zipfile(path):
            _unpack_zip(path, target, level)
        elif _is_gzip(path) and not path.name.endswith((".tar.gz", ".tgz")):
            with gzip.open(path) as stream:
                target.take(path, path.stem, stream)
        else:
            with tarfile.open(path, "r:*") as tar:
                _unpack_tar(path, tar, target)
    except DataError:
        raise
    except Exception as error:  # the readers of four formats raise anything: struct.error, RuntimeError, KeyError, …
        if isinstance(error, OSError) and error.errno is not None:  # raised by the disk, not by a reader
            raise
        raise DataError(f"{path}: damaged archive ({str(error) or type(error).__name__:.200})") from error


def _unpack_tar(path: Path, tar: tarfile.TarFile, target: _Target) -> None:
    for member in tar:
        target.count(path)
        _refuse_unsafe(path, member.name)
        if member.isdir():
            continue
        if not member.isfile():
            raise DataError(f"{path}: member {member.name!r:.300} is a link or a device")
        stream = tar.extractfile(member)
        if stream is not None:
            target.take(path, member.name, stream)


def _unpack_zip(path: Path, target: _Target, level: int) -> None:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            target.count(path)
            _refuse_unsafe(path, member.filename)
            if member.is_dir():
                continue
            if (member.external_attr >> 16) & 0o170000 not in (0, 0o100000):
                raise DataError(f"{path}: member {member.filename!r:.300} is a link or a device")
            inner = target.archive.nested and level < _NESTED and member.filename.endswith(".zip")
            with archive.open(member) as stream:
                if inner and not PurePosixPath(member.filename).name.startswith("."):
                    _unpack_inner(stream, target, level)
                else:
                    target.take(path, member.filename, stream)


def _unpack_inner(stream: IO[bytes], target: _Target, level: int) -> None:
    """Unpack an archive within an archive: copy it out next to the files, unpack it, remove it."""
    inner = target.folder / f".inner-{level}.zip"
    size = 0
    try:
        with inner.open("xb") as out:
            while block := stream.read(_BLOCK):
                size += len(block)
                if size > target.archive.limit:
                    raise DataError(f"{inner}: unpacks to more than {target.archive.limit:,} bytes")
                out.write(block)
        _unpack(inner, target, level + 1)
    finally:
        inner.unlink(missing_ok=True)


def _unpack_deb(path: Path, target: _Target) -> None:
    """Unpack the files of a Debian package, whose tar archive dpkg-deb writes to a pipe."""
    command = ["dpkg-deb", "--fsys-tarfile", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        with contextlib.closing(process.stdout), tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            _unpack_tar(path, tar, target)


def parse_inventory(text: str) -> Inventory:
    """Return the inventory that is stored as JSON next to unpacked files.

    Raises ValueError for anything but ``{"files": {PATH: [BYTES, SHA256], …}}`` with paths inside the folder.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict):
        raise ValueError("it does not hold files")
    found: Inventory = {}
    for path, facts in files.items():
        if not _stays_inside(path) or not path.isprintable():
            raise ValueError(f"{path!r:.80} is no path below the folder")
        if not (isinstance(facts, list) and len(facts) == 2):
            raise ValueError(f"{path!r:.80} has no size and digest")
        size, digest = facts
        if type(size) is not int or size < 0 or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ValueError(f"{path!r:.80} has no size and digest")
        found[path] = (size, digest)
    return found


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _refuse_unsafe(path: Path, name: str) -> None:
    if not _stays_inside(name):
        raise DataError(f"{path}: member {name!r:.300} would be written outside the folder")


def _stays_inside(name: str) -> bool:
    """Return whether a name is a relative path without ``..``."""
    pure = PurePosixPath(name)
    return not (pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name)


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"
