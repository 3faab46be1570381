"""Fetch and verify: install a data set's files in its folder atomically; report what is missing or altered."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench_core.data.checked_files import digest_of, read_raw
from bench_core.data.fetch.download import DISK_FULL, FetchError, NoSpaceError, obtain, refuse_altered
from bench_core.data.fetch.sources import DataFile, FileTree, Mirror, Source
from bench_core.data.fetch.unpack import Inventory, parse_inventory, unpack
from bench_core.data.folders import data_folder, data_root
from bench_core.errors import DataError, one_line
from bench_core.util.files import read_text
from bench_core.util.progress import note

__all__ = ["Problem", "fetch", "how_to", "problems", "state", "verdict", "whereabouts"]

INVENTORY = "inventory.json"
DOWNLOADS = ".downloads"
MOST_COUNTED = 200_000  # files; above this, counting takes too long for a list


@dataclass(frozen=True)
class Problem:
    """A missing or altered file or group of files; ``missing`` if there is nothing at all."""

    path: Path
    what: str
    missing: bool = False

    def __str__(self) -> str:
        """Return the path and the problem as one line."""
        return one_line(f"{self.path}: {self.what}")


def whereabouts(source: Source) -> Path:
    """Return the data set's folder: its own, or the first of its other folders that has one of its files."""
    for folder in (data_folder(source.name), *source.elsewhere):
        if _holds_any(source, folder):
            return folder
    return data_folder(source.name)


def problems(source: Source, folder: Path, *, digests: bool = True) -> list[Problem]:
    """Return what is missing or altered in ``folder``.

    Args:
        source: the data set's source.
        folder: the folder to check.
        digests: compare content; otherwise only check that the listed files exist, and count the others.
    """
    found = [problem for file in source.files if (problem := _file_problem(folder, file, digests)) is not None]
    for tree in source.trees:
        count = sum(1 for _ in folder.glob(tree.pattern))
        if count != tree.count if tree.count else not count:
            expected = f"{tree.count:,}" if tree.count else "some"
            found.append(Problem(folder / tree.pattern, f"{count:,} files, expected {expected}", missing=not count))
    if digests and source.trees and (folder / INVENTORY).is_file():
        found += _inventory_problems(folder)
    return found


def state(source: Source) -> str:
    """Return the state in a word or two, such as ``here``, ``incomplete`` or ``absent``, without reading content."""
    if not source.files and not source.trees:
        return "comes with a package"
    folder = whereabouts(source)
    if not _holds_any(source, folder):
        return "absent"
    if any(tree.count > MOST_COUNTED for tree in source.trees):
        return "here, not counted"
    return "incomplete" if problems(source, folder, digests=False) else "here"


def verdict(source: Source, folder: Path, found: list[Problem]) -> str:
    """Return one line about the result of ``problems``, and whether content could be compared at all."""
    if found:
        return f"{source.name}: {len(found)} problems ({folder})"
    if source.trees and not (folder / INVENTORY).is_file():
        return f"{source.name}: all files are there, content not compared: unpacked by other means ({folder})"
    return f"{source.name}: as it should be ({folder})"


def how_to(source: Source) -> str:
    """Return instructions on what to put where, in one screen."""
    lines = [
        f"{source.name}: {source.citation}",
        f"  licence   {source.licence}",
        f"  homepage  {source.homepage}",
        f"  folder    {data_folder(source.name)}",
        f"  put there {source.by_hand}",
    ]
    for mirror in source.mirrors:
        lines.append(f"  from      {mirror.title}")
        for archive in mirror.archives:
            place = archive.url or f"`{' '.join(archive.command)}`"
            lines.append(f"            {archive.name}  {archive.digest}\n              {place}")
    for file in source.files:
        lines.append(f"  file      {file.path}  {file.size:,} bytes  {file.digest}")
    for tree in source.trees:
        lines.append(f"  files     {tree.pattern}  {tree.count or 'any number'}")
    if source.mirrors:
        lines.append(f"  then run  exitbench data fetch {source.name} --folder FOLDER_WITH_THE_ARCHIVES")
    lines.append(f"  check     exitbench data verify {source.name}")
    return "\n".join(lines)


