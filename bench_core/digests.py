"""Digests: what an artifact is made of, as one hexadecimal word.

A digest covers declared content only (canonical JSON, tensor bytes, file bytes), never a ``repr``, so that it is the
same in every process, on every machine and in every Python version.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["canonical_json", "file_digest", "json_digest", "pieces_digest", "tensor_digest", "tensors_digest"]

_BLOCK = 1 << 20


def canonical_json(value: Any) -> str:
    """``value`` as JSON with sorted keys and no spaces. Raises TypeError for anything JSON can't hold, NaN included."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise TypeError(f"not canonical: {error}") from error


def json_digest(value: Any) -> str:
    """sha256 of the canonical JSON of ``value``, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def tensor_digest(tensor: torch.Tensor) -> str:
    """sha256 over dtype, shape and contiguous little-endian bytes of a tensor."""
    return pieces_digest([tensor], tensor.dtype, tensor.shape)


def pieces_digest(pieces: Iterable[torch.Tensor], dtype: torch.dtype, shape: torch.Size) -> str:
    """The ``tensor_digest`` of a tensor that is given in pieces along its first dimension."""
    digest = hashlib.sha256(canonical_json({"dtype": str(dtype), "shape": list(shape)}).encode())
    for piece in pieces:
        flat = piece.detach().cpu().contiguous()
        if flat.numel():
            raw: np.ndarray[Any, Any] = flat.reshape(-1).view(torch.uint8).numpy()
            digest.update(raw.data)
    return digest.hexdigest()


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over a named set of tensors, whatever their order."""
    return json_digest({name: tensor_digest(tensor) for name, tensor in tensors.items()})
