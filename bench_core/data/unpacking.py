"""Archives, unpacked member by member: only wanted regular files, only below the folder, never more than promised.

No library's "extract all" is called. A member with an absolute path, with ``..`` in it, a link or a device makes the
whole archive suspect and is refused, wanted or not.
"""

import contextlib
import gzip
import hashlib
import lzma
import re
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from bench_core.data.sources import Archive
from bench_core.errors import DataError

__all__ = ["Inventory", "unpack"]

Inventory = dict[str, tuple[int, str]]  # path: bytes, sha256

_BLOCK = 1 << 20
MOST_MEMBERS = 3_000_000
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
_NESTED = 2  # levels of archives within archives


class _Target:
    """Takes members in, and counts."""

    def __init__(self, archive: Archive, folder: Path) -> None:
        self.archive, self.folder = archive, folder
        self.inventory: Inventory = {}
        self.bytes = self.members = 0

    def take(self, place: Path, path: str, stream: IO[bytes] | gzip.GzipFile) -> None:
        """Write a member where it belongs, if it is wanted."""
        match = re.fullmatch(self.archive.pick, path)
        if match is None:
            return
        final = match.expand(self.archive.place)
        _refuse_unsafe(place, final)
        if final in self.inventory:
            raise DataError(f"{place}: holds {final} twice")
        destination = self.folder / final
        destination.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        written = 0
        with destination.open("xb") as out:
            while block := stream.read(_BLOCK):
                self.bytes += len(block)
                if self.bytes > self.archive.limit:
                    raise DataError(f"{place}: unpacks to more than {self.archive.limit:,} bytes")
                out.write(block)
                digest.update(block)
                written += len(block)
        self.inventory[final] = (written, digest.hexdigest())

    def count(self, place: Path) -> None:
        """One member more."""
        self.members += 1
        if self.members > MOST_MEMBERS:
            raise DataError(f"{place}: holds more than {MOST_MEMBERS:,} members")


def unpack(path: Path, archive: Archive, folder: Path) -> Inventory:
    """Unpack the wanted members of the file at ``path`` below ``folder``, an empty folder.

    Returns:
        The files written.

    Raises:
        DataError: the file is damaged, of an unknown kind, unsafe, or larger inside than it may be.
        OSError: the disk says no.
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
    except (*_DAMAGED, RuntimeError, EOFError) as error:  # zipfile raises RuntimeError for what is encrypted
        raise DataError(f"{path}: damaged archive ({error})") from error


def _unpack_tar(path: Path, tar: tarfile.TarFile, target: _Target) -> None:
    for member in tar:
        target.count(path)
        _refuse_unsafe(path, member.name)
        if member.isdir():
            continue
        if not member.isfile():
            raise DataError(f"{path}: member {member.name!r} is a link or a device")
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
                raise DataError(f"{path}: member {member.filename!r} is a link or a device")
            inner = target.archive.nested and level < _NESTED and member.filename.endswith(".zip")
            with archive.open(member) as stream:
                if inner and not PurePosixPath(member.filename).name.startswith("."):
                    _unpack_inner(stream, target, level)
                else:
                    target.take(path, member.filename, stream)


def _unpack_inner(stream: IO[bytes], target: _Target, level: int) -> None:
    """An archive within an archive: copied out beside the files, unpacked, removed."""
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
    """The files of a Debian package, whose tar archive dpkg-deb writes to a pipe."""
    command = ["dpkg-deb", "--fsys-tarfile", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        with contextlib.closing(process.stdout), tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            _unpack_tar(path, tar, target)


def _refuse_unsafe(path: Path, name: str) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
        raise DataError(f"{path}: member {name!r} would be written outside the folder")


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"
