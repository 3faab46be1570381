"""The store: artifacts addressed by the digest of their inputs.

An artifact is one safetensors file: tensors, and a header of strings in which ``artifact`` is JSON with the kind, the
key, the digest of the tensors and the stage's own facts; other header entries belong to the format (such as a trace's).
It is written next to its final path and renamed, so a name in the store always refers to a complete file. Its content
is checked when it is read; a damaged file is reported and removed. docs/store.md lists the faults that this survives.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bench_core.errors import NoHomeError, StoreError, UsageError, one_line
from bench_core.store.paths import KINDS, LOCKS, UNSENT, artifact_files, is_regular, refuse_links, refuse_others
from bench_core.util.digests import json_digest, tensors_digest
from bench_core.util.files import exclusive, publish, unfinished
from bench_core.util.progress import note
from bench_core.util.safetensors_files import read_safetensors, write_safetensors
from bench_core.util.sample_rows import SampleRows

__all__ = [
    "KINDS",
    "LOCKS",
    "UNSENT",
    "Artifact",
    "DamagedArtifactError",
    "Store",
    "copy_artifact",
    "default_root",
    "default_store",
    "home_path",
    "read_artifact",
    "remove_damaged",
]

ZOO = Path(__file__).parent.parent / "zoo"
_REMEDY = "import a bundle that holds it, or run without --offline-store"


class DamagedArtifactError(StoreError):
    """An artifact file whose content differs from what was written."""


@dataclass(frozen=True)
class Artifact:
    """Named tensors, JSON-able metadata, and the strings of the file format's own header."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]
    header: dict[str, str]

    @property
    def digest(self) -> str:
        """Return the sha256 of the tensors' content."""
        return str(self.metadata["content"])


