"""Simulated saccades: events computed from images as if a sensor moved over them.

N-MNIST and CIFAR10-DVS were recorded by moving an event camera in front of a screen. This module computes what an ideal
sensor would see: each pixel keeps a reference level of log intensity and emits an event of the matching polarity
whenever the level under it has moved by the contrast threshold. Nothing here was recorded; data made by it is
called *simulated* everywhere.
"""

from typing import Any

import torch
import torch.nn.functional as F

from bench_core.data.base import Dataset, Images, ImageSplit

__all__ = ["SimulatedSaccades", "saccade_frames", "saccade_path"]

CONTRAST_THRESHOLD = 0.2
INTENSITY_OFFSET = 0.1
AMPLITUDE = 4.0  # pixels
SUBSTEPS = 4  # sensor positions per timestep
DURATION_MS = 300.0  # three saccades of 100 ms, as in N-MNIST (Orchard et al., Front. Neurosci. 9:437, 2015)
_LUMA = (0.299, 0.587, 0.114)
_CORNERS = ((-1.0, -1.0), (1.0, 0.0), (-1.0, 1.0), (-1.0, -1.0))


def saccade_path(timesteps: int) -> torch.Tensor:
    """Sensor positions in pixels, float64 [timesteps * SUBSTEPS + 1, 2]: a closed triangle, side after side."""
    moments = torch.linspace(0.0, 3.0, timesteps * SUBSTEPS + 1, dtype=torch.float64)
    side = moments.floor().clamp(max=2.0)
    corners = torch.tensor(_CORNERS, dtype=torch.float64) * AMPLITUDE
    start, end = corners[side.long()], corners[side.long() + 1]
    return start + (moments - side).unsqueeze(1) * (end - start)


def saccade_frames(images: torch.Tensor, timesteps: int, frames: int | None = None) -> torch.Tensor:
    """Event counts per timestep, polarity and pixel.

    Args:
        images: uint8 [B, 1 or 3, H, W]; of colours the luma (ITU-R BT.601) is seen.
        timesteps: T, into which the closed path is divided evenly.
        frames: how many of them are wanted, from the first; default all.

    Returns:
        float32 [frames, B, 2, H, W] of whole numbers; channel 0 counts brightening, channel 1 darkening.
    """
    batch, channels, height, width = images.shape
    margin = int(AMPLITUDE) + 1
    levels = images.float() / 255.0
    if channels == 3:
        levels = (levels * torch.tensor(_LUMA, device=images.device).reshape(3, 1, 1)).sum(1)
    padded = F.pad(levels.reshape(batch, height, width), [margin] * 4)

    def see(position: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """The log intensity in front of the sensor, written to ``seen``."""
        row, column = (position + margin).tolist()
        top, left = int(row), int(column)
        down, right = row - top, column - left
        rows = padded[:, top : top + height + 1, left : left + width + 1]
        rows = torch.lerp(rows[:, :-1], rows[:, 1:], down) if down else rows[:, :-1]
        if right:
            torch.lerp(rows[:, :, :-1], rows[:, :, 1:], right, out=seen)
        else:
            seen.copy_(rows[:, :, :-1])
        return seen.add_(INTENSITY_OFFSET).log_()

    # All in the same memory: what is new would have to come into the cache first.
    reference, level, spare = torch.empty(3, batch, height, width, device=images.device)
    path = saccade_path(timesteps)
    see(path[0], reference)
    counts = torch.zeros(timesteps if frames is None else frames, batch, 2, height, width, device=images.device)
    for frame, positions in zip(counts, path[1:].split(SUBSTEPS), strict=False):
        brighter, balance = frame[:, 0], frame[:, 1]
        for position in positions:
            moved = see(position, level).sub_(reference)
            events = torch.div(moved, CONTRAST_THRESHOLD, rounding_mode="trunc", out=level)
            reference += torch.mul(events, CONTRAST_THRESHOLD, out=spare)
            brighter += torch.clamp(events, min=0.0, out=spare)
            balance += events
        torch.sub(brighter, balance, out=balance)  # which are the darkening ones
    return counts


class SimulatedSaccades(Dataset):
    """Simulated saccades over an image set: two polarities, event counts per timestep. Not a recording."""

    constant_input = False
    simulated = True

    def __init__(self, images: Dataset) -> None:
        self.images = images
        self.name = f"{images.name}-simulated-saccades"
        self.classes = images.classes
        self.input_shape = (2, *images.input_shape[1:])
        self.licence = images.licence
        self.reference = f"simulated by exitbench from {images.reference}"
        self.mean_color = images.mean_color

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "images": self.images.identity,
            "contrast_threshold": CONTRAST_THRESHOLD,
            "intensity_offset": INTENSITY_OFFSET,
            "amplitude": AMPLITUDE,
            "substeps": SUBSTEPS,
            "corners": _CORNERS,
        }

    def split(self, name: str) -> ImageSplit:
        return self.images.split(name)

    def encode(self, images: Images, timesteps: int, frames: int | None = None) -> torch.Tensor:
        return saccade_frames(images[:], timesteps, frames)

    def milliseconds_per_step(self, timesteps: int) -> float:
        return DURATION_MS / timesteps
