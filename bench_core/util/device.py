"""The device that networks are trained and recorded on: the CPU, or the GPU that the user names."""

import os

import torch

from bench_core.errors import UsageError, one_line

__all__ = ["CPU", "VARIABLE", "compute_device", "device_name", "wanted_device"]

CPU = torch.device("cpu")
VARIABLE = "EXITBENCH_DEVICE"


def wanted_device() -> str:
    """Return the value of ``EXITBENCH_DEVICE`` (or ``--device``), available or not; ``cpu`` if it is unset."""
    return os.environ.get(VARIABLE) or "cpu"


def compute_device() -> torch.device:
    """Return the device that ``EXITBENCH_DEVICE`` (or ``--device``) names, such as ``cuda:1``; the CPU if it is unset.

    Raises UsageError if the name is not a device or the device is not available.
    """
    wanted = wanted_device()
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UsageError(f"device {wanted}: no device; it is cpu, cuda or cuda:NUMBER") from None
    if device.type == "cpu":
        return CPU
    if device.type != "cuda" or not torch.cuda.is_available():
        raise UsageError(f"device {wanted}: PyTorch {torch.__version__} finds none here; leave it out to use the CPU")
    if (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {wanted}: there are {torch.cuda.device_count()} here, counted from 0")
    return device


def device_name(device: torch.device) -> str:
    """Return ``cpu``, or the GPU's product name."""
    return one_line(torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type
