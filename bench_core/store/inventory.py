"""Inventory of a store: list and describe its artifacts, verify their digests, and remove obsolete ones."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from bench_core.errors import StoreError, UsageError, one_line
from bench_core.knobs import nearest
from bench_core.store.local import ZOO, DamagedArtifactError, Store, read_artifact, remove_damaged
from bench_core.store.paths import KINDS, LOCKS, UNSENT, abandoned, is_regular, notes_of, strangers
from bench_core.util.files import UNFINISHED

__all__ = [
    "Entry",
    "choose",
    "describe",
    "entries",
    "left_alone",
    "prune",
    "removable",
    "remove",
    "shipped_entries",
    "verify",
]

_SECONDS_PER_DAY = 86_400.0
_SHORTEST_KEY = 4
_SHORTEST_KEY_TO_REMOVE = 8
_DEPENDENTS_FIRST = ("scores", "policies", "trace-parts", "traces", "converted", "training", "networks")


@dataclass(frozen=True)
class Entry:
    """An artifact file as its header describes it; its tensors are neither read nor checked.

    Attributes:
        kind, key: the artifact's address.
        path: the file.
        size: bytes.
        workload: name of the workload that it belongs to, if its header names one, else "".
        what: short description.
        tensors: dtype and shape of each, by name.
        metadata, header: as in ``Artifact``.
        damage: what is wrong with the header, else "".
    """

    kind: str
    key: str
    path: Path
    size: int
    workload: str = ""
    what: str = ""
    tensors: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    header: Mapping[str, str] = field(default_factory=dict)
    damage: str = ""


def entries(store: Store, kinds: Sequence[str] = KINDS) -> list[Entry]:
    """Return the artifacts of a store, by kind and key."""
    return [_entry(path, kind, path.stem) for kind, path in _artifact_files(store) if kind in kinds]


def left_alone(store: Store) -> list[str]:
    """Return a line for each link, FIFO, socket and device in the store's folder; no command touches any of them."""
    return [one_line(f"{path}: is {what}; left alone, and not followed") for path, what in strangers(store.root)]


def shipped_entries(zoo: Path = ZOO) -> list[Entry]:
    """Return the artifacts that come with the package, under the keys in their headers."""
    found = [_entry(path, path.parent.name) for path in sorted(zoo.glob("*/*.safetensors"))]
    return [entry for entry in found if not entry.damage]


