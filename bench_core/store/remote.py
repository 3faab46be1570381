"""A store that others share: a folder here, and the same artifacts below a URL that fsspec can read and write.

The folder works as it always does: locks, whole files, checks. What it lacks is looked for below the URL, brought
under a temporary name, checked and renamed; what is put into it is sent to the URL once it is whole here. A marker in
``.unsent`` says what still has to be sent, so that neither a kill nor a broken network loses anything. There are no
locks below the URL: two computers that make the same artifact at once both do, and the last one's file stays.
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

_PAUSE, _LONGEST_PAUSE = 300.0, 3600.0  # seconds after a failed try until the next
_now = time.monotonic
_ATOMIC = frozenset({"abfs", "abfss", "az", "gcs", "gs", "oci", "oss", "r2", "s3", "s3a"})


class RemoteStore(Store):
    """Artifacts in a folder, shared with others below a URL.

    Args:
        root: the folder on this computer; made when first written to.
        url: where the artifacts are shared, such as ``s3://bucket/exitbench``.
        zoo: as of ``Store``; consulted last.
        offline: make and send nothing; what lies below the URL is still brought.

    Raises:
        UsageError: where fsspec, or what it needs for this kind of URL, isn't installed.
    """

    def __init__(self, root: Path, url: str, zoo: Path | None = ZOO, *, offline: bool = False) -> None:
        super().__init__(root, zoo, offline=offline)
        self.address = url
        self.url = without_password(url)
        self._lock = threading.Lock()
        self._silence: StoreError | None = None  # why it can't be reached, as of the last try
        self._asked_again = 0.0  # when the next try may be
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
        """The artifact's file, brought here where it lies below the URL only. Raises StoreError."""
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
        """As of ``Store``; then it is sent. Where that fails a line says so, and the next run sends it."""
        if not self.offline:
            self._mark(kind, key)
        artifact = super().put(kind, key, tensors, metadata, header)
        self._send(kind, key)
        return artifact

    def adopt(self, kind: str, key: str, file: Path) -> None:
        """As of ``Store``; then it is sent."""
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
            except Exception:  # what can't be removed is in nobody's way
                continue

    def remove_here(self, kind: str, key: str) -> None:
        """As of ``Store``; what wasn't sent yet no longer will be."""
        super().remove_here(kind, key)
        self._unmark(kind, key)

    def shared(self) -> dict[tuple[str, str], int]:
        """Bytes by kind and key of what lies below the URL. Raises StoreError where it can't be reached."""
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
        """As of ``Store``; nothing is made where it couldn't be shared, since the URL leads nowhere."""

        def checked() -> Artifact:
            self._refuse_nowhere()
            return make()

        return super().obtain(kind, key, checked, again=again)

    def unsent(self) -> list[tuple[str, str]]:
        """Kind and key of what is whole here and not yet below the URL."""
        return [one for one in notes_of(self.root, UNSENT) if is_regular(self.root, self.path(*one))]

    def _kept(self, kind: str, key: str) -> Artifact | None:
        found = super()._kept(kind, key)
        if found is None:
            return self._bring(kind, key)
        if not self.offline and is_regular(self.root, self._marker(kind, key)):
            self._send(kind, key)
        return found

    def _bring(self, kind: str, key: str) -> Artifact | None:
        """Copy an artifact here, once it is checked; None where there is none, or a damaged one."""
        path, address = self.path(kind, key), self._address(kind, key)
        unfinished(self.root, remove=True)
        try:
            # Not in the artifact's own folder, which would have to go again where there is nothing to bring, and just
            # then another process may begin to write there.
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
        """Raise StoreError where nothing can be put below the URL, once; note where it may only be read."""
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
        """Put a small file below the URL, and remove it."""
        if not self._is_atomic:
            files.makedirs(self._base or "/", exist_ok=True)
        files.pipe_file(probe, b"exitbench")
        with suppress(Exception):  # it is in nobody's way
            files.rm_file(probe)

    def _send(self, kind: str, key: str) -> None:
        """Send an artifact that is whole here. Where that fails, its marker stays, and others wait for a while too."""
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
        if self._pause != _PAUSE:  # it answers again: what has waited is sent too
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
        """Whether the last try failed a short time ago."""
        return _now() < self._asked_again

    def _rest(self, problem: StoreError | None) -> None:
        """Try nothing for a while; each time for twice as long."""
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
        """Whether an object appears whole or not at all, and a move would be a second copy."""
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
