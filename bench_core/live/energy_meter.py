"""Measured energy from RAPL (CPU packages) or NVML (GPU); n/a on machines without either.

Readings cover the whole package or board, including idle power and other processes.
"""

from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["EnergyMeter", "energy_meter", "nvml_meter", "rapl_meter"]

EnergyMeter = Callable[[], Callable[[], float]]
"""Call it to start; what it returns gives the joules since."""

POWERCAP = Path("/sys/class/powercap")


def energy_meter(device: torch.device) -> EnergyMeter | None:
    """Return the meter of a device, or None if no meter is readable."""
    return nvml_meter(device.index or 0) if device.type == "cuda" else rapl_meter()


def rapl_meter(root: Path = POWERCAP) -> EnergyMeter | None:
    """Return a meter over all CPU packages; RAPL counts microjoules and wraps to zero at the end of its range."""
    try:
        zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        zones = [zone for zone in zones if _text(zone / "name").startswith("package")]
        ranges = [int(_text(zone / "max_energy_range_uj")) for zone in zones]
        for zone in zones:
            int(_text(zone / "energy_uj"))
    except (OSError, ValueError):
        return None
    if not zones:
        return None

    def counters() -> list[int]:
        return [int(_text(zone / "energy_uj")) for zone in zones]

    def start() -> Callable[[], float]:
        before = counters()
        return lambda: sum((b - a) % r for a, b, r in zip(before, counters(), ranges, strict=True)) * 1e-6

    return start


def nvml_meter(index: int) -> EnergyMeter | None:
    """Return a GPU's NVML meter (millijoules since the driver was loaded); needs the package ``nvidia-ml-py``."""
    try:
        import pynvml  # type: ignore[import-not-found, unused-ignore]  # optional

        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except Exception:  # not installed, no driver, or a GPU without an energy counter
        return None

    def start() -> Callable[[], float]:
        before = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
        return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) - before) * 1e-3

    return start


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()
