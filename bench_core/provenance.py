"""What produced a board: versions, digests, seeds, device. No time, path or host name."""

import platform
from typing import Any

import numpy
import scipy
import torch

from bench_core import __version__
from bench_core.columns import SCHEMA
from bench_core.device import CPU, device_name
from bench_core.plugin_manager import Registry
from bench_core.suite import Suite

__all__ = ["environment", "manifest"]


def environment(device: torch.device = CPU) -> dict[str, Any]:
    """What rounding may depend on: versions, CPU capability, threads, and the device that did the work."""
    return {
        "exitbench": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": device_name(device),
    }


def manifest(suite: Suite, registry: Registry, workloads: dict[str, dict[str, Any]], command: str) -> dict[str, Any]:
    """The record that stands beside a board."""
    return {
        "schema": SCHEMA,
        "suite": suite.model_dump(by_alias=True),
        "command": command,
        "environment": environment(),
        "plugins": [
            {"name": plugin.name, "distribution": plugin.distribution, "version": plugin.version}
            for plugin in registry.plugins
            if not plugin.problem
        ],
        "workloads": workloads,
    }
