"""The code of plugins as loaded: its files, their digests, and whether they have changed since.

Digests are taken at import. A module that stays in the process keeps the digest it was imported with, even if its file
changes later: artifact keys identify the code that runs, and edits are detected before anything is stored.
"""

import importlib.metadata
import importlib.util
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.machinery import SourceFileLoader, all_suffixes
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from bench_core.errors import PluginError, one_line
from bench_core.util.digests import file_digest, json_digest

__all__ = [
    "GROUP",
    "SHIPPED_DISTRIBUTION",
    "LoadedCode",
    "SourceLoader",
    "code_of",
    "code_of_class",
    "load_watched",
    "refuse_changed",
    "shipped_packages",
]

T = TypeVar("T")
GROUP = "exitbench"  # the entry-point group
SHIPPED_DISTRIBUTION = "exitbench"
_VERSIONED = frozenset({"torch", "numpy", "scipy"}) | sys.stdlib_module_names  # the environment has their versions
_SUFFIXES = tuple(all_suffixes())
_CACHE = "__pycache__"
_SHOWN = 3

_codes: WeakKeyDictionary[ModuleType, "LoadedCode | None"] = WeakKeyDictionary()  # by package, or top-level module
_imported: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()  # digest of a module's file at import
_by_class: WeakKeyDictionary[type, "list[LoadedCode]"] = WeakKeyDictionary()
_untold: WeakKeyDictionary[Any, "LoadedCode"] = WeakKeyDictionary()
_last_seen: dict[Path, str] = {}


@dataclass(frozen=True)
class LoadedCode:
    """The code of a package, or of a single file and the rest of its folder, which the file may import.

    Attributes:
        name: of the plugin, as messages show it.
        places: folders of the package, or of the file; a zip file that holds them.
        deep: whether everything below ``places`` counts; otherwise, their files and those of their direct subfolders.
        files: sha256 by path when the code was loaded.
        token: replaces the digest if the files can't be found or read; unique to this process.
    """

    name: str
    places: tuple[Path, ...] = ()
    deep: bool = False
    files: Mapping[Path, str] = field(default_factory=dict)
    token: str = ""

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of the files' names and contents, independent of their location."""
        if self.token:
            return self.token
        parts = []
        for place in self.places:
            inside = {path: digest for path, digest in self.files.items() if path.is_relative_to(place)}
            parts.append(json_digest({path.relative_to(place).as_posix(): digest for path, digest in inside.items()}))
        return json_digest(sorted(parts))

    def changed(self) -> list[Path]:
        """Return the files that were added, removed or altered since the code was loaded."""
        if self.token:
            return []
        try:
            now = _scanned(self.places, deep=self.deep)
        except OSError as error:
            return [Path(error.filename or self.places[0])]
        return sorted(path for path in {*self.files, *now} if self.files.get(path) != now.get(path))


class SourceLoader(SourceFileLoader):
    """Loads a module from source, never from bytecode, which can miss an edit made in the second it was written."""

    def get_code(self, fullname: str) -> CodeType:
        """Compile the file's current content."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def load_watched(name: str, module: str, load: Callable[[], T], *, file: Path | None = None) -> tuple[T, LoadedCode]:
    """Call ``load``, which imports a plugin, and take the digest of the code that it imported.

    Args:
        name: of the plugin.
        module: the module that ``load`` imports.
        load: the function that imports the plugin and returns it.
        file: the file that ``load`` executes anew each time; None for an installed module, which is imported once.

    Raises:
        PluginError: the files changed while they were loaded.
    """
    top = module.partition(".")[0]
    known = code_of(module) if file is None and top in sys.modules else None
    places, deep = _places_of(top) if file is None else ((_place(file.parent),), False)
    first = {} if known else _scan_or_nothing(places, deep=deep)
    own = {path: first[path] for path in first if file is not None and path.name == file.name}  # current, not cached
    first = {**_as_imported(first, earlier=True), **own}
    with _no_new_bytecode():
        loaded = load()
    code = known or code_of(module)
    if code is None:
        return loaded, _token(name, loaded)
    if known is None and places == code.places and first != code.files:
        differ = [path for path in {*first, *code.files} if first.get(path) != code.files.get(path)]
        raise PluginError(name, f"{_listed(sorted(differ))} changed while it was loaded; run it again")
    return loaded, replace(code, name=name)


def code_of(module: str) -> LoadedCode | None:
    """Return the code that a module comes from, as it was when this process first asked for it.

    For a module in a package, that is the whole package; for a single file, the importable files of its folder and of
    its direct subfolders. Imports from elsewhere are not covered.

    Returns:
        None if the module has no file, or its files can't be read.
    """
    owner = sys.modules.get(module.partition(".")[0]) or sys.modules.get(module)
    if not isinstance(owner, ModuleType):
        return None
    if owner not in _codes:
        _codes[owner] = _taken(owner)
    return _codes[owner]


def code_of_class(made: type) -> list[LoadedCode]:
    """Return the code of a class and its bases, except this project's and that of versioned libraries.

    It describes the modules loaded when the class is first queried; plugin classes are queried as soon as they are
    loaded.
    """
    if made not in _by_class:
        found: dict[str, LoadedCode] = {}
        for base in made.__mro__:
            module = base.__module__
            if module.partition(".")[0] not in _VERSIONED | shipped_packages():
                code = code_of(module) or _token(module, base)
                found.setdefault(code.digest, code)
        _by_class[made] = list(found.values())
    return _by_class[made]


@cache
def shipped_packages() -> frozenset[str]:
    """Return the packages of this distribution: this one, and those of the plugins that it registers."""
    entries = importlib.metadata.entry_points(group=GROUP)
    own = [entry.module for entry in entries if entry.dist is not None and entry.dist.name == SHIPPED_DISTRIBUTION]
    return frozenset(module.partition(".")[0] for module in (__name__, *own))


def refuse_changed(codes: Iterable[LoadedCode]) -> None:
    """Raise PluginError if a plugin's files have changed since it was loaded, so that nothing more of it is stored."""
    for code in codes:
        if files := code.changed():
            raise PluginError(
                code.name, f"{_listed(files)} changed since it was loaded; nothing more of it is kept: run it again"
            )


