"""Traces as strategies get them: what they write into is theirs alone, and is noticed.

The tensors of a trace are read by everybody. A private trace hands out copies, each made when it is first asked for,
and compares them with the originals afterwards. What had to be picked out of a file is new anyway and isn't copied.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import cast

import torch

from bench_core.trace.trace import Trace, tensors_beside_logits
from bench_core.util.sample_rows import SampleRows

__all__ = ["PrivateTrace"]


class _PrivateRows(SampleRows):
    """Rows that give tensors of their own."""

    _copy: torch.Tensor | None = None

    @classmethod
    def of(cls, rows: SampleRows) -> "_PrivateRows":
        return cls(rows._parts, rows._index)

    def read(self, start: int, stop: int) -> torch.Tensor:
        return self._own(super().read(start, stop))

    def pieces(self, samples: int | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        for start, piece in super().pieces(samples):
            yield start, self._own(piece)

    def select(self, index: torch.Tensor) -> SampleRows:
        return _PrivateRows.of(super().select(index))

    def whole(self) -> torch.Tensor:
        if self._copy is None:
            self._copy = self.read(0, self.shape[0])
        return self._copy

    @property
    def is_changed(self) -> bool:
        """Whether the tensor that was handed out whole is no longer what it was."""
        copy = self._copy
        return copy is not None and not all(
            torch.equal(piece, copy[start : start + len(piece)]) for start, piece in super().pieces()
        )

    def _own(self, piece: torch.Tensor) -> torch.Tensor:
        shared = {part.untyped_storage().data_ptr() for part in self._parts}
        return piece.clone() if piece.untyped_storage().data_ptr() in shared else piece


class PrivateTrace(Trace):
    """A trace whose tensors may be written to without harm to others; ``changed`` says into which somebody wrote."""

    @classmethod
    def copy_of(cls, trace: Trace) -> "PrivateTrace":
        """Return a private copy of a trace."""
        beside = {name: values.clone() for name, values in tensors_beside_logits(trace).items()}
        private = cast(PrivateTrace, cls.of(_PrivateRows.of(trace.rows), beside, dict(trace.header)))
        private.__dict__["_source"] = trace
        return private

    @cached_property
    def predictions(self) -> torch.Tensor:
        return self._source.predictions.clone()

    @property
    def changed(self) -> list[str]:
        """The names of what differs from the trace that this is a copy of."""
        rows, source = cast(_PrivateRows, self.rows), tensors_beside_logits(self._source)
        found = ["logits"] if rows.is_changed else []
        mine = tensors_beside_logits(self)
        found += [name for name in source if name not in mine or not torch.equal(source[name], mine[name])]
        return found + ["header"] * (dict(self.header) != dict(self._source.header))

    @property
    def _source(self) -> Trace:
        return cast(Trace, self.__dict__["_source"])
