"""Per-sample tensors, such as logits, that may not fit into memory and are read a few samples at a time."""

import math
from collections.abc import Iterator, Sequence

import torch

__all__ = ["SampleRows", "samples_in_cache", "tensor_bytes"]

_CACHED = 2**18  # float64 values processed at once, sized for a core's cache; sums of floats depend on it


def samples_in_cache(values: int, *, least: int = 1) -> int:
    """Return how many samples of ``values`` values each to process at once, but no fewer than ``least``."""
    return max(least, _CACHED // values)


class SampleRows:
    """A tensor [N, …], such as logits [N, T, K]: the samples of all parts in order, or those at ``index``.

    Only ``read`` copies, when it joins or selects samples, and ``whole``, unless there is a single part and no index.

    Args:
        parts: each [n, …], with the same dtype and the same other dimensions; usually memory-mapped files.
        index: int64 [N], non-negative positions among the samples of all parts.
    """

    def __init__(self, parts: Sequence[torch.Tensor], index: torch.Tensor | None = None) -> None:
        """Store the parts and the index; see the class."""
        self._parts, self._index = list(parts), index
        self._ends = torch.tensor([len(part) for part in parts]).cumsum(0)

    @property
    def shape(self) -> torch.Size:
        """Return the shape, (N, …)."""
        samples = int(self._ends[-1]) if self._index is None else len(self._index)
        return torch.Size((samples, *self._parts[0].shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype, which all parts share."""
        return self._parts[0].dtype

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return samples ``start`` to ``stop - 1`` (fewer at the end), [n, …]; read-only."""
        return self._read(start, stop, None)

    def pieces(self, samples: int | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield all samples, a few at a time, as pairs of (first sample, [n, …]); read-only.

        Indexed samples are copied into the same memory every time: a piece is valid until the next one.

        Args:
            samples: n; the last piece may have fewer. By default, as many as fit in a core's cache.
        """
        total, *others = self.shape
        step = samples or samples_in_cache(max(1, math.prod(others)))
        place = None
        if self._index is not None and self._parts[0].device.type == "cpu":
            place = self._parts[0].new_empty((min(step, total), *others))
        for start in range(0, total, step):
            yield start, self._read(start, start + step, place)

    def _read(self, start: int, stop: int, place: torch.Tensor | None) -> torch.Tensor:
        """Implement ``read``; indexed samples are copied into ``place`` if it is given."""
        if self._index is not None:
            positions = self._index[start:stop]
            if not len(positions) or bool((positions.diff() != 1).any()):
                return self._pick(positions, None if place is None else place[: len(positions)])
            start, stop = int(positions[0]), int(positions[-1]) + 1  # consecutive, so a slice suffices
        pieces = []
        for part, end in zip(self._parts, self._ends.tolist(), strict=True):
            first = end - len(part)
            if start < end and stop > first:
                pieces.append(part[max(start - first, 0) : stop - first])
        if not pieces:
            return self._parts[0][:0]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def select(self, index: torch.Tensor) -> "SampleRows":
        """Return the samples at ``index``, which may be anything that indexes a tensor [N]."""
        known = torch.arange(self.shape[0]) if self._index is None else self._index
        return SampleRows(self._parts, known[index])

    def whole(self) -> torch.Tensor:
        """Return all samples as one tensor [N, …], which is cached from then on."""
        if self._index is not None or len(self._parts) > 1:
            tensor = self.read(0, self.shape[0]) if self._index is None else self._pick(self._index, None)
            self._parts, self._index, self._ends = [tensor], None, torch.tensor([len(tensor)])
        return self._parts[0]

    def _pick(self, positions: torch.Tensor, place: torch.Tensor | None) -> torch.Tensor:
        owners = torch.bucketize(positions, self._ends, right=True)
        if len(positions) and bool((owners == owners[0]).all()):
            return self._of_part(int(owners[0]), positions, place)
        picked = self._parts[0].new_empty((len(positions), *self.shape[1:])) if place is None else place
        for number in owners.unique().tolist():
            mine = torch.nonzero(owners == number).flatten()
            picked[mine] = self._of_part(number, positions[mine])
        return picked

    def _of_part(self, number: int, positions: torch.Tensor, place: torch.Tensor | None = None) -> torch.Tensor:
        part = self._parts[number].detach()
        first = int(self._ends[number]) - len(part)
        return torch.index_select(part, 0, (positions - first).to(part.device), out=place)


def tensor_bytes(tensor: torch.Tensor | SampleRows) -> Iterator[memoryview]:
    """Yield a tensor's content, little-endian, in pieces that are each valid until the next one.

    Tensors that are contiguous in CPU memory are not copied.
    """
    pieces = [tensor] if isinstance(tensor, torch.Tensor) else (piece for _, piece in tensor.pieces())
    for piece in pieces:
        flat = piece.detach().cpu().contiguous()
        if flat.numel():
            yield flat.reshape(-1).view(torch.uint8).numpy().data
