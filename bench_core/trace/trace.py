"""The trace: a network's outputs and operation counts at every timestep, for every sample of a split.

``logits`` [N, T, K] and ``labels`` [N] suffice, so that users can bring their own. Everything else is optional, and
missing values are reported as n/a, never as 0. Logits are read a few samples at a time. For the file format, see
``bench_core.trace.files``.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch

from bench_core.errors import TraceError, one_line
from bench_core.util.digests import tensors_digest
from bench_core.util.sample_rows import SampleRows

__all__ = ["LAYER_COUNTS", "SCHEMA", "Trace", "tensors_beside_logits", "trace_from_tensors", "trace_tensors"]

SCHEMA = "exitbench.trace/1"
COUNTS = ("macs", "acs", "neuron_updates", "spikes")  # [N, T] int64
LAYER_COUNTS = ("layer_acs", "layer_spikes")  # [N, T, L] int64
_LOGIT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGER_TYPES = (
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
)
_LARGEST = 1e300


class _Logits:
    """The attribute ``logits`` of a trace: set from a tensor or rows, stored as ``rows``, read as a tensor."""

    def __get__(self, trace: "Trace | None", owner: type | None = None) -> torch.Tensor:
        if trace is None:
            raise AttributeError("logits")  # a field without a default
        return trace.rows.whole()

    def __set__(self, trace: "Trace", given: torch.Tensor | SampleRows) -> None:
        trace.__dict__["rows"] = given if isinstance(given, SampleRows) else SampleRows([given])


@dataclass(frozen=True)
class Trace:
    """The recorded outputs and operation counts of one workload on one split.

    Attributes:
        logits: o_t per sample and step, not accumulated, [N, T, K], K >= 2, floating point. For a sharded trace or a
            selection, reading it copies everything into memory and caches it; ``pieces`` and ``totals`` don't.
        labels: int64 [N].
        sample_ids: int64 [N], unique; index in the data set's own order.
        counts: those of ``macs``, ``acs``, ``neuron_updates``, ``spikes`` that were recorded, int64 [N, T].
        macs_once: multiply-accumulates spent once per sample, int64 [N], or None.
        header: the file's strings: ``workload``, ``split``, ``variant``, ``provenance`` … (may be empty).
        layer_counts: those of ``layer_acs``, ``layer_spikes`` that were recorded, int64 [N, T, L]; see ``layers``.
    """

    if TYPE_CHECKING:
        logits: torch.Tensor
    else:
        logits: _Logits = _Logits()  # a descriptor, not a default
    labels: torch.Tensor
    sample_ids: torch.Tensor
    counts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    macs_once: torch.Tensor | None = None
    header: Mapping[str, str] = field(default_factory=dict)
    layer_counts: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return N, the number of samples."""
        return len(self.labels)

    def __repr__(self) -> str:
        """Return a short description: N, T, K and the header."""
        return f"Trace(N={len(self)}, T={self.timesteps}, K={self.classes}, header={dict(self.header)!r})"

    @property
    def rows(self) -> SampleRows:
        """Return the logits, to be read a few samples at a time."""
        rows: SampleRows = self.__dict__["rows"]
        return rows

    @property
    def timesteps(self) -> int:
        """Return T."""
        return self.rows.shape[1]

    @property
    def classes(self) -> int:
        """Return K."""
        return self.rows.shape[2]

    @property
    def layers(self) -> list[dict[str, Any]]:
        """Return the header's description of each of the L layers: at least ``name`` and ``size``."""
        found = json.loads(self.header.get("layers", "[]"))
        return found if isinstance(found, list) else []

    @property
    def environment(self) -> dict[str, Any] | None:
        """Return the recording environment (versions, numerics fingerprint, threads), or None if unknown."""
        found = json.loads(self.header.get("environment", "null"))
        return found if isinstance(found, dict) else None

    @cached_property
    def predictions(self) -> torch.Tensor:
        """Return argmax S_t, ties to the lowest class, int64 [N, T]."""
        found = torch.empty(self.rows.shape[:2], dtype=torch.int64)
        for start, totals in self.totals():
            found[start : start + len(totals)] = torch.from_numpy(totals.numpy().argmax(2))  # faster than torch's
        return found

    @cached_property
    def correct(self) -> torch.Tensor:
        """Return whether argmax S_t is the label, bool [N, T]."""
        return self.predictions == self.labels[:, None]

    def pieces(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the logits a few samples at a time: pairs of (first sample, o_t [n, T, K]).

        Each piece is read-only, and valid until the next one.
        """
        return self.rows.pieces()

    def totals(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield S_t a few samples at a time: pairs of (first sample, float64 [n, T, K])."""
        for start, piece in self.pieces():
            totals = piece.to("cpu", torch.float64, copy=True)
            for t in range(1, self.timesteps):
                totals[:, t] += totals[:, t - 1]  # same as cumsum, but faster
            yield start, totals

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of all tensors, the same however they are cut into shards."""
        return tensors_digest(trace_tensors(self))

    def select(self, index: torch.Tensor) -> "Trace":
        """Return the trace of the samples at ``index`` only; logits are not copied but read from the original rows."""
        beside = {name: values[index] for name, values in tensors_beside_logits(self).items()}
        return Trace.of(self.rows.select(index), beside, self.header)

    def without_counts(self) -> "Trace":
        """Return the same trace without operation counts."""
        return Trace.of(self.rows, {"labels": self.labels, "sample_ids": self.sample_ids}, self.header)

    @classmethod
    def of(
        cls, rows: SampleRows | torch.Tensor, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str]
    ) -> "Trace":
        """Return a trace from its logits and all other tensors under their names in a file; nothing is checked."""
        counts = {name: tensors[name] for name in COUNTS if name in tensors}
        by_layer = {name: tensors[name] for name in LAYER_COUNTS if name in tensors}
        labels, ids, once = tensors["labels"], tensors["sample_ids"], tensors.get("macs_once")
        return cls(cast(torch.Tensor, rows), labels, ids, counts, once, header, by_layer)


def tensors_beside_logits(trace: Trace) -> dict[str, torch.Tensor]:
    """Return all of a trace's tensors except the logits, under their names in a file."""
    tensors = {"labels": trace.labels, "sample_ids": trace.sample_ids, **trace.counts, **trace.layer_counts}
    if trace.macs_once is not None:
        tensors["macs_once"] = trace.macs_once
    return tensors


def trace_tensors(trace: Trace) -> dict[str, torch.Tensor | SampleRows]:
    """Return all of a trace's tensors under their names in a file, the logits as rows."""
    return {"logits": trace.rows, **tensors_beside_logits(trace)}


def trace_from_tensors(tensors: Mapping[str, torch.Tensor], header: Mapping[str, str], place: str) -> Trace:
    """Return a validated trace from tensors; ``place`` names it in errors. Raises TraceError."""

    def refuse(problem: str) -> TraceError:
        return TraceError(one_line(f"trace {place}: {problem}"))

    if header.get("schema", SCHEMA) != SCHEMA:
        raise refuse(f"schema {header['schema']!r:.60} is not {SCHEMA!r}")
    for name in ("logits", "labels"):
        if name not in tensors:
            raise refuse(f"tensor {name!r} is missing; a trace has logits [N, T, K] and labels [N]")
    logits, labels = tensors["logits"], tensors["labels"]
    if logits.dim() != 3 or logits.dtype not in _LOGIT_TYPES:
        raise refuse(f"logits is {_describe(logits)}, expected floating point [N, T, K]")
    samples, timesteps, classes = logits.shape
    if not samples or not timesteps:
        raise refuse(f"logits is {_describe(logits)}: a trace needs at least one sample and one timestep")
    if classes < 2:
        raise refuse(f"logits has {classes} classes; a decision needs at least 2")
    _check_finite(logits, refuse)
    _check_labels(labels, samples, classes, refuse)
    ids = tensors.get("sample_ids", torch.arange(samples))
    _check_ids(ids, samples, refuse)
    counts = {name: tensors[name] for name in COUNTS if name in tensors}
    for name, values in counts.items():
        _check_count(name, values, (samples, timesteps), refuse)
    once = tensors.get("macs_once")
    if once is not None:
        _check_count("macs_once", once, (samples,), refuse)
    for name in ("variant", "provenance", "environment", "layers"):
        _check_json(header, name, refuse)
    by_layer = {name: tensors[name] for name in LAYER_COUNTS if name in tensors}
    if by_layer:
        layers = _layers(header, refuse)
        for name, values in by_layer.items():
            _check_count(name, values, (samples, timesteps, layers), refuse)
    return Trace(logits, labels.to(torch.int64), ids.to(torch.int64), counts, once, dict(header), by_layer)


def _check_finite(logits: torch.Tensor, refuse: Any) -> None:
    for start, piece in SampleRows([logits]).pieces():
        chunk = piece.to(torch.float64)
        low, high = chunk.aminmax()
        if not (low >= -_LARGEST and high <= _LARGEST):  # both comparisons fail for NaN
            bad = ~(chunk.abs() <= _LARGEST)
            sample, t, k = (int(i) for i in torch.nonzero(bad)[0])
            raise refuse(
                f"logits[{start + sample}, {t}, {k}] = {chunk[sample, t, k].item()}, which is no finite number"
            )


def _check_labels(labels: torch.Tensor, samples: int, classes: int, refuse: Any) -> None:
    if labels.dtype not in _INTEGER_TYPES or tuple(labels.shape) != (samples,):
        raise refuse(f"labels is {_describe(labels)}, expected whole numbers [{samples}] to match logits")
    whole = labels.to(torch.int64)
    outside = torch.nonzero((whole < 0) | (whole >= classes))
    if len(outside):
        first = int(outside[0])
        raise refuse(f"labels[{first}] = {int(labels[first])}, but logits have {classes} classes")


def _check_ids(ids: torch.Tensor, samples: int, refuse: Any) -> None:
    if ids.dtype not in _INTEGER_TYPES or tuple(ids.shape) != (samples,):
        raise refuse(f"sample_ids is {_describe(ids)}, expected whole numbers [{samples}] to match logits")
    ordered, places = torch.sort(ids.to(torch.int64), stable=True)
    twice = torch.nonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        position = int(places[twice.flatten() + 1].min())
        raise refuse(f"sample_ids[{position}] = {int(ids[position])} occurs twice; ids must be unique")


def _check_count(name: str, values: torch.Tensor, shape: tuple[int, ...], refuse: Any) -> None:
    if values.dtype != torch.int64 or tuple(values.shape) != shape:
        raise refuse(
            f"{name} is {_describe(values)}, expected int64 {list(shape)} to match logits"
            + " and header" * (len(shape) > 2)
        )
    negative = torch.nonzero(values < 0)
    if len(negative):
        index = ", ".join(str(int(i)) for i in negative[0])
        raise refuse(f"{name}[{index}] is negative")


def _layers(header: Mapping[str, str], refuse: Any) -> int:
    """Return the number of layers in the header."""
    layers = json.loads(header.get("layers", "null"))
    if not isinstance(layers, list):
        raise refuse("counts by layer need a header 'layers': a list with name and size of each")
    for place, layer in enumerate(layers):
        known = isinstance(layer, dict) and isinstance(layer.get("name"), str) and isinstance(layer.get("size"), int)
        if not known:
            raise refuse(f"header 'layers'[{place}] has no name and size: {layer!s:.60}")
    return len(layers)


def _check_json(header: Mapping[str, str], name: str, refuse: Any) -> None:
    try:
        json.loads(header.get(name, "null"))
    except (ValueError, RecursionError):
        raise refuse(f"header {name!r} is not JSON") from None


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
