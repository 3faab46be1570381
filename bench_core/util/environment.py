"""The environment that results depend on to the last digit: versions, kernels, threads, device.

It includes no time, path or host name.
"""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import numpy
import scipy
import torch
import torch.nn.functional as F

from bench_core.util.device import CPU, device_name, wanted_device
from bench_core.util.digests import canonical_json, json_digest, tensor_digest
from bench_core.util.version import __version__

__all__ = ["environment", "numerics_fingerprint", "processor", "rounding_settings"]

_Read = Callable[[], Any]
_backends: Any = torch.backends
_SETTINGS: Final[dict[str, tuple[_Read, Any]]] = {  # name: (function that reads it, PyTorch's default)
    "default dtype": (lambda: str(torch.get_default_dtype()), "torch.float32"),
    "default device": (lambda: str(torch.get_default_device()), "cpu"),
    "float32 matmul precision": (torch.get_float32_matmul_precision, "highest"),
    "fp32 precision": (lambda: _backends.fp32_precision, "none"),
    "mkldnn": (lambda: _backends.mkldnn.enabled, True),
    "mkldnn deterministic": (lambda: _backends.mkldnn.deterministic, False),
    "mkldnn fp32 precision": (lambda: _backends.mkldnn.fp32_precision, "none"),
    "mkldnn matmul fp32 precision": (lambda: _backends.mkldnn.matmul.fp32_precision, "none"),
    "mkldnn convolution fp32 precision": (lambda: _backends.mkldnn.conv.fp32_precision, "none"),
    "mkldnn recurrent fp32 precision": (lambda: _backends.mkldnn.rnn.fp32_precision, "none"),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, False),
    "flush denormals": (lambda: bool(torch.tensor([2.0**-149], dtype=torch.float32, device="cpu") * 1.0 == 0.0), False),
    "autocast": (lambda: torch.is_autocast_enabled("cpu") and str(torch.get_autocast_dtype("cpu")), False),
    "attention fast path": (_backends.mha.get_fastpath_enabled, True),
    "flash attention": (_backends.cuda.flash_sdp_enabled, True),
}
_GPU_SETTINGS: Final[dict[str, tuple[_Read, Any]]] = {
    "cuda autocast": (lambda: torch.is_autocast_enabled("cuda") and str(torch.get_autocast_dtype("cuda")), False),
    "cuda matmul fp32 precision": (lambda: _backends.cuda.matmul.fp32_precision, "none"),
    "cuda fp16 reduction": (lambda: _backends.cuda.matmul.allow_fp16_reduced_precision_reduction, True),
    "cuda bf16 reduction": (lambda: _backends.cuda.matmul.allow_bf16_reduced_precision_reduction, True),
    "cudnn": (lambda: _backends.cudnn.enabled, True),
    "cudnn benchmark": (lambda: _backends.cudnn.benchmark, False),
    "cudnn deterministic": (lambda: _backends.cudnn.deterministic, False),
    "cudnn convolution fp32 precision": (lambda: _backends.cudnn.conv.fp32_precision, "tf32"),
}


def environment(device: torch.device = CPU) -> dict[str, Any]:
    """Return the versions, the numerics fingerprint, the number of threads, and the device that did the work.

    Settings that affect rounding are included only if they differ from PyTorch's defaults.
    """
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
        **({"settings": settings} if (settings := rounding_settings()) else {}),
    }


def rounding_settings() -> dict[str, Any]:
    """Return the PyTorch settings that affect rounding and differ from their defaults, by name.

    GPU settings are included only if a GPU is requested. Empty in a process that changes no settings.
    """
    known = _SETTINGS if wanted_device() == "cpu" else {**_SETTINGS, **_GPU_SETTINGS}
    found = {name: _setting(read) for name, (read, _) in known.items()}
    return {name: value for name, value in found.items() if value != known[name][1]}


def _setting(read: _Read) -> Any:
    try:
        value = read()
    except RuntimeError:  # PyTorch raises if its old and new settings contradict each other
        return "mixed"
    return "none" if value == "ieee" else value  # resetting a precision leaves "ieee", which rounds like "none"


def processor(device: torch.device = CPU) -> str:
    """Return the device, the machine and PyTorch's CPU kernel name, for display."""
    return f"{device_name(device)} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def numerics_fingerprint() -> str:
    """Return a digest of small computations whose last bits depend on the kernels that PyTorch selects on this machine.

    The computations are convolutions in both memory layouts, linear layers with several row counts, softmax,
    exponential, logarithm, lerp and sums, on one thread, with inputs that need no library. Two processes with equal
    fingerprints, versions and threads record the same bytes. A name such as "AVX512" would not suffice, because
    libraries choose kernels by processor model and cache sizes.

    Returns:
        16 hexadecimal digits.
    """
    return _fingerprint(canonical_json(rounding_settings()))


@cache
def _fingerprint(_settings: str) -> str:
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
    """Return scattered float32 numbers in [-1, 1) of the given shape, identical on every machine."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 7919 % 16_381 - 8_190).to(torch.float32) / 8_192.0).reshape(shape)


@contextmanager
def _alone() -> Iterator[None]:
    """Compute on one CPU thread with PyTorch's default types."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
