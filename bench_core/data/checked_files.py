"""Checked files: verify sizes and digests, with errors that name the file, what was found and what was expected."""

import gzip
import hashlib
import zlib
from pathlib import Path

from bench_core.errors import DataError

__all__ = ["digest_of", "read_checked", "read_raw", "remedy"]

_BLOCK = 1 << 20


def remedy(dataset: str) -> str:
    """Return the remedy for a missing or damaged file, for error messages."""
    return f"run `exitbench data fetch {dataset}`"


def digest_of(path: Path, expected: str) -> str:
    """Return the file's digest in the form of ``expected``, ``md5:...`` or ``sha256:...``. Raises OSError."""
    algorithm = expected.partition(":")[0]
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return f"{algorithm}:{digest.hexdigest()}"


def read_raw(path: Path, dataset: str) -> bytes:
    """Return the bytes of a file, decompressed if it is gzip. Raises DataError that names the file and the remedy."""
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, MemoryError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: can't be read ({reason}); {remedy(dataset)}") from error


def read_checked(path: Path, expected: str, dataset: str) -> bytes:
    """Return the bytes of a file whose digest must be ``expected`` (``algorithm:hex``). Raises DataError."""
    raw = read_raw(path, dataset)
    algorithm, _, wanted = expected.partition(":")
    found = hashlib.new(algorithm, raw, usedforsecurity=False).hexdigest()
    if found != wanted:
        raise DataError(
            f"{path}: altered or incomplete ({len(raw):,} bytes, {algorithm} {found[:12]}…, expected {wanted[:12]}…); "
            f"{remedy(dataset)}"
        )
    return raw