def choose(found: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    """Return the artifacts of the named workloads, and those whose key or KIND/KEY begins with a name.

    A workload's artifacts are its networks, its traces, and the policies fitted on one of these traces. If two have the
    same kind and key, the first one counts. Raises UsageError for a name that matches none, or several.
    """
    chosen: dict[tuple[str, str], Entry] = {}
    for name in names:
        own = [entry for entry in found if entry.workload == name and entry.kind in ("networks", "traces")]
        traces = {entry.key for entry in own if entry.kind == "traces"}
        own += [entry for entry in found if entry.kind == "policies" and _calibration(entry) in traces]
        if not own and len(name) >= _SHORTEST_KEY:
            own = [e for e in found if e.key.startswith(name) or f"{e.kind}/{e.key}".startswith(name)]
            if len({(entry.kind, entry.key) for entry in own}) > 1:
                raise UsageError(f"{name}: several artifacts begin like this; give more of KIND/KEY")
        if not own:
            raise UsageError(f"{name}: neither a workload nor a key of this store; see `exitbench store list`")
        for entry in own:
            chosen.setdefault((entry.kind, entry.key), entry)
    return list(chosen.values())


def removable(store: Store, names: Sequence[str]) -> list[Entry]:
    """Return the artifacts of this store that ``remove`` is to delete.

    Args:
        store: the store.
        names: workload names, for everything made for them, finished or not; or the first digits, at least eight, of a
            key or of KIND/KEY, for one artifact.

    Raises:
        UsageError: a name matches nothing here, or several artifacts; nothing is removed for the other names either.
    """
    found = entries(store)
    chosen: dict[tuple[str, str], Entry] = {}
    for name in names:
        for entry in _of_workload(found, name) or [_of_key(found, name)]:
            chosen[entry.kind, entry.key] = entry
    return sorted(chosen.values(), key=lambda entry: (_DEPENDENTS_FIRST.index(entry.kind), entry.key))


def remove(store: Store, chosen: Sequence[Entry]) -> None:
    """Delete artifacts from the store's own folder, in the order given. Raises StoreError if one can't be deleted."""
    for entry in chosen:
        store.remove_here(entry.kind, entry.key)


def _of_workload(found: Sequence[Entry], name: str) -> list[Entry]:
    """Return the artifacts made for a workload; some are found only through the artifacts they belong to."""
    own = {(entry.kind, entry.key): entry for entry in found if entry.workload == name}
    if not name:
        return []
    for entry in found:
        of = {"policies": ("traces", _calibration(entry)), "trace-parts": ("traces", str(entry.metadata.get("trace")))}
        if of.get(entry.kind, ("networks", entry.key if entry.kind == "training" else "")) in own:
            own[entry.kind, entry.key] = entry
    return list(own.values())


def _of_key(found: Sequence[Entry], name: str) -> Entry:
    fitting = [e for e in found if name and (e.key.startswith(name) or f"{e.kind}/{e.key}".startswith(name))]
    key = name.rpartition("/")[2]
    if fitting and len(key) >= _SHORTEST_KEY_TO_REMOVE:
        if len(fitting) == 1:
            return fitting[0]
        shown = ", ".join(f"{entry.kind}/{entry.key[:16]}" for entry in fitting[:3])
        raise UsageError(one_line(f"{name}: several artifacts begin like this ({shown}); give more of KIND/KEY"))
    if fitting:
        raise UsageError(one_line(f"{name}: too short; give a key's first {_SHORTEST_KEY_TO_REMOVE} digits or more"))
    shipped = shipped_entries()
    if any(name in {e.workload, e.key, f"{e.kind}/{e.key}"} for e in shipped):
        raise UsageError(one_line(f"{name}: comes with the package; this store has nothing of it to remove"))
    keys = {entry.key[: max(len(key), _SHORTEST_KEY_TO_REMOVE)] for entry in found}
    close = nearest(name, sorted({entry.workload for entry in found if entry.workload} | keys))
    raise UsageError(one_line(f"{name}: neither a workload nor a key of this store{close}; see `exitbench store list`"))


def describe(entry: Entry) -> dict[str, Any]:
    """Return everything that an artifact's header contains, JSON-able. Raises StoreError for a damaged artifact."""
    if entry.damage:
        raise DamagedArtifactError(one_line(f"{entry.path}: damaged ({entry.damage})"))
    return {
        "kind": entry.kind,
        "key": entry.key,
        "what": entry.what,
        "bytes": entry.size,
        "tensors": dict(entry.tensors),
        "header": dict(entry.header),
        "metadata": dict(entry.metadata),
    }


def verify(store: Store) -> tuple[int, list[str]]:
    """Read every artifact and compare digests; return the number of intact ones and a line for each problem."""
    whole, problems, known = 0, [], set()
    for kind, path in _artifact_files(store):
        known.add(path)
        try:
            read_artifact(path, path.stem, kind)
            whole += 1
        except StoreError as error:
            problems.append(one_line(str(error)))
    odd = {path for path, _ in strangers(store.root)}
    notes = {(name, f"{kind}-{key}") for name in (LOCKS, UNSENT) for kind, key in notes_of(store.root, name)}
    for path in sorted(store.root.rglob("*")):
        inside = path.relative_to(store.root).parts
        ours = inside in notes or any(part.startswith(UNFINISHED) for part in inside)
        if path not in known | odd and (path.is_symlink() or not (ours or path.is_dir())):
            problems.append(one_line(f"{path}: unknown; no artifact is called like this"))
    return whole, [*problems, *left_alone(store)]


def prune(store: Store, *, older_than: float | None = None, dry_run: bool = False) -> list[str]:
    """Remove obsolete content from a store; return a line for each item removed.

    That is: unfinished output of stopped processes; damaged artifacts; training states and trace parts whose network or
    trace is complete; and scores and converted networks that a newer one replaces, for example because code changed.
    Files of other programs stay, and so do links and their targets.

    Args:
        store: the store.
        older_than: days; artifacts written longer ago are removed too.
        dry_run: report what would be removed, without removing it.
    """
    removed = [f"{path}: left by a run that was stopped" for path in abandoned(store.root, remove=not dry_run)]
    outdated = _outdated(store)
    for kind, path in _artifact_files(store):
        status = path.stat()
        days = (time.time() - status.st_mtime) / _SECONDS_PER_DAY
        if older_than is not None and days > older_than:
            reason = f"written {days:.0f} days ago"
        elif path in outdated:
            reason = "made again since"
        else:
            reason = _no_longer_wanted(store, kind, path)
        if reason:
            removed.append(one_line(f"{path}: {reason}"))
            if not dry_run:
                remove_damaged(path, status)
    return removed


_SAME = {"scores": ("strategy", "recordings", "operating_points"), "converted": ("network", "weights", "timesteps")}


def _outdated(store: Store) -> set[Path]:
    """Return scores replaced by newer ones of the same strategy on the same traces, and likewise converted networks."""
    found: dict[str, list[Path]] = {}
    for entry in entries(store):
        if entry.kind in _SAME and not entry.damage:
            of = [entry.kind, *(entry.metadata.get(name) for name in _SAME[entry.kind])]
            found.setdefault(json.dumps(of), []).append(entry.path)
    newest_first = [sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True) for paths in found.values()]
    return {path for paths in newest_first for path in paths[1:]}


