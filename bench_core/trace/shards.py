"""The index of a sharded trace: its files, what each holds, and a check that all are in the index's folder.

A ``.json`` file names safetensors files in its own folder::

    {"schema": "exitbench.trace-index/1",
     "shards": [{"file": "test.00000.safetensors", "samples": 2500, "digest": "<sha256 of its tensors>"}, ...]}
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from bench_core.errors import StoreError, TraceError, one_line
from bench_core.util.files import open_regular, whole_file

__all__ = ["INDEX_SCHEMA", "Shard", "read_index", "shard_place", "write_index"]

INDEX_SCHEMA = "exitbench.trace-index/1"
_LARGEST_INDEX = 16 * 2**20  # bytes
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """One file of a trace.

    Attributes:
        file: its path relative to the index's folder.
        samples: number of samples.
        digest: sha256 of its tensors.
    """

    file: str
    samples: int
    digest: str


def write_index(path: Path, shards: Sequence[Shard]) -> None:
    """Write an index atomically. Raises StoreError."""
    content = {"schema": INDEX_SCHEMA, "shards": [vars(shard) for shard in shards]}
    try:
        with whole_file(path) as place:
            place.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StoreError.unwritable(path, error) from error


def read_index(path: Path) -> list[Shard]:
    """Return the shards that an index names. Raises TraceError for an invalid index."""

    def refuse(problem: str) -> TraceError:
        return TraceError(one_line(f"trace {path}: {problem}"))

    try:
        with open_regular(path) as stream:
            raw = stream.read(_LARGEST_INDEX + 1)
    except FileNotFoundError:
        raise refuse("no such file") from None
    except OSError as error:
        raise refuse(f"can't be read ({error.strerror})") from error
    if len(raw) > _LARGEST_INDEX:
        raise refuse(f"no index of shards: larger than {_LARGEST_INDEX} bytes")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise refuse(f"not JSON ({error!s:.80})") from None
    if not isinstance(content, dict) or content.get("schema") != INDEX_SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise refuse(f"schema {found!r:.60} is not {INDEX_SCHEMA!r}")
    listed = content.get("shards")
    if not isinstance(listed, list) or not listed:
        raise refuse("'shards' is no list of files; name at least one")
    shards = [_shard(entry, f"shards[{number}]", refuse) for number, entry in enumerate(listed)]
    seen: set[str] = set()
    for number, shard in enumerate(shards):
        if shard.file in seen:
            raise refuse(f"shards[{number}] names {shard.file} again; name each file once")
        seen.add(shard.file)
    return shards


def shard_place(index: Path, shard: Shard) -> Path:
    """Return a shard's path. Raises TraceError if it is missing, or a link leads it out of the folder."""
    place = index.parent / shard.file
    try:
        found = place.is_file()
    except OSError:  # a name longer than the file system allows
        found = False
    if not found:
        problem = f"no such file, but {index} names it; put all shards beside it"
        raise TraceError(one_line(f"trace {place!s:.400}: {problem}"))
    if not place.resolve().is_relative_to(index.parent.resolve()):
        raise TraceError(one_line(f"trace {place}: a link out of the folder of {index}; put the file itself there"))
    return place


def _shard(entry: Any, place: str, refuse: Any) -> Shard:
    if not isinstance(entry, dict):
        raise refuse(f"{place} is no object with file, samples and digest")
    file, samples, digest = (entry.get(name) for name in ("file", "samples", "digest"))
    if not isinstance(file, str) or not _stays_inside(file):
        raise refuse(f"{place}: file {file!r:.80} must be a path from the index's folder that doesn't leave it")
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise refuse(f"{place}: samples is {samples!r:.40}, expected a whole number of at least 1")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise refuse(f"{place}: digest is {digest!r:.80}, expected 64 hexadecimal digits")
    return Shard(file, samples, digest)


def _stays_inside(file: str) -> bool:
    """Return whether a name is a relative path without ``..``, on any system."""
    path = PurePosixPath(file)
    if not path.parts or "\\" in file or not file.isprintable() or PureWindowsPath(file).drive:
        return False
    return not path.is_absolute() and ".." not in path.parts
