"""Where networks are trained and recorded: the processor, or the GPU that the user names."""

import os

import torch

from bench_core.errors import UsageError, one_line

__all__ = ["CPU", "VARIABLE", "compute_device", "device_name", "wanted_device"]

CPU = torch.device("cpu")
VARIABLE = "EXITBENCH_DEVICE"


def wanted_device() -> str:
    """What ``EXITBENCH_DEVICE`` (or ``--device``) says, here or not."""
    return os.environ.get(VARIABLE) or "cpu"


def compute_device() -> torch.device:
    """What ``EXITBENCH_DEVICE`` (or ``--device``) says, such as ``cuda`` or ``cuda:1``; without it the processor.

    Raises UsageError, one line, for what is no device or isn't here.
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
    """``cpu``, or what the GPU calls itself."""
    return one_line(torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type
