"""Compilation of a network's forward and backward pass, on machines that support it."""

import os
import shutil
import sys
from collections.abc import Callable

import torch

from bench_core.util.progress import note

__all__ = ["compiled"]

Forward = Callable[..., torch.Tensor]
_COMPILER = {"darwin": "clang++", "win32": "cl"}


def compiled(forward: Forward, device: torch.device) -> Forward:
    """Return ``forward`` compiled with ``torch.compile``, or unchanged, with a note, if a CPU lacks a C++ compiler."""
    compiler = os.environ.get("CXX") or _COMPILER.get(sys.platform, "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        note(f"compile: no C++ compiler ({compiler}) found; training without compilation")
        return forward
    made: Forward = torch.compile(forward)
    return made
