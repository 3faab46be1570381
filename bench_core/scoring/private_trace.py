"""Private traces for strategies: writes to a strategy's copy cannot affect others, and are detected.

The tensors of a trace are shared by all readers. A private trace returns copies, made on first access, and can compare
them with the originals afterwards. Tensors newly gathered from a file are not copied again.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import cast

import torch

from bench_core.trace.trace import Trace, tensors_beside_logits
from bench_core.util.sample_rows import SampleRows

__all__ = ["PrivateTrace"]


class _PrivateRows(SampleRows):
    """Rows that return their own tensors."""

    _copy: torch.Tensor | None = None

    @classmethod
    def of(cls, rows: SampleRows) -> "_PrivateRows":
        """Return private rows over the same data."""
        return cls(rows._parts, rows._index)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return a private copy of the samples start .. stop - 1."""
        return self._own(super().read(start, stop))

    def pieces(self, samples: int | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield private copies of consecutive pieces, each with its first position."""
        for start, piece in super().pieces(samples):
            yield start, self._own(piece)

    def select(self, index: torch.Tensor) -> SampleRows:
        """Return private rows of the samples at ``index``."""
        return _PrivateRows.of(super().select(index))

    def whole(self) -> torch.Tensor:
        """Return one private copy of all samples, made on first access."""
        if self._copy is None:
            self._copy = self.read(0, self.shape[0])
        return self._copy

    @property
    def is_changed(self) -> bool:
        """Whether the copy returned by ``whole`` has been modified."""
        copy = self._copy
        return copy is not None and not all(
            torch.equal(piece, copy[start : start + len(piece)]) for start, piece in super().pieces()
        )

    def _own(self, piece: torch.Tensor) -> torch.Tensor:
        shared = {part.untyped_storage().data_ptr() for part in self._parts}
        return piece.clone() if piece.untyped_storage().data_ptr() in shared else piece


class PrivateTrace(Trace):
    """A trace whose tensors may be modified without affecting others; ``changed`` lists the modified ones."""

    @classmethod
    def copy_of(cls, trace: Trace) -> "PrivateTrace":
        """Return a private copy of a trace."""
        beside = {name: values.clone() for name, values in tensors_beside_logits(trace).items()}
        private = cast(PrivateTrace, cls.of(_PrivateRows.of(trace.rows), beside, dict(trace.header)))
        private.__dict__["_source"] = trace
        return private

    @cached_property
    def predictions(self) -> torch.Tensor:
        """Copy of the trace's predictions."""
        return self._source.predictions.clone()

    @property
    def changed(self) -> list[str]:
        """Names of the parts that differ from the original trace."""
        rows, source = cast(_PrivateRows, self.rows), tensors_beside_logits(self._source)
        found = ["logits"] if rows.is_changed else []
        mine = tensors_beside_logits(self)
        found += [name for name in source if name not in mine or not torch.equal(source[name], mine[name])]
        return found + ["header"] * (dict(self.header) != dict(self._source.header))

    @property
    def _source(self) -> Trace:
        return cast(Trace, self.__dict__["_source"])