class Store:
    """Artifacts in one folder, with the package's zoo as a read-only layer beneath.

    ``url`` is the location where its artifacts are shared, without a password, and ``address`` the same with it; both
    are empty for a local store. ``lock_patience`` is how many seconds to wait for another process's lock before making
    an artifact anyway; None waits indefinitely.

    Args:
        root: the folder; created at the first write.
        zoo: folder of artifacts that come with the package, consulted after the store; None omits it.
        offline: use only stored artifacts; a missing or damaged one is an error that names it.
    """

    url = ""
    address = ""
    lock_patience: float | None = None

    def __init__(self, root: Path, zoo: Path | None = ZOO, *, offline: bool = False) -> None:
        """Store the folder and options; see the class. Nothing is read or written yet."""
        self.root = root
        self.offline = offline
        self._zoo = zoo
        self._zoo_index: dict[tuple[str, str], Path] | None = None

    @property
    def places(self) -> list[Path]:
        """Return the folders that artifacts are read from: the store's own, by kind, and the zoo."""
        return [*(self.root / kind for kind in KINDS), *([self._zoo] if self._zoo else [])]

    def path(self, kind: str, key: str) -> Path:
        """Return the path of an artifact of this kind and key in the store."""
        return self.root / kind / key[:2] / f"{key}.safetensors"

    def get(self, kind: str, key: str) -> Artifact | None:
        """Return the artifact, or None if it is missing or damaged; a damaged one is reported on stderr and removed.

        Raises StoreError for a file that can't be read (its content may be intact), for a link or anything else that is
        not a regular file, and, if the store is offline, for a damaged artifact.
        """
        return self._kept(kind, key) or self._from_zoo(kind, key)

    def files(self, kind: str) -> list[Path]:
        """Return the files of this kind in the folder, by name, excluding links and their targets."""
        return list(artifact_files(self.root, kind))

    def has(self, kind: str, key: str) -> bool:
        """Return whether the artifact exists here, in the zoo or at the shared location; it may be damaged."""
        return is_regular(self.root, self.local(kind, key)) or (kind, key) in self._shipped()

    def local(self, kind: str, key: str) -> Path:
        """Return the artifact's file, which may not exist; a shared store downloads it first."""
        return self.path(kind, key)

    def shared(self) -> dict[tuple[str, str], int]:
        """Return sizes in bytes, by kind and key, of what is shared at ``url``. Raises StoreError if unreachable."""
        return {}

    def unsent(self) -> list[tuple[str, str]]:
        """Return the kind and key of artifacts that are complete here and not yet at ``url``."""
        return []

    def obtain(self, kind: str, key: str, make: Callable[[], Artifact], *, again: bool = False) -> Artifact:
        """Return the artifact, creating it with ``make`` if it is missing or ``again`` is set, in one process only.

        Raises StoreError if the store is offline or can't be written to.
        """
        if not again and (found := self.get(kind, key)) is not None:
            return found
        path, lock = self.path(kind, key), self.root / LOCKS / f"{kind}-{key}"
        if self.offline:
            raise StoreError(f"{path}: not there; nothing is made offline: {_REMEDY}")
        refuse_links(self.root, lock)
        refuse_others(lock)
        with ExitStack() as stack:
            try:
                wait = f"store: another run is making {kind} {key[:16]}; waiting for it"
                stack.enter_context(exclusive(lock, lambda: note(wait), patience=self.lock_patience))
            except OSError as error:
                raise StoreError.unwritable(path, error) from error
            if not again and (found := self.get(kind, key)) is not None:
                return found
            return make()

    def put(
        self,
        kind: str,
        key: str,
        tensors: Mapping[str, torch.Tensor | SampleRows],
        metadata: Mapping[str, Any] | None = None,
        header: Mapping[str, str] | None = None,
    ) -> Artifact:
        """Write an artifact atomically. Raises StoreError if the file cannot be written, or the store is offline.

        The result is read back from the file, as ``get`` returns it.

        Args:
            kind: the artifact's kind.
            key: the artifact's key within its kind.
            tensors: its content; rows are written as they are read, a few at a time.
            metadata: JSON-able facts about how it was made.
            header: strings of the file format itself.
        """
        path = self.path(kind, key)
        if self.offline:
            raise StoreError(f"{path}: nothing is written offline: {_REMEDY}")
        refuse_links(self.root, path)
        unfinished(path.parent, remove=True)
        strings = dict(header or {})
        record = {**(metadata or {}), "kind": kind, "key": key, "content": tensors_digest(tensors)}
        record["seal"] = _seal(record, strings)
        written = write_safetensors(path, tensors, {**strings, "artifact": json.dumps(record)})
        return Artifact(written, record, strings)

    def adopt(self, kind: str, key: str, file: Path) -> None:
        """Move a finished artifact file on this disk to its path in the store. Raises OSError, StoreError."""
        path = self.path(kind, key)
        refuse_links(self.root, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        publish(file, path)

    def remove(self, kind: str, keys: Iterable[str]) -> None:
        """Delete artifacts that are no longer needed, such as the parts of a completed one."""
        for key in () if self.offline else keys:
            with suppress(OSError, StoreError):
                path = self.path(kind, key)
                refuse_links(self.root, path)
                path.unlink()

    def remove_here(self, kind: str, key: str) -> None:
        """Delete an artifact from this folder only; shared copies stay.

        Raises:
            StoreError: it can't be removed, or its folder is a link that leads out of the store.
        """
        path = self.path(kind, key)
        refuse_links(self.root, path)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(
                one_line(f"{path}: can't be removed ({error.strerror}); change the permissions of its folder")
            ) from error

    def _kept(self, kind: str, key: str) -> Artifact | None:
        """Return the store's own artifact if it exists and is intact."""
        path = self.path(kind, key)
        refuse_links(self.root, path)
        refuse_others(path)
        found = _status(path)
        if found is not None:
            try:
                return read_artifact(path, key, kind)
            except DamagedArtifactError as error:
                self._refuse_or_note(error)
                remove_damaged(path, found)
            except StoreError:
                if path.exists():
                    raise
        return None

    def _refuse_or_note(self, error: StoreError) -> None:
        """Report a damaged artifact as due to be remade, or raise StoreError if the store is offline."""
        if self.offline:
            raise StoreError(f"{error}; nothing is made offline: {_REMEDY}") from error
        note(f"store: {error}; it is made again")

    def _from_zoo(self, kind: str, key: str) -> Artifact | None:
        shipped = self._shipped().get((kind, key))
        try:
            return None if shipped is None else read_artifact(shipped, key)
        except StoreError as error:
            note(f"shipped with exitbench: {error}; it is made again, or install again")
            return None

    def _shipped(self) -> dict[tuple[str, str], Path]:
        if self._zoo_index is None:
            self._zoo_index = {}
            for path in sorted(self._zoo.glob("*/*.safetensors")) if self._zoo else []:
                try:
                    with safe_open(path, framework="pt") as handle:
                        record = json.loads(handle.metadata()["artifact"])
                    self._zoo_index[record["kind"], record["key"]] = path
                except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
                    note(f"shipped with exitbench: {path}: damaged ({error}); it is made again, or install again")
        return self._zoo_index


def default_root() -> Path:
    """Return ``$EXITBENCH_HOME``, or the platform's cache folder; for a URL, a separate folder in the cache folder.

    Raises:
        NoHomeError: neither the variable nor the user's home gives a location.
        UsageError: ``~`` in the variable refers to an unknown home.
    """
    home = os.environ.get("EXITBENCH_HOME")
    if home and not _is_url(home):
        return home_path("EXITBENCH_HOME", home)
    from platformdirs import user_cache_path

    try:
        cache = user_cache_path("exitbench")
    except (KeyError, RuntimeError, OSError) as error:
        raise _no_home() from error
    if not cache.is_absolute() or (os.environ.get("HOME") == "" and not os.environ.get("XDG_CACHE_HOME")):
        raise _no_home()  # an unknown home stays as ~, a folder of the current one
    return cache / "shared" / json_digest(home)[:16] if home else cache


def home_path(variable: str, value: str) -> Path:
    """Return the path in an environment variable, expanding ``~`` and ``~user``. Raises UsageError if unknown."""
    path = os.path.expanduser(value)  # noqa: PTH111  # keeps an unknown ~ as it is, and never raises
    user = value.split("/", maxsplit=1)[0]
    if path.startswith("~") or (user == "~" and os.environ.get("HOME") == ""):
        raise UsageError(f"{variable}={value}: there is no home folder of {user}; give an absolute path")
    return Path(path)


def _no_home() -> NoHomeError:
    return NoHomeError(
        "the store has no folder: this user has no home (HOME is not set, and no entry in the password file has one); "
        "set EXITBENCH_HOME to a folder"
    )


def default_store(zoo: Path | None = ZOO, *, offline: bool = False) -> Store:
    """Return the store that ``$EXITBENCH_HOME`` names: a folder, or a URL where artifacts are shared.

    Raises UsageError for a URL that can't be used here.
    """
    home = os.environ.get("EXITBENCH_HOME")
    if home and _is_url(home):
        from bench_core.store.remote import RemoteStore

        return RemoteStore(default_root(), home, zoo, offline=offline)
    return Store(default_root(), zoo, offline=offline)


def _is_url(home: str) -> bool:
    return "://" in home


def read_artifact(path: Path, key: str | None = None, kind: str | None = None) -> Artifact:
    """Read and check an artifact file.

    Raises DamagedArtifactError, which names the file and what is wrong with its content, and StoreError for a file that
    can't be read at all.
    """
    try:
        tensors, header = read_safetensors(path)
        metadata = dict(json.loads(header.pop("artifact")))
        content, seal = tensors_digest(tensors), _seal(metadata, header)
    except (OSError, MemoryError) as error:
        raise StoreError(f"{path}: can't be read ({error})") from error
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedArtifactError(one_line(f"{path}: damaged ({error!s:.200})")) from error
    if metadata.get("key") != (key or metadata.get("key")) or metadata.get("kind") != (kind or metadata.get("kind")):
        raise DamagedArtifactError(f"{path}: holds another artifact than its name says")
    for what, expected, found in (("content", metadata.get("content"), content), ("seal", metadata.get("seal"), seal)):
        if expected != found:
            raise DamagedArtifactError(one_line(f"{path}: altered (its {what} is {found}, expected {expected!s:.64})"))
    return Artifact(tensors, metadata, header)


def remove_damaged(path: Path, found: os.stat_result) -> None:
    """Remove a file that was found damaged, unless another process has replaced it since."""
    with suppress(OSError):  # a read-only store keeps it
        if os.path.samestat(path.lstat(), found):
            path.unlink()


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def _seal(record: Mapping[str, Any], header: Mapping[str, str]) -> str:
    """Return the digest of an artifact's metadata and header."""
    facts = {name: value for name, value in record.items() if name != "seal"}
    return json_digest({"record": facts, "header": dict(header)})


def copy_artifact(artifact: Artifact, path: Path) -> None:
    """Write an artifact to a standalone file, as in the package's zoo. Raises StoreError."""
    write_safetensors(path, artifact.tensors, {**artifact.header, "artifact": json.dumps(artifact.metadata)})
