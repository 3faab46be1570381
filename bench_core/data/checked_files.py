"""Files that are what they claim to be: sizes and digests, and errors that name file, found and expected."""

import gzip
import hashlib
import zlib
from pathlib import Path

from bench_core.errors import DataError

__all__ = ["digest_of", "read_checked", "read_raw", "remedy"]

_BLOCK = 1 << 20


def remedy(dataset: str) -> str:
    """What to do about a missing or damaged file."""
    return f"run `exitbench data fetch {dataset}`"


def digest_of(path: Path, expected: str) -> str:
    """The file's digest in the form of ``expected``, ``md5:...`` or ``sha256:...``. Raises OSError."""
    algorithm = expected.partition(":")[0]
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return f"{algorithm}:{digest.hexdigest()}"


def read_raw(path: Path, dataset: str) -> bytes:
    """The bytes of a file, unpacked if it is gzip. Raises DataError that names the file and the remedy."""
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, MemoryError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: can't be read ({reason}); {remedy(dataset)}") from error


def read_checked(path: Path, expected: str, dataset: str) -> bytes:
    """The bytes of a file that has the digest ``expected`` (``algorithm:hex``). Raises DataError."""
    raw = read_raw(path, dataset)
    algorithm, _, wanted = expected.partition(":")
    found = hashlib.new(algorithm, raw, usedforsecurity=False).hexdigest()
    if found != wanted:
        raise DataError(
            f"{path}: altered or incomplete ({len(raw):,} bytes, {algorithm} {found[:12]}…, expected {wanted[:12]}…); "
            f"{remedy(dataset)}"
        )
    return raw
