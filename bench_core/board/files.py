"""The files of a board on disk: which ones exist, whether they are unmodified, and whether all are of one board.

``manifest.json`` holds the sha256 of every table. If a board is replaced during reading, it is read again.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from bench_core.board.schema import (
    CLASS_COLUMNS,
    CURVE_COLUMNS,
    MEASUREMENT_COLUMNS,
    PAIRWISE_COLUMNS,
    RAW_COLUMNS,
    RELIABILITY_COLUMNS,
    SCHEMA,
    SEED_COLUMNS,
    SHIFT_COLUMNS,
    SUMMARY_COLUMNS,
    TRAINING_COLUMNS,
    WORKLOAD_COLUMNS,
)
from bench_core.errors import UsageError, one_line
from bench_core.util.files import open_regular
from bench_core.util.progress import note
from bench_core.util.whole_folder import place_of

__all__ = [
    "FIXED_COLUMNS",
    "KEPT_TABLES",
    "LEADERBOARD",
    "MANIFEST",
    "OPTIONAL_TABLES",
    "OWN_FILES",
    "TABLES",
    "digest_of",
    "kept_content",
    "read_files",
]

FIXED_COLUMNS = {  # rows.csv has more, from the cost models
    "workloads": WORKLOAD_COLUMNS,
    "curves": CURVE_COLUMNS,
    "pairwise": PAIRWISE_COLUMNS,
    "classes": CLASS_COLUMNS,
    "reliability": RELIABILITY_COLUMNS,
    "summary": SUMMARY_COLUMNS,
}
TABLES = ("rows", *FIXED_COLUMNS)
OPTIONAL_TABLES = {"seeds": SEED_COLUMNS, "shift": SHIFT_COLUMNS}
KEPT_TABLES = {"measurements": MEASUREMENT_COLUMNS, "measurements-raw": RAW_COLUMNS, "training": TRAINING_COLUMNS}
MANIFEST, LEADERBOARD = "manifest.json", "leaderboard.md"
_CSV_FILES = tuple(f"{name}.csv" for name in (*TABLES, *OPTIONAL_TABLES, *KEPT_TABLES))
OWN_FILES = (*_CSV_FILES, MANIFEST, LEADERBOARD)
_DIGESTS = "sha256"  # key of the tables' digests in the manifest
_ATTEMPTS = 20

Found = TypeVar("Found")


def digest_of(content: bytes) -> str:
    """Return the sha256 of a table in the form the manifest uses."""
    return hashlib.sha256(content).hexdigest()


def read_files(folder: Path, *, verified: bool = True) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the manifest of the board in ``folder`` and its tables by name, all of one board.

    Args:
        folder: of the results.
        verified: compare every table with its digest in the manifest.

    Raises:
        UsageError: one line, for a file that is missing or unreadable, or the first table that differs.
    """
    return _undisturbed(folder, lambda place: _read_once(folder, place, verified=verified))


def kept_content(folder: Path, name: str) -> bytes | None:
    """Return the content of a table of ``KEPT_TABLES`` from an earlier run in ``folder``, or None.

    An unreadable table is skipped with a note; an edited one is kept with a note.
    """
    file = f"{name}.csv"

    def read(place: Path) -> tuple[bytes | None, str]:
        try:
            content = _bytes(place / file)
        except FileNotFoundError:
            return None, ""
        except OSError as error:
            return None, f"not readable ({error}); passed over"
        try:
            expected = json.loads(_bytes(place / MANIFEST))[_DIGESTS][file]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return content, ""  # nothing to compare with, as in boards of an earlier version
        edited = expected != digest_of(content)
        return content, "not as it was written; kept as it is, --remeasure measures again" if edited else ""

    content, remark = _undisturbed(folder, read)
    if remark:
        note(one_line(f"{folder / file}: {remark}"))
    return content


def _undisturbed(folder: Path, read: Callable[[Path], Found]) -> Found:
    """Call ``read`` on the folder of the board's files, again if another board replaces them meanwhile."""
    for _ in range(_ATTEMPTS):
        before = _state(folder)
        try:
            found = read(before[0])
        except UsageError:
            if _state(folder) == before:
                raise
        else:
            if _state(folder) == before:
                return found
    raise UsageError(f"results {folder}: changed again and again while they were read; wait for the run that does it")


def _state(folder: Path) -> tuple[Path, bytes]:
    """Return the folder of the board's files, and its manifest, which is unique to the board."""
    place = place_of(folder)
    try:
        return place, _bytes(place / MANIFEST)
    except OSError:
        return place, b""


def _read_once(folder: Path, place: Path, *, verified: bool) -> tuple[dict[str, Any], dict[str, bytes]]:
    try:
        manifest = json.loads(_bytes(place / MANIFEST))
        contents = {}
        for file in _CSV_FILES:
            try:
                contents[file] = _bytes(place / file)
            except FileNotFoundError:
                continue
    except FileNotFoundError:
        raise _missing(folder, MANIFEST) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(one_line(f"results {folder}: not readable ({error})")) from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise UsageError(f"results {folder}: manifest.json is not of schema {SCHEMA}; run the suite again")
    if verified:
        _compare(folder, manifest.get(_DIGESTS), contents)
    for name in TABLES:
        if f"{name}.csv" not in contents:
            raise _missing(folder, f"{name}.csv")
    return manifest, {file.removesuffix(".csv"): content for file, content in contents.items()}


def _compare(folder: Path, digests: object, contents: Mapping[str, bytes]) -> None:
    """Raise UsageError for the first table whose digest differs from the manifest's."""
    remedy = "run the suite again, or read the board as it is (--unverified)"
    if not isinstance(digests, dict):
        raise UsageError(f"results {folder}: manifest.json holds no {_DIGESTS} of the tables; {remedy}")
    for file in _CSV_FILES:
        expected, content = digests.get(file), contents.get(file)
        if content is None and expected is not None:
            raise _missing(folder, file)
        if content is not None and expected is None:
            raise UsageError(f"results {folder}: {file} is no table of this board; remove it, or {remedy}")
        if content is not None and digest_of(content) != expected:
            raise UsageError(
                one_line(
                    f"results {folder}: {file} is not as it was written (its {_DIGESTS} is {digest_of(content):.16}, "
                    f"manifest.json has {expected!s:.16}); restore it, {remedy}"
                )
            )


def _missing(folder: Path, file: str) -> UsageError:
    return UsageError(f"results {folder}: {file} is missing; `exitbench run` writes it")


def _bytes(path: Path) -> bytes:
    with open_regular(path) as stream:
        return stream.read()
