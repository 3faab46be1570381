"""A shared store: a local folder, and the same artifacts below a URL that fsspec can read and write.

The folder works like a local store: locks, atomic files, checks. A missing artifact is looked up below the URL,
downloaded under a temporary name, checked and renamed; a new artifact is uploaded once it is complete here. A marker in
``.unsent`` records what is still to be sent, so neither a kill nor a network failure loses anything. There are no locks
below the URL: two computers that make the same artifact at once both do so, and the last upload wins.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from bench_core.errors import StoreError, UsageError, one_line
from bench_core.store.local import ZOO, Artifact, DamagedArtifactError, Store, read_artifact
from bench_core.store.paths import KINDS, UNSENT, is_regular, notes_of, refuse_links, refuse_others
from bench_core.store.remote_files import RemoteFiles, SilentError, scrubbed, without_password
from bench_core.util.files import UNFINISHED, unfinished, workspace
from bench_core.util.progress import note
from bench_core.util.sample_rows import SampleRows

__all__ = ["RemoteStore"]

_PAUSE, _LONGEST_PAUSE = 300.0, 3600.0  # seconds between a failed attempt and the next
_now = time.monotonic
_ATOMIC = frozenset({"abfs", "abfss", "az", "gcs", "gs", "oci", "oss", "r2", "s3", "s3a"})


class RemoteStore(Store):
    """Artifacts in a folder, shared with others below a URL.

    Args:
        root: the folder on this computer; created at the first write.
        url: where the artifacts are shared, such as ``s3://bucket/exitbench``.
        zoo: as for ``Store``; consulted last.
        offline: make and send nothing; artifacts below the URL are still downloaded.

    Raises:
        UsageError: fsspec, or a package that it needs for this kind of URL, isn't installed.
    """

    def __init__(self, root: Path, url: str, zoo: Path | None = ZOO, *, offline: bool = False) -> None:
        """Open the file system of ``url``; see the class."""
        super().__init__(root, zoo, offline=offline)
        self.address = url
        self.url = without_password(url)
        self._lock = threading.Lock()
        self._silence: StoreError | None = None  # why the server can't be reached, as of the last attempt
        self._asked_again = 0.0  # time of the next permitted attempt
        self._pause = _PAUSE
        self._checked = False
        self._read_only = False
        try:
            self._files = RemoteFiles(url)
        except UsageError:
            raise
        except ImportError as error:
            raise UsageError(
                self._line(
                    f"EXITBENCH_HOME={self.url}", f"{error}; pip install 'exitbench[remote]' and what that names"
                )
            ) from None
        except SilentError as error:
            raise self._unreachable(self.url, error) from None
        except Exception as error:  # each file system has errors of its own
            raise UsageError(self._line(f"EXITBENCH_HOME={self.url}", f"not a usable URL ({error})")) from None
        self._base = self._files.base

    def local(self, kind: str, key: str) -> Path:
        """Return the artifact's file, downloading it if it exists only below the URL. Raises StoreError."""
        path = self.path(kind, key)
        refuse_links(self.root, path)
        refuse_others(path)
        if not path.exists():
            self._bring(kind, key)
        return path

    def put(
        self,
        kind: str,
        key: str,
        tensors: Mapping[str, torch.Tensor | SampleRows],
        metadata: Mapping[str, Any] | None = None,
        header: Mapping[str, str] | None = None,
    ) -> Artifact:
        """Write an artifact as ``Store`` does, then send it; a failure is reported, and the next run sends it."""
        if not self.offline:
            self._mark(kind, key)
        artifact = super().put(kind, key, tensors, metadata, header)
        self._send(kind, key)
        return artifact

    def adopt(self, kind: str, key: str, file: Path) -> None:
        """Move a finished file into the store as ``Store`` does, then send it."""
        self._mark(kind, key)
        super().adopt(kind, key, file)
        self._send(kind, key)

    def remove(self, kind: str, keys: Iterable[str]) -> None:
        """Delete artifacts that are no longer needed, here and below the URL."""
        for key in () if self.offline else keys:
            super().remove(kind, [key])
            self._unmark(kind, key)
            if self._read_only or self._is_paused():
                continue
            try:
                self._files.remove(self._remote(kind, key))
            except SilentError as error:
                self._rest(self._unreachable(self.url, error))
            except Exception:  # a file that can't be removed does no harm
                continue

    def remove_here(self, kind: str, key: str) -> None:
        """Delete an artifact as ``Store`` does; if it was not sent yet, it no longer will be."""
        super().remove_here(kind, key)
        self._unmark(kind, key)

    def shared(self) -> dict[tuple[str, str], int]:
        """Return sizes in bytes, by kind and key, of artifacts below the URL. Raises StoreError if unreachable."""
        try:
            found = self._files.ask(self._find)
        except FileNotFoundError:
            return {}
        except Exception as error:  # each file system has errors of its own
            raise self._unreachable(self.url, error) from None
        sizes = {}
        for name, facts in found.items():
            kind, _, file = str(name).removeprefix(self._base).strip("/").partition("/")
            key = Path(file).stem
            if kind in KINDS and str(name).rstrip("/") == self._remote(kind, key):
                sizes[kind, key] = int(facts["size"])
        return sizes

    def _find(self, files: Any) -> Any:
        files.invalidate_cache()
        return files.find(self._base or "/", detail=True)

    def obtain(self, kind: str, key: str, make: Callable[[], Artifact], *, again: bool = False) -> Artifact:
        """Return or make the artifact as ``Store`` does, but make nothing if the URL does not exist."""

        def checked() -> Artifact:
            self._refuse_nowhere()
            return make()

        return super().obtain(kind, key, checked, again=again)

    def unsent(self) -> list[tuple[str, str]]:
        """Return the kind and key of artifacts that are complete here and not yet below the URL."""
        return [one for one in notes_of(self.root, UNSENT) if is_regular(self.root, self.path(*one))]

    def _kept(self, kind: str, key: str) -> Artifact | None:
        found = super()._kept(kind, key)
        if found is None:
            return self._bring(kind, key)
        if not self.offline and is_regular(self.root, self._marker(kind, key)):
            self._send(kind, key)
        return found

    def _bring(self, kind: str, key: str) -> Artifact | None:
        """Download and check an artifact; return None if there is none, or it is damaged."""
        path, address = self.path(kind, key), self._address(kind, key)
        unfinished(self.root, remove=True)
        try:
            # Not in the artifact's own folder: if there is nothing to download, that folder would have to be removed,
            # while another process may start to write there.
            with workspace(self.root) as place:
                file = place / path.name
                if not self._copy_here(kind, key, file):
                    return None
                artifact = read_artifact(file, key, kind)
                super().adopt(kind, key, file)
                return artifact
        except DamagedArtifactError as error:
            problem = str(error).partition(".safetensors: ")[2]
            self._refuse_or_note(DamagedArtifactError(f"{address}: {problem}"))
            return None
        except OSError as error:
            raise StoreError.unwritable(path, error) from error

    def _copy_here(self, kind: str, key: str, place: Path) -> bool:
        if self._silence is not None and self._is_paused():
            raise self._silence
        try:
            self._files.get(self._remote(kind, key), place)
        except FileNotFoundError:
            return False
        except Exception as error:  # each file system has errors of its own
            problem = self._unreachable(self._address(kind, key), error)
            if isinstance(error, SilentError):
                self._rest(problem)
            raise problem from None
        return place.exists()

    def _refuse_nowhere(self) -> None:
        """Raise StoreError, once, if nothing can be put below the URL; note if it is read-only."""
        with self._lock:
            if self._checked or self.offline:
                return
            probe = f"{self._base}/{UNFINISHED}{secrets.token_hex(8)}"
            try:
                self._files.ask(lambda files: self._try(files, probe))
            except FileNotFoundError as error:
                reason = "there is no such place; create the bucket or folder, or correct EXITBENCH_HOME"
                raise StoreError(self._line(self.url, f"{reason} ({error})")) from None
            except (PermissionError, NotImplementedError) as error:
                self._read_only = True
                note(
                    self._line(f"store: {self.url}", f"can only be read; what is made is kept in {self.root} ({error})")
                )
            except Exception as error:  # each file system has errors of its own
                raise self._unreachable(self.url, error) from None
            self._checked = True

    def _try(self, files: Any, probe: str) -> None:
        """Write a small file below the URL, and remove it."""
        if not self._is_atomic:
            files.makedirs(self._base or "/", exist_ok=True)
        files.pipe_file(probe, b"exitbench")
        with suppress(Exception):  # a leftover probe does no harm
            files.rm_file(probe)

    def _send(self, kind: str, key: str) -> None:
        """Send an artifact that is complete here. If that fails, keep its marker and pause sending for a while."""
        if self._read_only or self._is_paused():
            return
        try:
            self._put(self.path(kind, key), self._remote(kind, key))
        except Exception as error:  # each file system has errors of its own
            minutes = f"tries again after {self._pause / 60:g} min"
            problem = self._unreachable(self._address(kind, key), error)
            note(f"store: {problem}; {minutes}")
            self._rest(problem if isinstance(error, SilentError) else None)
            return
        self._unmark(kind, key)
        if self._pause != _PAUSE:  # the server answers again: send what was waiting too
            self._silence, self._pause = None, _PAUSE
            for other in self.unsent():
                self._send(*other)

    def _put(self, file: Path, target: str) -> None:
        if self._is_atomic:
            self._files.put(file, target)
            return
        folder, _, name = target.rpartition("/")
        unfinished = f"{folder}/{UNFINISHED}{secrets.token_hex(8)}-{name}"
        self._files.ask(lambda files: files.makedirs(folder, exist_ok=True))
        self._files.put(file, unfinished)
        self._files.ask(lambda files: files.mv(unfinished, target))

    def _is_paused(self) -> bool:
        """Return whether the last attempt failed a short time ago."""
        return _now() < self._asked_again

    def _rest(self, problem: StoreError | None) -> None:
        """Pause all attempts for a while, each time for twice as long."""
        self._silence = problem
        self._asked_again = _now() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _unreachable(self, address: str, error: Exception) -> StoreError:
        reason = f"{type(error).__name__}: {scrubbed(str(error), self.address):.200}"
        return StoreError(
            one_line(
                f"{address}: can't be reached ({reason}); check network and credentials and then run it again; "
                f"what was made is kept in {self.root}"
            )
        )

    def _line(self, place: str, reason: str) -> str:
        return one_line(f"{place}: {scrubbed(reason, self.address):.400}")

    @property
    def _is_atomic(self) -> bool:
        """Return whether uploads appear complete or not at all, and a move would be a second copy."""
        return bool(set(self._protocols()) & _ATOMIC)

    def _protocols(self) -> tuple[str, ...]:
        return self._files.protocols

    @property
    def _filesystem(self) -> Any:
        return self._files.filesystem

    def _relative(self, kind: str, key: str) -> str:
        return self.path(kind, key).relative_to(self.root).as_posix()

    def _remote(self, kind: str, key: str) -> str:
        return f"{self._base}/{self._relative(kind, key)}"

    def _address(self, kind: str, key: str) -> str:
        return f"{self.url}/{self._relative(kind, key)}"

    def _marker(self, kind: str, key: str) -> Path:
        return self.root / UNSENT / f"{kind}-{key}"

    def _mark(self, kind: str, key: str) -> None:
        marker = self._marker(kind, key)
        refuse_links(self.root, marker)
        refuse_others(marker)
        try:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
        except OSError as error:
            raise StoreError.unwritable(marker, error) from error

    def _unmark(self, kind: str, key: str) -> None:
        with suppress(OSError):
            if is_regular(self.root, self._marker(kind, key)):
                self._marker(kind, key).unlink()
