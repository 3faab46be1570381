"""Digests: sha256 identities of JSON values, files and tensors.

A digest covers declared content only (canonical JSON, tensor bytes, file bytes), never a ``repr``, so it is the same
in every process, on every machine and in every Python version.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench_core.util.sample_rows import SampleRows, tensor_bytes

__all__ = ["canonical_json", "file_digest", "json_digest", "tensor_digest", "tensors_digest"]

_BLOCK = 1 << 20
_CANONICAL: dict[str, Any] = {"sort_keys": True, "separators": (",", ":"), "ensure_ascii": False, "allow_nan": False}


def canonical_json(value: Any) -> str:
    """Return ``value`` as JSON with sorted keys and no spaces.

    Infinities and NaN, which JSON cannot represent, become ``{"float": "inf"}`` and so on. Raises TypeError if
    ``value`` cannot be represented in JSON at all.
    """
    try:
        return json.dumps(value, **_CANONICAL)
    except ValueError:
        try:
            return json.dumps(_with_named_floats(value), **_CANONICAL)
        except (ValueError, RecursionError) as error:  # a circular reference
            raise TypeError(f"not canonical: {error}") from error


def _with_named_floats(value: Any) -> Any:
    """Return ``value`` with infinities and NaN replaced by their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(float(value))}
    if isinstance(value, dict):
        return {name: _with_named_floats(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [_with_named_floats(held) for held in value]
    return value


def json_digest(value: Any) -> str:
    """Return the sha256 of the canonical JSON of ``value``, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def tensor_digest(tensor: torch.Tensor | SampleRows) -> str:
    """Return the sha256 of a tensor's dtype, shape and contiguous little-endian bytes, regardless of its parts."""
    digest = hashlib.sha256(canonical_json({"dtype": str(tensor.dtype), "shape": list(tensor.shape)}).encode())
    for block in tensor_bytes(tensor):
        digest.update(block)
    return digest.hexdigest()


def tensors_digest(tensors: Mapping[str, torch.Tensor | SampleRows]) -> str:
    """Return the sha256 of a set of named tensors, regardless of their order."""
    return json_digest({name: tensor_digest(tensor) for name, tensor in tensors.items()})
