"""Conditions for reusing a stored artifact: same code and settings, and same data.

Plugins' code, as loaded, and non-default PyTorch settings are part of keys, so artifacts of other code are never
found; this module reports them. Data may change under the same identity, so their digests are compared.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError, safe_open

from bench_core.errors import StoreError, UsageError, one_line
from bench_core.isolation.plugin_code import LoadedCode, refuse_changed
from bench_core.store.inventory import entries
from bench_core.store.local import Store
from bench_core.util.environment import rounding_settings
from bench_core.util.progress import note

__all__ = ["MadeWith", "data_digest", "name_other_policies", "refuse_or_note", "stored_header"]

_RECORD = "made_with"
_said_settings: set[str] = set()


@dataclass(frozen=True)
class MadeWith:
    """What an artifact is made with in addition to its declared inputs; empty for shipped code and default settings.

    Attributes:
        code: of plugins, by role, such as ``model one-layer``.
        settings: see ``rounding_settings``.
    """

    code: Mapping[str, Sequence[LoadedCode]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=rounding_settings)

    @property
    def identity(self) -> dict[str, Any]:
        """Its part of a key, as JSON; empty for shipped code and default settings."""
        code = {what: sorted(one.digest for one in codes) for what, codes in self.code.items() if codes}
        return {**({"code": code} if code else {}), **({"settings": dict(self.settings)} if self.settings else {})}

    def record(self, declared: str) -> dict[str, Any]:
        """Return metadata by which ``name_others`` finds the artifact; empty for shipped code and default settings.

        Args:
            declared: digest of what the artifact is made from, without code and settings.
        """
        if not self.identity:
            return {}
        code = {
            what: {one.name: one.digest for one in sorted(codes, key=lambda one: one.name)}
            for what, codes in self.code.items()
            if codes
        }
        return {_RECORD: {"declared": declared, "code": code, "settings": dict(self.settings)}}

    def refuse_changes(self) -> None:
        """Refuse to store what was made while code or settings changed.

        Raises:
            PluginError: a plugin's files differ from those loaded.
            UsageError: settings differ from those when this was created.
        """
        refuse_changed({one.digest: one for codes in self.code.values() for one in codes}.values())
        if (now := rounding_settings()) != self.settings:
            names = ", ".join(
                sorted(name for name in {*now, *self.settings} if now.get(name) != self.settings.get(name))
            )
            raise UsageError(
                f"PyTorch's settings ({names}) changed while they were in use, by a plugin or your own script; nothing "
                "that was made since is kept: leave them alone while exitbench works"
            )

    @property
    def plugins(self) -> list[str]:
        """Names of the plugins whose code is used."""
        return sorted({one.name for codes in self.code.values() for one in codes})

    def name_others(self, store: Store, kind: str, declared: str) -> None:
        """Report an unused artifact made from the same inputs by other code, and settings that are not the defaults."""
        self._name_settings()
        if not any(self.code.values()):
            return
        ours = self.record(declared)[_RECORD]
        made = [e for e in entries(store, [kind]) if _declared(e.metadata) == declared]
        others = [entry for entry in made if entry.metadata[_RECORD].get("code") != ours["code"]]
        if others and len(others) == len(made):  # otherwise only settings differ
            last = max(others, key=lambda entry: entry.path.stat().st_mtime_ns)
            named = ", ".join(_differing(last.metadata[_RECORD].get("code"), ours["code"]))
            line = f"store: {kind} {last.key[:16]} ({last.what}): made by other code of plugin {named}; made again"
            note(one_line(line))
        elif not made and store.has(kind, declared):
            named = ", ".join(self.plugins)
            note(f"store: {kind} {declared[:16]}: doesn't say which code of plugin {named} made it; made again")

    def _name_settings(self) -> None:
        said = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        if said and said not in _said_settings:
            _said_settings.add(said)
            note(f"settings: {said}: not PyTorch's default, so what was made with the defaults is not used")


def name_other_policies(store: Store, record: Mapping[str, Any]) -> None:
    """Report an unused policy learnt from the same data by different code of a plugin's strategy.

    Args:
        store: the store.
        record: ``calibration`` and ``made_from``, as in the metadata of policies.
    """
    code = record["made_from"].get("code")
    if not isinstance(code, Mapping):
        return
    same = {**record["made_from"], "code": None}
    for entry in reversed(entries(store, ["policies"])):
        theirs = entry.metadata.get("made_from")
        if not isinstance(theirs, Mapping) or entry.metadata.get("calibration") != record["calibration"]:
            continue
        if {**theirs, "code": None} == same and theirs.get("code") != code:
            named = ", ".join(_differing({"": theirs.get("code")}, {"": code}))
            note(one_line(f"store: policies {entry.key[:16]}: made by other code of plugin {named}; made again"))
            return


def refuse_or_note(store: Store, what: str) -> None:
    """Report that an artifact is made again, and why; raise StoreError if the store is offline."""
    if store.offline:
        raise StoreError(f"{what}; nothing is made offline: bring back the data, or run without --offline-store")
    note(f"store: {what}; made again")


def stored_header(store: Store, kind: str, key: str) -> Mapping[str, str]:
    """Return the header of a stored artifact without reading its tensors; empty if there is none."""
    with suppress(OSError, SafetensorError), safe_open(store.local(kind, key), framework="pt") as handle:
        return dict(handle.metadata() or {})
    return {}


def data_digest(header: Mapping[str, str]) -> str | None:
    """Return the digest of the split on which a trace with this header was recorded; None if unknown."""
    try:
        found = json.loads(header.get("provenance", "null"))["data"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def _declared(metadata: Mapping[str, Any]) -> str | None:
    record = metadata.get(_RECORD)
    return record.get("declared") if isinstance(record, Mapping) else None


def _differing(theirs: Any, ours: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the names of the plugins in which the two differ."""
    before = theirs if isinstance(theirs, Mapping) else {}
    digests = [
        {(name, str(digest)) for made in code.values() if isinstance(made, Mapping) for name, digest in made.items()}
        for code in (before, ours)
    ]
    return sorted({name for name, _ in digests[0] ^ digests[1]})
