"""The only module that imports tonic (GPL-3.0, an optional dependency): event files to plain arrays.

Only tonic's file readers are used. Its data set classes accept "archive present and at least n files" as complete,
download if that fails, and list folders in the order of the file system; ``recordings`` checks a data set's content
instead. tonic 1.7.0's ``read_dvs_128`` raises (its header reader returns three values, two are unpacked), so the two
functions that it uses are called directly.
"""

from pathlib import Path
from typing import Any

import numpy as np

from bench_core.data.events import Events
from bench_core.errors import DataError

__all__ = ["read_aedat2", "read_aedat4", "read_bin"]

_INT64 = np.dtype([("x", np.int64), ("y", np.int64), ("t", np.int64), ("p", np.int64)])


def read_bin(path: Path) -> Events:
    """Return a recording of N-MNIST or N-Caltech101: 40 bits per event (Orchard et al., 2015). Raises DataError."""
    io = _tonic_io()
    size = _size(path)
    if size % 5:
        raise DataError(f"{path}: {size:,} bytes are no whole number of events of 5; fetch the data set again")
    found = _guarded(path, lambda: io.read_mnist_file(str(path), dtype=_INT64))
    return Events(found["x"], found["y"], found["t"], found["p"])


def read_aedat4(path: Path) -> Events:
    """Return a recording in iniVation's container; time counts from its first event. Needs the package ``aedat``."""
    io = _tonic_io()
    try:
        import aedat  # noqa: F401  # tonic imports it on reading
    except ImportError as error:
        raise DataError(f"{path}: reading aedat4 needs the package aedat; pip install aedat") from error
    _size(path)
    found = _guarded(path, lambda: io.read_aedat4(str(path)))
    t, x, y, p = (found[name].astype(np.int64) for name in found.dtype.names[:4])
    return Events(x, y, t - (t.min() if len(t) else 0), p)


def read_aedat2(path: Path) -> Events:
    """Return a DVS128 recording in AEDAT 2.0, upright as in the authors' Matlab reader; time from its first event.

    The address holds the row in bits 8-14 and the column in bits 1-7, both counted from the far end; bit 0 is 0 for
    brightening.
    """
    io = _tonic_io()

    def read() -> Any:
        with path.open("rb") as stream:
            if not stream.readline().startswith(b"#!AER-DAT2"):
                raise ValueError("its first line isn't that of AEDAT 2")
        version, start, *_ = io.read_aedat_header_from_file(str(path))
        if (path.stat().st_size - start) % 8:
            raise ValueError("no whole number of events of 8 bytes")
        return io.get_aer_events_from_file(str(path), version, start)

    found = _guarded(path, read)
    address, t = found["address"].astype(np.int64), found["timeStamp"].astype(np.int64)
    x, y = 127 - ((address >> 8) & 0x7F), 127 - ((address >> 1) & 0x7F)
    return Events(x, y, t - (t.min() if len(t) else 0), 1 - (address & 1))


def _tonic_io() -> Any:
    try:
        import tonic.io
    except ImportError as error:
        raise DataError("event recordings are read by tonic, which isn't installed; pip install tonic") from error
    return tonic.io


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); fetch the data set again") from error


def _guarded(path: Path, read: Any) -> Any:
    """Return the result of ``read``; turn any exception into a DataError that names the file."""
    try:
        return read()
    except Exception as error:  # readers of three formats, one of them compiled, raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: damaged or another format ({reason:.200}); fetch the data set again") from error
