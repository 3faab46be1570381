"""Knobs: the parameters of strategies and converters, with their ranges and validation errors."""

import copy
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from bench_core.errors import UsageError

__all__ = ["Configurable", "Knob", "KnobValue", "in_json", "nearest", "plain_value"]

KnobValue = float | int | str | bool


@dataclass(frozen=True)
class Knob:
    """One parameter.

    Attributes:
        name: as written after ``--set``.
        kind: ``float``, ``int`` or ``choice``.
        default: None if it is fitted, or swept by the harness.
        low, high: range of a number, ends included unless ``open_low`` / ``open_high``.
        choices: permitted values of a ``choice``.
        help: one line.
    """

    name: str
    kind: Literal["float", "int", "choice"] = "float"
    default: KnobValue | None = None
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    choices: tuple[str, ...] = ()
    help: str = ""

    def parse(self, value: object, owner: str, *, ends: bool = False) -> KnobValue:
        """Return ``value`` (text from a command line, or a number) as this knob's type. Raises UsageError.

        ``ends`` allows infinite numbers if the range is unbounded, for the ends of a policy family.
        """
        if self.kind == "choice":
            if value not in self.choices:
                raise UsageError(f"{owner}: {self.name} = {value!s} is not one of {', '.join(self.choices)}")
            return str(value)
        try:
            if isinstance(value, bool):
                raise ValueError
            number = int(str(value)) if self.kind == "int" else float(str(value))
        except ValueError:
            raise UsageError(f"{owner}: {self.name} = {value!s} is not {self._kind_in_words}") from None
        below = number <= self.low if self.open_low else number < self.low
        above = number >= self.high if self.open_high else number > self.high
        if below or above or math.isnan(number) or (math.isinf(number) and not ends):
            raise UsageError(f"{owner}: {self.name} = {value!s} is outside {self.range_text}")
        return number

    @property
    def range_text(self) -> str:
        """Return the range in the usual notation, such as ``[0, 1)``, or the choices."""
        if self.kind == "choice":
            return " | ".join(self.choices)
        left = "(" if self.open_low or math.isinf(self.low) else "["
        right = ")" if self.open_high or math.isinf(self.high) else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"

    @property
    def _kind_in_words(self) -> str:
        return "a whole number" if self.kind == "int" else "a number"


class Configurable:
    """Base of plugin objects with knobs: ``parameters`` holds a checked value for each.

    Attributes:
        name: unique among its kind.
        reference: the paper or page it comes from.
        knobs: every knob, in display order.
    """

    name: ClassVar[str]
    reference: ClassVar[str]
    knobs: ClassVar[tuple[Knob, ...]] = ()

    def __init__(self, **parameters: object) -> None:
        """Set knobs by name, the others to their defaults. Raises UsageError for an unknown knob or a bad value."""
        by_name = {knob.name: knob for knob in self.knobs}
        self.parameters: dict[str, KnobValue | None] = {knob.name: knob.default for knob in self.knobs}
        for name, value in parameters.items():
            if name not in by_name:
                offered = ", ".join(by_name) or "none"
                raise UsageError(f"{self.name}: unknown knob {name!r}{nearest(name, by_name)}; it has: {offered}")
            self.parameters[name] = by_name[name].parse(value, self.name)

    def with_parameters(self, parameters: Mapping[str, object]) -> Self:
        """Return a copy with some knobs set and checked. Raises UsageError."""
        return type(self)(**{**self._set_parameters(), **parameters})

    @property
    def label(self) -> str:
        """Return the name, followed by knobs that differ from their defaults, in brackets."""
        changed = [
            f"{knob.name}={self.parameters[knob.name]}"
            for knob in self.knobs
            if self.parameters[knob.name] != knob.default
        ]
        return f"{self.name}[{','.join(changed)}]" if changed else self.name

    def _set_parameters(self) -> dict[str, object]:
        return {name: value for name, value in self.parameters.items() if value is not None}

    def _copy(self) -> Self:
        twin = copy.copy(self)
        twin.parameters = dict(self.parameters)
        return twin


def plain_value(value: object) -> KnobValue:
    """Return a knob's value as a built-in Python type; infinities are allowed.

    Raises UsageError for NaN, and for anything but a number, text or flag.
    """
    plain = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value
    if not isinstance(plain, int | float | str | bool) or (isinstance(plain, float) and math.isnan(plain)):
        raise UsageError(f"a knob's value must be a number or a text, not {value!r:.60}")
    return plain


def in_json(parameters: Mapping[str, KnobValue | None]) -> dict[str, KnobValue | None]:
    """Return knob values as JSON can represent them: infinities as the texts ``inf`` and ``-inf``, valid for knobs."""
    infinite = (float("inf"), float("-inf"))
    return {name: str(value) if value in infinite else value for name, value in parameters.items()}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest known name, in lower case if necessary, or ""."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1) or difflib.get_close_matches(name.lower(), names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
