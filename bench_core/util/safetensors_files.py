"""safetensors files, written atomically in pieces and read memory-mapped, so that neither loads the whole file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bench_core.errors import StoreError
from bench_core.util.files import open_regular, whole_file
from bench_core.util.sample_rows import SampleRows, tensor_bytes

__all__ = ["read_safetensors", "write_safetensors"]

_TYPES = {  # the format's own names
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the memory-mapped tensors of a safetensors file, and the strings of its header.

    Raises OSError or MemoryError, and SafetensorError or ValueError if it is not a safetensors file.
    """
    with open_regular(path):  # gives clearer errors than safe_open
        pass
    with safe_open(path, framework="pt") as handle:
        header = dict(handle.metadata() or {})
        return {name: handle.get_tensor(name) for name in handle.keys()}, header  # noqa: SIM118  # not a mapping


def write_safetensors(
    path: Path, tensors: Mapping[str, torch.Tensor | SampleRows], header: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """Write a safetensors file atomically; return its tensors, memory-mapped from the file.

    Raises StoreError if the file cannot be written.
    """
    try:
        with whole_file(path) as place:
            _write(place, tensors, header)
            return read_safetensors(place)[0]  # before it gets its final name, under which others might remove it
    except (OSError, SafetensorError) as error:
        raise StoreError.unwritable(path, error) from error


def _write(place: Path, tensors: Mapping[str, torch.Tensor | SampleRows], header: Mapping[str, str]) -> None:
    ordered = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # keeps every tensor aligned
    content: dict[str, Any] = {"__metadata__": dict(header)}
    end = 0
    for name in ordered:
        tensor = tensors[name]
        start, end = end, end + tensor.dtype.itemsize * tensor.shape.numel()
        content[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    described = json.dumps(content, separators=(",", ":")).encode()
    described += b" " * (-len(described) % 8)
    with place.open("wb") as stream:
        stream.write(len(described).to_bytes(8, "little") + described)
        for name in ordered:
            for block in tensor_bytes(tensors[name]):
                stream.write(block)
