"""What the last digits of a figure may depend on: versions, kernels, threads, device. No time, path or host name."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy
import scipy
import torch
import torch.nn.functional as F

from bench_core import __version__
from bench_core.device import CPU, device_name
from bench_core.digests import json_digest, tensor_digest

__all__ = ["environment", "numerics_fingerprint", "processor"]


def environment(device: torch.device = CPU) -> dict[str, Any]:
    """Return versions, the numerics fingerprint, threads, and the device that did the work."""
    return {
        "exitbench": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "machine": platform.machine(),
        "numerics": numerics_fingerprint(),
        "threads": torch.get_num_threads(),
        "device": device_name(device),
    }


def processor(device: torch.device = CPU) -> str:
    """Return the device, the machine and the name of PyTorch's kernels, for people to read."""
    return f"{device_name(device)} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def numerics_fingerprint() -> str:
    """Return a digest of small computations whose last bits depend on the kernels that PyTorch chooses here.

    Convolutions in both memory layouts, linear layers of several numbers of rows, softmax, exponential, logarithm, lerp
    and sums, on one thread, of inputs that need no library. Two processes with equal fingerprints, versions and threads
    record the same bytes; a name such as "AVX512" doesn't say as much, since libraries choose by the model of the
    processor and the sizes of its caches.

    Returns:
        16 hexadecimal digits.
    """
    return _fingerprint(torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled, _flushes_denormals())


@cache
def _fingerprint(*_settings: object) -> str:
    with _alone(), torch.inference_mode():
        found = {name: tensor_digest(values) for name, values in _computations()}
    return json_digest(found)[:16]


def _computations() -> Iterator[tuple[str, torch.Tensor]]:
    for batch, channels, size, filters in ((100, 1, 28, 16), (100, 16, 14, 32), (64, 32, 7, 64), (1, 16, 28, 16)):
        images, weights = _numbers(batch, channels, size, size), _numbers(filters, channels, 3, 3)
        for layout in (torch.contiguous_format, torch.channels_last):
            inputs = images.to(memory_format=layout)
            yield f"convolution {tuple(images.shape)} {layout}", F.conv2d(inputs, weights, padding=1)
    for width, classes in ((64, 10), (576, 10), (1568, 128)):
        weights, bias = _numbers(classes, width), _numbers(classes)
        for rows in (1, 5, 30, 100, 400):
            yield f"linear {rows} {width} {classes}", F.linear(_numbers(rows, width), weights, bias)
    for dtype in (torch.float32, torch.float64):
        values = 8.0 * _numbers(60, 37).to(dtype)
        for name, function in (
            ("softmax", lambda x: x.softmax(1)),
            ("exponential", torch.exp),
            ("logarithm", lambda x: x.abs().add(0.5).log()),
            ("lerp", lambda x: torch.lerp(x[:30], x[30:], 0.3)),
            ("row sums", lambda x: x.sum(1)),
            ("sum", torch.sum),
            ("mean", lambda x: x.mean(0)),
        ):
            yield f"{name} {dtype}", function(values)


def _numbers(*shape: int) -> torch.Tensor:
    """Return float32 numbers in [-1, 1) of a shape, scattered, and the same everywhere."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 7919 % 16_381 - 8_190).to(torch.float32) / 8_192.0).reshape(shape)


def _flushes_denormals() -> bool:
    return bool(torch.tensor([2.0**-149]) * 1.0 == 0.0)


@contextmanager
def _alone() -> Iterator[None]:
    """Compute on one thread, with PyTorch's usual types."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
