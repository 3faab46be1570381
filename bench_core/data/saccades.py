"""Simulated saccades: events computed from images as if a sensor moved over them.

N-MNIST and CIFAR10-DVS were recorded by moving an event camera in front of a screen. This module computes the output of
an ideal sensor: each pixel keeps a reference level of log intensity and emits an event of the matching polarity
whenever the current level has moved by the contrast threshold. Nothing here was recorded; its data is called
*simulated* everywhere.

All arithmetic is on integers. CPUs round logarithms and fused operations differently, which would add or remove events;
integers make the events the same on every device, with any number of threads and in any batch.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from bench_core.data.base import Dataset, Images, ImageSplit

__all__ = ["SimulatedSaccades", "saccade_frames", "saccade_path"]

CONTRAST_THRESHOLD = 0.2
INTENSITY_OFFSET = 0.1
AMPLITUDE = 4  # pixels
SUBSTEPS = 4  # sensor positions per timestep
DURATION_MS = 300.0  # three saccades of 100 ms, as in N-MNIST (Orchard et al., Front. Neurosci. 9:437, 2015)
_CORNERS = ((-1, -1), (1, 0), (-1, 1), (-1, -1))

# Fixed point: positions in 1/256 pixel, intensities in 1/32 of a grey value, levels of log intensity in 1/2048 of the
# contrast threshold. All levels, and the difference of any two, fit into int16.
_LUMA = (19_595, 38_470, 7_471)  # ITU-R BT.601 in 1/65,536
_POSITION_BITS = 8
_INTENSITY_BITS = 5
_THRESHOLD_BITS = 11
_BRIGHTEST = 255 << _INTENSITY_BITS


def _positions(timesteps: int) -> list[tuple[int, int]]:
    """Return the sensor's timesteps * SUBSTEPS + 1 positions (row, column) in 1/256 pixel, rounded half up."""
    moments, scale = timesteps * SUBSTEPS, AMPLITUDE << _POSITION_BITS
    found = []
    for moment in range(moments + 1):
        side, along = divmod(3 * moment, moments)
        (row, column), (end_row, end_column) = _CORNERS[side], _CORNERS[(side + 1) % len(_CORNERS)]
        down = row * moments + along * (end_row - row)  # in 1/moments of the amplitude
        right = column * moments + along * (end_column - column)
        found.append(((2 * scale * down + moments) // (2 * moments), (2 * scale * right + moments) // (2 * moments)))
    return found


def saccade_path(timesteps: int) -> torch.Tensor:
    """Return the sensor's positions in pixels: a closed triangle, side after side.

    They are multiples of 1/256 pixel, float64 [timesteps * SUBSTEPS + 1, 2] (row, column).
    """
    return torch.tensor(_positions(timesteps), dtype=torch.float64) / (1 << _POSITION_BITS)


@cache
def _log_levels() -> torch.Tensor:
    """Return the level of log intensity of each intensity, int16 [_BRIGHTEST + 1]; 0 in the dark.

    The level of intensity I in [0, 1] is log((I + offset) / offset), in 1/2048 of the contrast threshold. Logarithms
    are sums of log((n + 1) / n) = 2 artanh(1 / (2n + 1)) in 64-bit fixed point, because those of a mathematical library
    may differ between machines in the last digit.
    """
    dark = round(INTENSITY_OFFSET * _BRIGHTEST)
    levels_per_unit = round((1 << _THRESHOLD_BITS) / CONTRAST_THRESHOLD)
    one = 1 << 64
    levels, logarithm = [], 0
    for intensity in range(dark, dark + _BRIGHTEST + 1):
        levels.append((levels_per_unit * logarithm + one // 2) // one)
        odd = 2 * intensity + 1
        logarithm += 2 * (one // odd + one // (3 * odd**3) + one // (5 * odd**5))  # the next term is below 1e-23
    return torch.tensor(levels, dtype=torch.int16, device="cpu")


def saccade_frames(images: torch.Tensor, timesteps: int, frames: int | None = None) -> torch.Tensor:
    """Count the events of each timestep, polarity and pixel; the same integers on every machine and in any batch.

    Args:
        images: uint8 [B, 1 or 3, H, W]; colours are converted to luma (ITU-R BT.601, rounded to a grey value).
        timesteps: T; the closed path is divided evenly into T parts.
        frames: number of timesteps to return, from the first; default all.

    Returns:
        float32 [frames, B, 2, H, W] of whole numbers; channel 0 counts brightening, channel 1 darkening.
    """
    batch, channels, height, width = images.shape
    device = images.device
    if channels == 3:
        red, green, blue = (weight * colour for weight, colour in zip(_LUMA, images.int().unbind(1), strict=True))
        grey = (red + green + blue + (1 << 15)) >> 16
    else:
        grey = images.int().squeeze(1)
    padded = F.pad(grey, [AMPLITUDE, AMPLITUDE + 1] * 2)
    below = padded[:, 1:] - padded[:, :-1]
    # In units of a sum over two weighted rows. The addend is half a step of intensity, so that the shift below rounds.
    padded.bitwise_left_shift_(_POSITION_BITS).add_(1 << _POSITION_BITS - _INTENSITY_BITS - 1)
    log_levels = _log_levels().to(device)

    # Memory is allocated once, because new memory would first have to be loaded into the cache. Rows have one pixel
    # more than the image: a pixel's right neighbour is then the next value in memory, and all tensors are contiguous.
    # The last column is dropped at the end.
    shape = (batch, height, width + 1)
    size = batch * height * (width + 1)
    rows = torch.zeros(size + 1, dtype=torch.int32, device=device)
    intensity = torch.empty(size, dtype=torch.int32, device=device)
    start, level, lowest, thresholds, before, brighter = torch.zeros(6, size, dtype=torch.int16, device=device)

    def see(position: tuple[int, int], seen: torch.Tensor) -> torch.Tensor:
        """Write the level of log intensity in front of the sensor to ``seen``."""
        one = 1 << _POSITION_BITS
        (top, down), (left, right) = (divmod(place + AMPLITUDE * one, one) for place in position)
        window = (slice(None), slice(top, top + height), slice(left, left + width + 1))
        if down:
            torch.add(padded[window], below[window], alpha=down, out=rows[:-1].view(shape))
        else:
            rows[:-1].view(shape).copy_(padded[window])
        torch.mul(rows[:-1], one - right, out=intensity)
        intensity.add_(rows[1:], alpha=right).bitwise_right_shift_(2 * _POSITION_BITS - _INTENSITY_BITS)
        return torch.index_select(log_levels, 0, intensity, out=seen)

    first, *path = _positions(timesteps)
    see(first, start)
    counts = torch.empty(timesteps if frames is None else frames, batch, 2, height, width, device=device)
    for number, frame in enumerate(counts):
        before.copy_(thresholds)
        brighter.zero_()
        for position in path[number * SUBSTEPS : (number + 1) * SUBSTEPS]:
            # The reference level is always a whole number of thresholds away from the start. It stays while that number
            # is between the two whole numbers around the level, and moves to the nearer of them otherwise.
            moved = see(position, level).sub_(start)
            torch.bitwise_right_shift(moved, _THRESHOLD_BITS, out=lowest)
            highest = moved.add_((1 << _THRESHOLD_BITS) - 1).bitwise_right_shift_(_THRESHOLD_BITS)
            brighter -= thresholds
            brighter += torch.maximum(thresholds, lowest, out=thresholds)
            torch.minimum(thresholds, highest, out=thresholds)
        darker = before.sub_(thresholds).add_(brighter)
        frame[:, 0] = brighter.view(shape)[:, :, :-1]
        frame[:, 1] = darker.view(shape)[:, :, :-1]
    return counts


class SimulatedSaccades(Dataset):
    """Simulated saccades over an image set: two polarities, event counts per timestep. Not a recording."""

    constant_input = False
    simulated = True

    def __init__(self, images: Dataset) -> None:
        """Simulate events over the data set ``images``."""
        self.images = images
        self.name = f"{images.name}-simulated-saccades"
        self.classes = images.classes
        self.input_shape = (2, *images.input_shape[1:])
        self.licence = images.licence
        self.reference = f"simulated by exitbench from {images.reference}"
        self.mean_color = images.mean_color

    @property
    def identity(self) -> dict[str, Any]:
        """Return the identity of the images and all parameters of the simulation."""
        return {
            "name": self.name,
            "images": self.images.identity,
            "contrast_threshold": CONTRAST_THRESHOLD,
            "intensity_offset": INTENSITY_OFFSET,
            "amplitude": AMPLITUDE,
            "substeps": SUBSTEPS,
            "corners": _CORNERS,
            "arithmetic": {
                "numbers": "integers",
                "luma": _LUMA,
                "positions_per_pixel": 1 << _POSITION_BITS,
                "intensities_per_grey_value": 1 << _INTENSITY_BITS,
                "levels_per_threshold": 1 << _THRESHOLD_BITS,
            },
        }

    def split(self, name: str) -> ImageSplit:
        """Return the split ``name`` of the images."""
        return self.images.split(name)

    def encode(self, images: Images, timesteps: int, frames: int | None = None) -> torch.Tensor:
        """Return event counts, float32 [frames, B, 2, H, W]; see ``saccade_frames``."""
        return saccade_frames(images[:], timesteps, frames)

    def milliseconds_per_step(self, timesteps: int) -> float:
        """Return the simulated duration of a timestep."""
        return DURATION_MS / timesteps
