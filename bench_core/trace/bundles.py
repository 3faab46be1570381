"""Bundles: artifacts of a store in one file, for ranking methods elsewhere without running a network.

A bundle is an uncompressed tar: ``manifest.json`` with kind, key, size and sha256 of each artifact, then the artifact
files in the manifest's order. Bundles are untrusted: only plain files under exactly the names in the manifest are read,
every size is checked against the file before anything is read or written, and nothing becomes visible in the store
before all of it has been checked.
"""

import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from bench_core.errors import StoreError, TraceError, one_line
from bench_core.store.inventory import Entry
from bench_core.store.local import Store, read_artifact
from bench_core.store.paths import refuse_links, refuse_others
from bench_core.trace.trace import trace_from_tensors
from bench_core.util.digests import file_digest
from bench_core.util.files import open_regular, unfinished, whole_file, workspace

__all__ = ["SCHEMA", "SHARED", "Member", "export_bundle", "import_bundle"]

SCHEMA = "exitbench.bundle/1"
SHARED = ("networks", "policies", "traces")  # finished artifacts; training states and trace parts are not exported
MANIFEST = "manifest.json"
_BLOCK = tarfile.BLOCKSIZE
_LARGEST_MANIFEST = 1 << 22  # bytes: some 15,000 artifacts
_COPIED_AT_ONCE = 1 << 20
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Member:
    """An artifact file of a bundle: kind, key, bytes and sha256 of the file."""

    kind: str
    key: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """Return the member's name in the bundle."""
        return f"{self.kind}/{self.key}.safetensors"


def export_bundle(chosen: Sequence[Entry], path: Path) -> list[Member]:
    """Write artifacts into a bundle after checking each one; the same artifacts give the same bytes.

    Raises StoreError for an artifact that is damaged or of a kind that isn't shared, and if the bundle cannot be
    written.
    """
    ordered = sorted(chosen, key=lambda entry: (entry.kind, entry.key))
    members = []
    for entry in ordered:
        if entry.kind not in SHARED:
            raise StoreError(f"{entry.path}: {entry.kind} aren't exported; bundles hold {', '.join(SHARED)}")
        read_artifact(entry.path, entry.key, entry.kind)
        members.append(Member(entry.kind, entry.key, entry.path.stat().st_size, file_digest(entry.path)))
    manifest = json.dumps({"schema": SCHEMA, "artifacts": [asdict(m) for m in members]}, indent=1).encode() + b"\n"
    try:
        with whole_file(path) as place, tarfile.open(place, "w", format=tarfile.GNU_FORMAT) as bundle:
            bundle.addfile(_described(MANIFEST, len(manifest)), io.BytesIO(manifest))
            for entry, member in zip(ordered, members, strict=True):
                with open_regular(entry.path) as stream:
                    bundle.addfile(_described(member.name, member.size), stream)
    except OSError as error:
        raise StoreError.unwritable(path, error) from error
    return members


def import_bundle(path: Path, store: Store) -> list[Member]:
    """Check the whole bundle, then put its artifacts into a store.

    Artifacts that the store already has stay; if it has a different one under the same key, nothing is imported.

    Returns:
        The artifacts that are new in the store.

    Raises:
        StoreError: names the bundle, the member and what is wrong; the store is unchanged.
    """
    try:
        unfinished(store.root, remove=True)
        with open_regular(path) as bundle, workspace(store.root) as place:
            members = _read_manifest(bundle, path)
            _check_space(members, place, path)
            staged = [(member, _stage(bundle, member, place / str(i), path)) for i, member in enumerate(members)]
            _check_end(bundle, path)
            new = [(member, file) for member, file in staged if _is_new(member, file, store, path)]
            for member, file in new:
                store.adopt(member.kind, member.key, file)
            return [member for member, _ in new]
    except (OSError, MemoryError) as error:
        raise StoreError(f"bundle {path}: can't be imported ({error})") from error


