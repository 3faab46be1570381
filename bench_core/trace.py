"""The trace: what a network said and spent at every timestep, on every sample of a split.

A trace file is safetensors, never pickle. ``logits`` [N, T, K] and ``labels`` [N] suffice; people bring their own.
Everything else is optional, and what is missing is reported as n/a, never as 0. A large trace may be several such
files, its shards, named in a ``.json`` index. Files are mapped, and logits read a few samples at a time.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open

from bench_core.digests import json_digest, pieces_digest, tensor_digest, tensors_digest
from bench_core.errors import TraceError, UsageError, one_line
from bench_core.logits import LogitRows
from bench_core.shards import Shard, read_index, shard_place, write_index
from bench_core.store import write_safetensors

__all__ = ["LAYER_COUNTS", "SCHEMA", "Trace", "load_trace", "save_trace", "save_trace_shards", "trace_tensors"]

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
    """The attribute ``logits`` of a trace: set from a tensor or rows, kept as ``rows``, read as a tensor."""

    def __get__(self, trace: "Trace | None", owner: type | None = None) -> torch.Tensor:
        if trace is None:
            raise AttributeError("logits")  # a field without a default
        return trace.rows.whole()

    def __set__(self, trace: "Trace", given: torch.Tensor | LogitRows) -> None:
        trace.__dict__["rows"] = given if isinstance(given, LogitRows) else LogitRows([given])


@dataclass(frozen=True)
class Trace:
    """The recorded outputs and operation counts of one workload on one split.

    Attributes:
        logits: o_t per sample and step, not accumulated, [N, T, K], K >= 2, floating point. Of a trace in shards and
            of a selection this copies everything into memory and keeps it; ``pieces`` and ``totals`` don't.
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
        logits: _Logits = _Logits()  # a descriptor, which is no default
    labels: torch.Tensor
    sample_ids: torch.Tensor
    counts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    macs_once: torch.Tensor | None = None
    header: Mapping[str, str] = field(default_factory=dict)
    layer_counts: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Trace(N={len(self)}, T={self.timesteps}, K={self.classes}, header={dict(self.header)!r})"

    @property
    def rows(self) -> LogitRows:
        """The logits, to be read a few samples at a time."""
        rows: LogitRows = self.__dict__["rows"]
        return rows

    @property
    def timesteps(self) -> int:
        """T."""
        return self.rows.shape[1]

    @property
    def classes(self) -> int:
        """K."""
        return self.rows.shape[2]

    @property
    def layers(self) -> list[dict[str, Any]]:
        """What the header says of each of the L layers: at least ``name`` and ``size``."""
        found = json.loads(self.header.get("layers", "[]"))
        return found if isinstance(found, list) else []

    @cached_property
    def predictions(self) -> torch.Tensor:
        """argmax S_t, ties to the lowest class, int64 [N, T]."""
        found = torch.empty(self.rows.shape[:2], dtype=torch.int64)
        for start, totals in self.totals():
            found[start : start + len(totals)] = torch.from_numpy(totals.numpy().argmax(2))  # faster than torch's
        return found

    @cached_property
    def correct(self) -> torch.Tensor:
        """Whether argmax S_t is the label, bool [N, T]."""
        return self.predictions == self.labels[:, None]

    def pieces(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The logits a few samples at a time: pairs of (first sample, o_t [n, T, K]), not to be written to."""
        return self.rows.pieces()

    def totals(self) -> Iterator[tuple[int, torch.Tensor]]:
        """S_t a few samples at a time: pairs of (first sample, float64 [n, T, K])."""
        for start, piece in self.pieces():
            totals = piece.to("cpu", torch.float64, copy=True)
            for t in range(1, self.timesteps):
                totals[:, t] += totals[:, t - 1]  # what cumsum does, faster
            yield start, totals

    @cached_property
    def digest(self) -> str:
        """sha256 over all tensors, the same however they are cut into shards."""
        rows = self.rows
        digests = {name: tensor_digest(tensor) for name, tensor in _tensors_beside_logits(self).items()}
        logits = pieces_digest((piece for _, piece in rows.pieces()), rows.dtype, rows.shape)
        return json_digest({**digests, "logits": logits})

    def select(self, index: torch.Tensor) -> "Trace":
        """The trace of the samples at ``index`` only; logits are not copied but read from where they are."""
        return self._with(
            self.rows.select(index),
            {name: values[index] for name, values in _tensors_beside_logits(self).items()},
        )

    def _with(self, rows: LogitRows | torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> "Trace":
        """Other samples under the same header."""
        counts = {name: tensors[name] for name in COUNTS if name in tensors}
        by_layer = {name: tensors[name] for name in LAYER_COUNTS if name in tensors}
        labels, ids, once = tensors["labels"], tensors["sample_ids"], tensors.get("macs_once")
        return Trace(cast(torch.Tensor, rows), labels, ids, counts, once, self.header, by_layer)


def _tensors_beside_logits(trace: Trace) -> dict[str, torch.Tensor]:
    tensors = {"labels": trace.labels, "sample_ids": trace.sample_ids, **trace.counts, **trace.layer_counts}
    if trace.macs_once is not None:
        tensors["macs_once"] = trace.macs_once
    return tensors


def trace_tensors(trace: Trace) -> dict[str, torch.Tensor]:
    """A trace's tensors under their names in a file, all of them in memory."""
    return {"logits": trace.logits, **_tensors_beside_logits(trace)}


def save_trace(trace: Trace, path: Path) -> None:
    """Write a trace file, whole or not at all. Raises StoreError when the disk says no."""
    write_safetensors(path, trace_tensors(trace), {**trace.header, "schema": SCHEMA})


def save_trace_shards(trace: Trace | Iterable[Trace], path: Path, samples_per_shard: int) -> None:
    """Write a trace as shards beside their index ``path``, which is written last.

    Args:
        trace: a trace, or traces whose samples follow one another, as they are made: no more of them is held than
            fills a shard. All need the same T, K, header and set of tensors.
        path: the index, ``NAME.json``; shards become ``NAME.00000.safetensors`` and so on, replacing such files.
        samples_per_shard: of each but the last.

    Raises UsageError for a path or size that won't do, TraceError for traces that don't go together, StoreError when
    the disk says no.
    """
    if path.suffix != ".json":
        raise UsageError(f"{path}: an index of shards is a .json file; name it {path.with_suffix('.json').name}")
    if samples_per_shard < 1:
        raise UsageError(f"{path}: {samples_per_shard} samples per shard; take at least 1")
    shards = []
    for number, part in enumerate(_cut(_traces(trace), samples_per_shard, path)):
        file = f"{path.stem}.{number:05}.safetensors"
        save_trace(part, path.parent / file)
        shards.append(Shard(file, len(part), part.digest))
    if not shards:
        raise UsageError(f"{path}: there is no trace to write")
    write_index(path, shards)


def _traces(given: Trace | Iterable[Trace]) -> Iterator[Trace]:
    if isinstance(given, Trace):
        yield given
    else:
        yield from given


def _cut(traces: Iterator[Trace], samples: int, path: Path) -> Iterator[Trace]:
    """Traces that follow one another, cut anew: so many samples each, fewer in the last."""
    held: list[Trace] = []
    first: Trace | None = None
    for number, trace in enumerate(traces):
        first = first or trace
        if problem := _difference(first, trace):
            raise TraceError(f"trace {path}: part {number} doesn't go with part 0: {problem}")
        start, stop = 0, samples - sum(map(len, held))
        while stop <= len(trace):
            yield _joined([*held, _range(trace, start, stop)])
            held, start, stop = [], stop, stop + samples
        if start < len(trace):
            held.append(_range(trace, start, len(trace)))
    if held:
        yield _joined(held)


def _range(trace: Trace, start: int, stop: int) -> Trace:
    tensors = {name: values[start:stop] for name, values in _tensors_beside_logits(trace).items()}
    return trace._with(trace.rows.read(start, stop), tensors)


def _joined(traces: Sequence[Trace]) -> Trace:
    """One trace of several that go together; logits are not copied."""
    if len(traces) == 1:
        return traces[0]
    beside = [_tensors_beside_logits(trace) for trace in traces]
    tensors = {name: torch.cat([part[name] for part in beside]) for name in beside[0]}
    return traces[0]._with(LogitRows([trace.logits for trace in traces]), tensors)


def _difference(first: Trace, other: Trace) -> str:
    """Why two traces are no parts of one, or nothing."""
    for name in ("timesteps", "classes"):
        if getattr(first, name) != getattr(other, name):
            return f"it has {getattr(other, name)} {name}, not {getattr(first, name)}"
    if first.rows.dtype != other.rows.dtype:
        return f"its logits are {other.rows.dtype}, not {first.rows.dtype}"
    for name in sorted(_tensors_beside_logits(first).keys() ^ _tensors_beside_logits(other).keys()):
        return f"only one of the two has {name}"
    strings = [{k: v for k, v in trace.header.items() if k != "schema"} for trace in (first, other)]
    for name in sorted(strings[0].keys() | strings[1].keys()):
        if strings[0].get(name) != strings[1].get(name):
            return f"header {name!r} is another"
    return ""


def load_trace(path: Path | str) -> Trace:
    """Read and validate a trace file, or a trace in shards from its ``.json`` index.

    Raises TraceError, one line with file, tensor and first bad index, for whatever isn't a valid trace.
    """
    path = Path(path)
    if path.suffix == ".json":
        return _load_shards(path)
    tensors, header = _read(path)
    return trace_from_tensors(tensors, header, str(path))


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as handle:
            header = dict(handle.metadata() or {})
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  # not a mapping
    except FileNotFoundError:
        raise TraceError(f"trace {path}: no such file") from None
    except (OSError, SafetensorError, ValueError, MemoryError) as error:
        raise TraceError(one_line(f"trace {path}: not a readable safetensors file ({error!s:.200})")) from error
    return tensors, header


def _load_shards(path: Path) -> Trace:
    parts: list[Trace] = []
    places: list[Path] = []
    without_ids, offset = False, 0
    for number, shard in enumerate(read_index(path)):
        place = shard_place(path, shard)
        tensors, header = _read(place)
        if tensors_digest(tensors) != shard.digest:
            raise TraceError(
                one_line(f"trace {place}: its content is not what {path} names; restore it, or write the shards again")
            )
        missing = "sample_ids" not in tensors
        if number and missing != without_ids:
            raise TraceError(one_line(f"trace {place}: sample_ids in some shards of {path} only; give all of them ids"))
        without_ids = missing
        if missing and "labels" in tensors:
            tensors["sample_ids"] = torch.arange(offset, offset + tensors["labels"].numel())
        part = trace_from_tensors(tensors, header, str(place))
        if len(part) != shard.samples:
            raise TraceError(one_line(f"trace {place}: {len(part)} samples, but {path} says {shard.samples}; mend it"))
        if parts and (problem := _difference(parts[0], part)):
            raise TraceError(one_line(f"trace {place}: doesn't go with {places[0]}: {problem}; record them alike"))
        parts.append(part)
        places.append(place)
        offset += len(part)
    _check_ids_across(parts, places)
    return _joined(parts)


def _check_ids_across(parts: Sequence[Trace], places: Sequence[Path]) -> None:
    """Each shard's ids are unique; no two shards may share one."""
    ids = torch.cat([part.sample_ids for part in parts])
    ordered, origins = torch.sort(ids, stable=True)
    twice = torch.nonzero(ordered[1:] == ordered[:-1]).flatten()
    if len(twice):
        later = int(origins[twice + 1].min())
        owner = torch.repeat_interleave(torch.tensor([len(part) for part in parts]))
        shard, earlier = int(owner[later]), int(owner[ids == ids[later]][0])
        position = later - sum(len(part) for part in parts[:shard])
        raise TraceError(
            one_line(
                f"trace {places[shard]}: sample_ids[{position}] = {int(ids[later])} is in {places[earlier]} too; "
                "ids must be unique across shards"
            )
        )


def trace_from_tensors(tensors: Mapping[str, torch.Tensor], header: Mapping[str, str], place: str) -> Trace:
    """A validated trace from tensors; ``place`` names it in errors. Raises TraceError."""

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
    for name in ("variant", "provenance", "layers"):
        _check_json(header, name, refuse)
    by_layer = {name: tensors[name] for name in LAYER_COUNTS if name in tensors}
    if by_layer:
        layers = _layers(header, refuse)
        for name, values in by_layer.items():
            _check_count(name, values, (samples, timesteps, layers), refuse)
    return Trace(logits, labels.to(torch.int64), ids.to(torch.int64), counts, once, dict(header), by_layer)


def _check_finite(logits: torch.Tensor, refuse: Any) -> None:
    for start, piece in LogitRows([logits]).pieces():
        chunk = piece.to(torch.float64)
        low, high = chunk.aminmax()
        if not (low >= -_LARGEST and high <= _LARGEST):  # a NaN is neither
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
    """How many layers the header tells of."""
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