def fetch(source: Source, folder: Path | None = None) -> Path:
    """Bring the data set into its folder; leave it alone if it is already complete.

    Args:
        source: what to fetch.
        folder: a local folder to search first, for archives or for their content.

    Returns:
        The folder that holds it.

    Raises:
        DataError: no mirror has it; the message gives each one's reason.
    """
    here = whereabouts(source)
    found = problems(source, here)
    if not found:
        return here
    target = data_folder(source.name)
    if folder is not None and not folder.is_dir():
        raise DataError(f"--folder {folder}: no such folder")
    if not source.mirrors and folder is None:
        raise DataError(f"{source.name}: there is nothing to fetch; put into {target}: {source.by_hand}")
    _refuse_half_a_tree(source, target, found)
    reasons = []
    for title, collect in _places(source, folder, target):
        try:
            _install(source, collect, target)
            return target
        except FetchError as error:
            reasons.append(f"{title}: {error}")
            note(f"{source.name}: {title}: {error}")
    raise DataError(f"{source.name}: could not be fetched ({'; '.join(reasons)})")


def _places(source: Source, folder: Path | None, target: Path) -> Iterator[tuple[str, Callable[[Path], Inventory]]]:
    """Yield (title, function that collects the files in an empty folder) in the order to try them."""
    downloads = data_root() / DOWNLOADS / source.name
    for local in [target] if folder is None else [folder, target]:
        if local is not target and _holds_any(source, local):
            yield str(local), partial(_copy, source, local)
        for mirror in source.mirrors:
            if all((local / archive.name).is_file() for archive in mirror.archives):
                yield f"{mirror.title}, in {local}", partial(_collect, mirror, local, downloads)
    for mirror in source.mirrors:
        yield mirror.title, partial(_collect, mirror, None, downloads)


def _collect(mirror: Mirror, local: Path | None, downloads: Path, staging: Path) -> Inventory:
    """Unpack a mirror's archives, from a local folder or fetched into ``downloads``."""
    inventory: Inventory = {}
    for archive in mirror.archives:
        if local is None:
            path = obtain(archive, downloads)
        else:
            path = local / archive.name
            refuse_altered(path, archive)
        inventory |= unpack(path, archive, staging)
    if mirror.finish is not None:
        mirror.finish(staging)
    return inventory


def _copy(source: Source, local: Path, staging: Path) -> Inventory:
    """Copy files that the user has unpacked."""
    paths = [path for file in source.files if (path := _present(local, file)) is not None]
    for tree in source.trees:
        paths += sorted(local.glob(tree.pattern))
    inventory: Inventory = {}
    for path in paths:
        relative = path.relative_to(local)
        (staging / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, staging / relative)
        digest = digest_of(staging / relative, "sha256:").removeprefix("sha256:")
        inventory[relative.as_posix()] = (path.stat().st_size, digest)
    return inventory