def _read_manifest(bundle: IO[bytes], path: Path) -> list[Member]:
    size = _next_member(bundle, MANIFEST, path)
    if size > _LARGEST_MANIFEST:
        raise _refusal(path, f"{MANIFEST} claims {size} bytes")
    text = b"".join(_content(bundle, size, MANIFEST, path))
    try:
        manifest = json.loads(text)
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        members = [_member(record) for record in manifest["artifacts"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _refusal(path, f"{MANIFEST}: {error}") from error
    if len({member.name for member in members}) < len(members):
        raise _refusal(path, f"{MANIFEST}: an artifact is named twice")
    return members


def _member(record: Any) -> Member:
    member = Member(**record)
    if member.kind not in SHARED:
        raise ValueError(f"kind {member.kind!s:.40} is not one of {', '.join(SHARED)}")
    for value in (member.key, member.sha256):
        if not isinstance(value, str) or not _DIGEST.fullmatch(value):
            raise ValueError(f"{value!s:.80} is no digest")
    if type(member.size) is not int or member.size < 0:
        raise ValueError(f"{member.size!s:.40} is no size")
    return member


def _check_space(members: Sequence[Member], place: Path, path: Path) -> None:
    needed, free = sum(member.size for member in members), shutil.disk_usage(place).free
    if needed > free:
        raise _refusal(path, f"its artifacts claim {needed} bytes, the store has {free} free")


def _stage(bundle: IO[bytes], member: Member, file: Path, path: Path) -> Path:
    """Copy the next member to a file in the workspace and check it."""
    size = _next_member(bundle, member.name, path)
    if size != member.size:
        raise _refusal(path, f"{member.name}: {size} bytes, the manifest says {member.size}")
    digest = hashlib.sha256()
    with file.open("wb") as stream:
        for block in _content(bundle, size, member.name, path):
            digest.update(block)
            stream.write(block)
    if digest.hexdigest() != member.sha256:
        raise _refusal(path, f"{member.name}: its sha256 is {digest.hexdigest()}, the manifest says {member.sha256}")
    try:
        artifact = read_artifact(file, member.key, member.kind)
        if member.kind == "traces":
            trace_from_tensors(artifact.tensors, artifact.header, member.name)
    except (StoreError, TraceError) as error:
        raise _refusal(path, f"{member.name}: {str(error).removeprefix(f'{file}: ')}") from error
    return file


def _is_new(member: Member, file: Path, store: Store, path: Path) -> bool:
    """Return whether the store lacks an artifact, or has a damaged one. Raises StoreError if it has a different one."""
    held = store.local(member.kind, member.key)
    refuse_links(store.root, held)
    refuse_others(held)
    try:
        ours = read_artifact(held, member.key, member.kind)
    except StoreError:
        return True
    if ours.digest != read_artifact(file).digest:
        raise _refusal(
            path,
            f"{member.name}: this store has another one under the same key (content {ours.digest[:16]}); "
            "import into a store of its own (EXITBENCH_HOME)",
        )
    return False


def _next_member(bundle: IO[bytes], name: str, path: Path) -> int:
    """Read the header of the next member, which must be a plain file called ``name``; return its size in bytes."""
    header = bundle.read(_BLOCK)
    try:
        found = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    except (tarfile.TarError, ValueError) as error:
        raise _refusal(path, f"{name}: no tar header where it should begin ({error})") from error
    if found.name != name or found.type != tarfile.REGTYPE:
        raise _refusal(path, f"{found.name!r:.90} where the file {name} should be")
    here = bundle.tell()
    left = bundle.seek(0, io.SEEK_END) - here
    bundle.seek(here)
    if not 0 <= found.size <= left:
        raise _refusal(path, f"{name}: claims {found.size} bytes, {left} are left")
    return found.size


def _content(bundle: IO[bytes], size: int, name: str, path: Path) -> Iterator[bytes]:
    """Yield the ``size`` bytes of a member in blocks, then skip its padding."""
    left = size
    while left:
        block = bundle.read(min(left, _COPIED_AT_ONCE))
        if not block:
            raise _refusal(path, f"{name}: ends early")
        left -= len(block)
        yield block
    bundle.read(-size % _BLOCK)


def _check_end(bundle: IO[bytes], path: Path) -> None:
    while block := bundle.read(_COPIED_AT_ONCE):
        if block.strip(b"\0"):
            raise _refusal(path, "goes on behind the last artifact of its manifest")


def _described(name: str, size: int) -> tarfile.TarInfo:
    """Return a member's header without owner and date."""
    described = tarfile.TarInfo(name)
    described.size = size
    return described


def _refusal(path: Path, problem: str) -> StoreError:
    return StoreError(one_line(f"bundle {path}: {problem:.400}"))
