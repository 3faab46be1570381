"""Trace files: one safetensors file (never pickle), or several shards that a ``.json`` index names.

Files are memory-mapped for reading, and written a few samples at a time.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError

from bench_core.errors import TraceError, UsageError, one_line
from bench_core.trace.shards import Shard, read_index, shard_place, write_index
from bench_core.trace.trace import SCHEMA, Trace, tensors_beside_logits, trace_from_tensors, trace_tensors
from bench_core.util.digests import tensors_digest
from bench_core.util.safetensors_files import read_safetensors, write_safetensors
from bench_core.util.sample_rows import SampleRows

__all__ = ["load_trace", "save_trace", "save_trace_shards"]


def save_trace(trace: Trace, path: Path) -> None:
    """Write a trace file atomically. Raises StoreError if the file cannot be written."""
    write_safetensors(path, trace_tensors(trace), {**trace.header, "schema": SCHEMA})


def save_trace_shards(trace: Trace | Iterable[Trace], path: Path, samples_per_shard: int) -> None:
    """Write a trace as shards next to their index ``path``, which is written last.

    Args:
        trace: a trace, or an iterable of traces with consecutive samples; no more of them is held in memory than fills
            a shard. All need the same T, K, header and set of tensors.
        path: the index, ``NAME.json``; shards become ``NAME.00000.safetensors`` and so on, replacing such files.
        samples_per_shard: in each shard but the last.

    Raises UsageError for an invalid path or size, TraceError for incompatible traces, and StoreError if a file cannot
    be written.
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
    """Yield consecutive traces re-cut into pieces of ``samples`` samples each, fewer in the last."""
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
    tensors = {name: values[start:stop] for name, values in tensors_beside_logits(trace).items()}
    return Trace.of(trace.rows.read(start, stop), tensors, trace.header)


def _joined(traces: Sequence[Trace]) -> Trace:
    """Return several compatible traces as one; logits are not copied."""
    if len(traces) == 1:
        return traces[0]
    beside = [tensors_beside_logits(trace) for trace in traces]
    tensors = {name: torch.cat([part[name] for part in beside]) for name in beside[0]}
    return Trace.of(SampleRows([trace.logits for trace in traces]), tensors, traces[0].header)


def _difference(first: Trace, other: Trace) -> str:
    """Return why two traces can't be parts of one trace, or ""."""
    for name in ("timesteps", "classes"):
        if getattr(first, name) != getattr(other, name):
            return f"it has {getattr(other, name)} {name}, not {getattr(first, name)}"
    if first.rows.dtype != other.rows.dtype:
        return f"its logits are {other.rows.dtype}, not {first.rows.dtype}"
    for name in sorted(tensors_beside_logits(first).keys() ^ tensors_beside_logits(other).keys()):
        return f"only one of the two has {name}"
    strings = [{k: v for k, v in trace.header.items() if k != "schema"} for trace in (first, other)]
    for name in sorted(strings[0].keys() | strings[1].keys()):
        if strings[0].get(name) != strings[1].get(name):
            return f"header {name!r} is another"
    return ""


def load_trace(path: Path | str) -> Trace:
    """Read and validate a trace file, or a sharded trace from its ``.json`` index.

    Raises TraceError, which names the file, the tensor and the first bad index, for an invalid trace.
    """
    path = Path(path)
    if path.suffix == ".json":
        return _load_shards(path)
    tensors, header = _read(path)
    return trace_from_tensors(tensors, header, str(path))


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        return read_safetensors(path)
    except FileNotFoundError:
        raise TraceError(f"trace {path}: no such file") from None
    except (OSError, SafetensorError, ValueError, MemoryError) as error:
        raise TraceError(one_line(f"trace {path}: not a readable safetensors file ({error!s:.200})")) from error


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
    """Raise TraceError if two shards share a sample id; within each shard, ids are already known to be unique."""
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