def _install(source: Source, collect: Callable[[Path], Inventory], target: Path) -> None:
    """Collect files in a folder next to the target, check them there, then move them into place."""
    root = data_root()
    staging: Path | None = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=root, prefix=".fetching-"))
        inventory = collect(staging)
        if wrong := problems(source, staging):
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise FetchError(f"{wrong[0].path.relative_to(staging)}: {wrong[0].what}{more}")
        if source.trees:
            (staging / INVENTORY).write_text(json.dumps({"files": inventory}), encoding="utf-8")
        _move(staging, target)
        shutil.rmtree(root / DOWNLOADS / source.name, ignore_errors=True)
    except (FetchError, NoSpaceError):
        raise
    except DataError as error:  # an untrustworthy archive: the next mirror may be better
        raise FetchError(str(error)) from error
    except OSError as error:
        if error.errno in DISK_FULL:
            raise NoSpaceError(
                f"{root}: no space left; {source.name} needs about {_needed(source):,} bytes: free space, or set "
                "EXITBENCH_DATA to a folder on another disk"
            ) from error
        raise DataError(
            f"{error.filename or root}: {error.strerror}; set EXITBENCH_DATA to a folder you own"
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _needed(source: Source) -> int:
    """Return the bytes of the listed files and of the largest set of archives."""
    archives = [sum(archive.size or 0 for archive in mirror.archives) for mirror in source.mirrors]
    return sum(file.size for file in source.files) + max(archives, default=0)


def _move(staging: Path, target: Path) -> None:
    """Move collected files into place; the inventory, which marks them complete, comes last."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(staging.iterdir(), key=lambda path: (path.name == INVENTORY, path.name)):
        if entry.is_dir() and (target / entry.name).is_dir():
            _move(entry, target / entry.name)
        else:
            entry.replace(target / entry.name)


def _refuse_half_a_tree(source: Source, target: Path, found: list[Problem]) -> None:
    """Raise DataError for an incomplete tree: it may be the user's own, so it is never written into or removed."""
    for tree in source.trees:
        top = target / tree.pattern.split("/", maxsplit=1)[0]
        if "*" not in top.name and top.exists():
            raise DataError(f"{top}: is there, but not whole ({found[0]}); move it away, then fetch again")
    if any("*" in tree.pattern.split("/", maxsplit=1)[0] and _any(target, tree) for tree in source.trees):
        raise DataError(f"{target}: is there, but not whole ({found[0]}); move it away, then fetch again")


def _present(folder: Path, file: DataFile) -> Path | None:
    return next((path for end in ("", ".gz") if (path := folder / f"{file.path}{end}").is_file()), None)


def _holds_any(source: Source, folder: Path) -> bool:
    return any(_present(folder, file) for file in source.files) or any(_any(folder, tree) for tree in source.trees)


def _any(folder: Path, tree: FileTree) -> bool:
    return next(iter(folder.glob(tree.pattern)), None) is not None


def _file_problem(folder: Path, file: DataFile, digests: bool) -> Problem | None:
    path = _present(folder, file)
    if path is None:
        return Problem(folder / file.path, "missing", missing=True)
    packed = path.suffix == ".gz"
    if not packed and (size := path.stat().st_size) != file.size:
        return Problem(path, f"altered: {size:,} bytes, expected {file.size:,}")
    if not digests:
        return None
    try:
        found = _plain_digest(path, file.digest) if packed else digest_of(path, file.digest)
    except OSError as error:
        return Problem(path, f"can't be read ({error.strerror})")
    except DataError as error:
        return Problem(path, str(error).removeprefix(f"{path}: "))
    return None if found == file.digest else Problem(path, f"altered: {found}, expected {file.digest}")


def _plain_digest(path: Path, expected: str) -> str:
    algorithm = expected.partition(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, read_raw(path, path.parent.name), usedforsecurity=False).hexdigest()}"


def _inventory_problems(folder: Path) -> list[Problem]:
    """Return the differences from the inventory that was written when the archives were unpacked."""
    path = folder / INVENTORY
    try:
        files = parse_inventory(read_text(path))
    except (OSError, ValueError) as error:
        return [Problem(path, f"damaged ({error}); fetch the data set again")]
    found = []
    for name, (size, digest) in files.items():
        place = folder / name
        try:
            if not place.is_file():
                found.append(Problem(place, "missing", missing=True))
            elif place.stat().st_size != size:
                found.append(Problem(place, f"altered: {place.stat().st_size:,} bytes, expected {size:,}"))
            elif (now := digest_of(place, "sha256:")) != f"sha256:{digest}":
                found.append(Problem(place, f"altered: {now}, expected sha256:{digest}"))
        except (OSError, ValueError) as error:  # ValueError: an impossible file name
            found.append(Problem(place, f"can't be read ({getattr(error, 'strerror', None) or error})"))
    return found