@contextmanager
def _no_new_bytecode() -> Iterator[None]:
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _token(name: str, made: Any) -> LoadedCode:
    """Return code that no files identify: each object it made has a token that is unique to this process."""
    try:
        return _untold.setdefault(made, LoadedCode(name, token=secrets.token_hex(32)))
    except TypeError:  # no weak reference possible
        return LoadedCode(name, token=secrets.token_hex(32))


def _taken(owner: ModuleType) -> LoadedCode | None:
    inside, file = owner.__dict__.get("__path__"), owner.__dict__.get("__file__")
    if inside:
        name, places, deep = owner.__name__, tuple(_place(place) for place in inside), True
    elif isinstance(file, str):
        name, places, deep = Path(file).stem, (_place_of_file(file),), False
    else:
        return None
    try:
        return LoadedCode(name, places, deep, _as_imported(_scanned(places, deep=deep)))
    except OSError:
        return None


def _places_of(top: str) -> tuple[tuple[Path, ...], bool]:
    """Return the location of a package or module that may not be imported yet, and whether it is a package."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, AttributeError, ValueError):
        spec = None
    if spec is None:
        return (), True
    if spec.submodule_search_locations:
        return tuple(_place(place) for place in spec.submodule_search_locations), True
    return ((_place_of_file(spec.origin),), False) if spec.has_location and spec.origin else ((), False)


def _place_of_file(file: str) -> Path:
    """Return the folder of a module; if other installed packages share that folder, the module's file."""
    folder = _place(Path(file).parent)
    return _place(file) if any(folder.glob("*.dist-info")) else folder


def _place(path: str | Path) -> Path:
    """Return a folder as an absolute path, or the zip file that contains it."""
    place = Path(os.path.abspath(path))  # noqa: PTH100  # keeps symbolic links
    above = next((parent for parent in (place, *place.parents) if parent.exists()), place)
    return above if above.is_file() else place


def _scan_or_nothing(places: Sequence[Path], *, deep: bool) -> dict[Path, str]:
    try:
        return _scanned(places, deep=deep)
    except OSError:
        return {}


def _scanned(places: Iterable[Path], *, deep: bool) -> dict[Path, str]:
    """Return the sha256, by path, of every file there that Python can import. Raises OSError for an unreadable file."""
    found = {}
    for place in places:
        below = [place] if place.is_file() else place.rglob("*") if deep else (*place.glob("*"), *place.glob("*/*"))
        for path in below:
            code = path == place or (path.name.endswith(_SUFFIXES) and _CACHE not in path.relative_to(place).parts)
            if code and path.is_file():
                try:
                    found[path] = file_digest(path)
                except FileNotFoundError:  # a short-lived file of another process
                    continue
    return found


def _as_imported(files: dict[Path, str], *, earlier: bool = False) -> dict[Path, str]:
    """Replace the current digests of files with those that this process imported their modules with.

    Args:
        files: sha256 by path as of now; changed in place and returned.
        earlier: whether modules seen for the first time were imported a while ago, when their files may have differed.
    """
    for module in list(sys.modules.values()):
        file = module.__dict__.get("__file__") if isinstance(module, ModuleType) else None
        path = Path(file) if isinstance(file, str) else None
        if path is None or path not in files:
            continue
        unsure = earlier and _last_seen.get(path, files[path]) != files[path]
        files[path] = _imported.setdefault(module, secrets.token_hex(32) if unsure else files[path])
    _last_seen.update(files)
    return files


def _listed(paths: Sequence[Path]) -> str:
    shown = ", ".join(str(path) for path in paths[:_SHOWN])
    return one_line(shown + (f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""))