def _no_longer_wanted(store: Store, kind: str, path: Path) -> str:
    """Return why an artifact is obsolete, or ""."""
    try:
        metadata = read_artifact(path, path.stem, kind).metadata
    except DamagedArtifactError as error:
        return str(error).removeprefix(f"{path}: ")
    except StoreError:
        return ""  # an unreadable file says nothing about its content
    if kind == "training" and is_regular(store.root, store.path("networks", path.stem)):
        return "its network is trained"
    if kind == "trace-parts" and is_regular(store.root, store.path("traces", str(metadata.get("trace")))):
        return "its trace is whole"
    return ""


def _artifact_files(store: Store) -> list[tuple[str, Path]]:
    """Return (kind, path) for every file in an artifact's place."""
    return [(kind, path) for kind in KINDS for path in store.files(kind)]


def _entry(path: Path, kind: str, key: str = "") -> Entry:
    """Return an artifact as its header describes it; an empty ``key`` means the header's own."""
    size = path.stat().st_size
    try:
        with safe_open(path, framework="pt") as handle:
            header = dict(handle.metadata() or {})
            parts = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118  # not a mapping
            tensors = {name: {"dtype": str(p.get_dtype()), "shape": list(p.get_shape())} for name, p in parts.items()}
        metadata = dict(json.loads(header.pop("artifact")))
        workload, what = _words(kind, metadata, header)
        return Entry(kind, key or str(metadata["key"]), path, size, workload, what, tensors, metadata, header)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        return Entry(kind, key, path, size, what="damaged", damage=str(error) or "no header")


def _words(kind: str, metadata: Mapping[str, Any], header: Mapping[str, str]) -> tuple[str, str]:
    """Return the name of the workload, and a short description of the artifact."""
    workload, detail = "", ""
    if kind == "networks":
        workload, detail = str(metadata["workload"]["name"]), f"seed {metadata['workload']['seed']}"
    elif kind == "traces":
        workload, detail = header.get("workload", ""), header.get("split", "")
    elif kind == "policies":
        made_from = metadata["made_from"]
        knobs = [f"{name}={value}" for name, value in made_from.items() if isinstance(value, int | float)]
        detail = " ".join([str(made_from.get("strategy", "")), *knobs])
    elif kind == "converted":
        workload = str(metadata["workload"])
    elif kind == "scores":
        workload, detail = str(metadata["workload"]), str(metadata["strategy"])
    elif kind == "training":
        workload, detail = str(metadata.get("workload", "")), f"after epoch {len(metadata['history'])}"
    elif kind == "trace-parts":
        workload = str(metadata.get("workload", ""))
    return workload, one_line(" ".join(word for word in (workload, detail) if word))


def _calibration(policy: Entry) -> str:
    calibration = policy.metadata.get("calibration")
    return str(calibration.get("trace", "")) if isinstance(calibration, Mapping) else ""
