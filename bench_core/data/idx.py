"""IDX, the file format of MNIST and Fashion-MNIST: reading and writing, plain or gzip-compressed.

Format: two zero bytes, a type byte (0x08 = unsigned byte), the number of dimensions, then each dimension as a
big-endian 32-bit integer, then the values (https://yann.lecun.com/exdb/mnist).
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from bench_core.errors import DataError

__all__ = ["parse_idx", "read_idx", "write_idx"]

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> torch.Tensor:
    """Return the unsigned-byte tensor in an IDX file (gzip is recognised by its first bytes, not by the file's name).

    Raises DataError, naming the file, if it is missing, truncated, too long or not IDX of unsigned bytes.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); fetch the data set again") from error
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, MemoryError, zlib.error) as error:
            raise DataError(f"{path}: damaged gzip file ({error}); fetch the data set again") from error
    return parse_idx(raw, path)


def parse_idx(raw: bytes, path: Path) -> torch.Tensor:
    """Return the unsigned-byte tensor in the bytes of an IDX file. Raises DataError that names ``path``."""
    if len(raw) < 4 or raw[:2] != b"\x00\x00" or raw[2] != _UNSIGNED_BYTE or not 1 <= raw[3] <= 4:
        raise DataError(f"{path}: not an IDX file of unsigned bytes")
    header = 4 + 4 * raw[3]
    if len(raw) < header:
        raise DataError(f"{path}: truncated in its header; fetch the data set again")
    shape = struct.unpack(f">{raw[3]}I", raw[4:header])
    if len(raw) - header != math.prod(shape):
        raise DataError(
            f"{path}: {len(raw) - header} values where the header promises {math.prod(shape)}; fetch the data set again"
        )
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy())


def write_idx(path: Path, values: torch.Tensor) -> None:
    """Write an unsigned-byte tensor as IDX; gzip-compressed, with no time or name in it, if the name ends in .gz."""
    if values.dtype != torch.uint8:
        raise TypeError(f"IDX files here hold uint8, not {values.dtype}")
    header = bytes([0, 0, _UNSIGNED_BYTE, values.dim()]) + struct.pack(f">{values.dim()}I", *values.shape)
    raw = header + values.contiguous().numpy().tobytes()
    path.write_bytes(gzip.compress(raw, 9, mtime=0) if path.suffix == ".gz" else raw)
