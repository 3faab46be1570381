"""The store: artifacts addressed by the digest of what produced them.

An artifact is one safetensors file: tensors, and a header of strings in which ``artifact`` is JSON with kind, key,
the digest of the tensors and whatever the stage adds; other header entries are the format's own (a trace's, say). It
is written to a temporary name and renamed, so a name in the store always holds a whole file; its content is checked
when it is read, and what is damaged is named and set aside.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bench_core.digests import json_digest, tensors_digest
from bench_core.errors import StoreError
from bench_core.progress import note

__all__ = ["Artifact", "Store", "copy_artifact", "default_root", "read_artifact", "write_safetensors"]

ZOO = Path(__file__).parent / "zoo"


@dataclass(frozen=True)
class Artifact:
    """Named tensors, JSON-able metadata, and the strings of the file format's own header."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]
    header: dict[str, str]

    @property
    def digest(self) -> str:
        """sha256 of the tensors' content."""
        return str(self.metadata["content"])


class Store:
    """Artifacts below one folder, with the package's zoo as a read-only layer beneath.

    Args:
        root: the folder; made when first written to.
        zoo: folder of shipped artifacts that is consulted after the store; None leaves it out.
    """

    def __init__(self, root: Path, zoo: Path | None = ZOO) -> None:
        self.root = root
        self._zoo = zoo
        self._zoo_index: dict[tuple[str, str], Path] | None = None

    def path(self, kind: str, key: str) -> Path:
        """Where an artifact of this kind and key lives in the store."""
        return self.root / kind / key[:2] / f"{key}.safetensors"

    def get(self, kind: str, key: str) -> Artifact | None:
        """The artifact, or None where there is none. A damaged one is named on stderr, removed, and not there."""
        path = self.path(kind, key)
        if path.exists():
            try:
                return read_artifact(path, key)
            except StoreError as error:
                note(f"store: {error}; it is made again")
                path.unlink(missing_ok=True)
        return self._from_zoo(kind, key)

    def put(
        self,
        kind: str,
        key: str,
        tensors: Mapping[str, torch.Tensor],
        metadata: Mapping[str, Any] | None = None,
        header: Mapping[str, str] | None = None,
    ) -> Artifact:
        """Write an artifact whole or not at all. Raises StoreError when the disk says no.

        Args:
            kind, key: where it is found again.
            tensors: its content.
            metadata: JSON-able facts about how it was made.
            header: strings of the file format itself.
        """
        path = self.path(kind, key)
        strings = dict(header or {})
        record = {**(metadata or {}), "kind": kind, "key": key, "content": tensors_digest(tensors)}
        record["seal"] = _seal(record, strings)
        write_safetensors(path, tensors, {**strings, "artifact": json.dumps(record)})
        return Artifact(dict(tensors), record, strings)

    def remove(self, kind: str, keys: Iterable[str]) -> None:
        """Delete artifacts that are no longer needed, such as the parts of one that is whole."""
        for key in keys:
            self.path(kind, key).unlink(missing_ok=True)

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
                except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
                    note(f"shipped with exitbench: {path}: damaged ({error}); it is made again, or install again")
        return self._zoo_index


def default_root() -> Path:
    """``$EXITBENCH_HOME``, or the platform's cache folder."""
    if home := os.environ.get("EXITBENCH_HOME"):
        return Path(home)
    from platformdirs import user_cache_path

    return user_cache_path("exitbench")


def read_artifact(path: Path, key: str | None = None) -> Artifact:
    """Read and check an artifact file. Raises StoreError that names the file and what is wrong with it."""
    try:
        with safe_open(path, framework="pt") as handle:
            header = dict(handle.metadata() or {})
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  # not a mapping
        metadata = dict(json.loads(header.pop("artifact")))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{path}: damaged ({error})") from error
    if key is not None and metadata.get("key") != key:
        raise StoreError(f"{path}: holds another artifact than its name says")
    if metadata.get("content") != tensors_digest(tensors) or metadata.get("seal") != _seal(metadata, header):
        raise StoreError(f"{path}: altered (its content doesn't match its digest)")
    return Artifact(tensors, metadata, header)


def _seal(record: Mapping[str, Any], header: Mapping[str, str]) -> str:
    """Digest of an artifact's metadata and header."""
    facts = {name: value for name, value in record.items() if name != "seal"}
    return json_digest({"record": facts, "header": dict(header)})


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str]) -> None:
    """Write a safetensors file under a temporary name, flush it to disk, rename it. Raises StoreError."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, dict(header))
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
        temporary = None
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path}: can't be written ({error}); free space or choose another place") from error
    finally:  # Ctrl-C included
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def copy_artifact(artifact: Artifact, path: Path) -> None:
    """Write an artifact to a file of its own, as the package's zoo holds them. Raises StoreError."""
    write_safetensors(path, artifact.tensors, {**artifact.header, "artifact": json.dumps(artifact.metadata)})
