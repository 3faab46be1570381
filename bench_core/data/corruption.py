"""Corrupted test data: noise, blur and contrast on images, dropped events on frames, five severities each.

The three on images are those of CIFAR-10-C (Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations, ICLR 2019; strengths from the authors' ``make_cifar_c.py``), which were made for small
images and are in units of the brightest value and of pixels, so that they apply to grey images too. Dropped events are
this project's own: each event is lost with the same probability, independently of the others.

The corruption of a sample depends on its id alone, never on order or batch. The random numbers are the same for every
severity: stronger noise is the same noise with a larger amplitude, and a lost event stays lost.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.special import ndtri

from bench_core.data.base import Dataset, Images, ImageSplit, LazyImages
from bench_core.errors import DataError
from bench_core.util.digests import json_digest
from bench_core.util.stable_random import hash_order, uniform

__all__ = ["CORRUPTIONS", "CorruptedTest", "applies", "corrupt_images", "drop_events", "subsample"]

CORRUPTIONS: Final[dict[str, tuple[float, ...]]] = {  # strength at severity 1 to 5
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation, as a share of the brightest value
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation of the Gaussian, in pixels
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # remaining share of the distance to the image's mean
    "drop": (0.1, 0.2, 0.3, 0.4, 0.5),  # probability that an event is lost
}
VERSION = 1  # part of the recorded name of a corrupted split: raise it when a sample would change
_SUBSAMPLE_SALT = 0x53484654
_NOISE_SALT = 0x4E4F4953
_DROP_SALT = 0x44524F50
_MOST_EVENTS = 65_536  # in one pixel and frame; keeps the hash keys of different events distinct


def applies(corruption: str, dataset: Dataset) -> bool:
    """Return whether a corruption applies: ``drop`` to events, the others to all data that are not recordings."""
    return not dataset.constant_input if corruption == "drop" else not dataset.recorded


def subsample(sample_ids: torch.Tensor, samples: int) -> torch.Tensor:
    """Return positions of ``samples`` of the samples [N], or of all if there are fewer: chosen by hash, ascending."""
    order = torch.from_numpy(hash_order(sample_ids, _SUBSAMPLE_SALT).argsort())
    return order[:samples].sort().values


def corrupt_images(
    images: torch.Tensor, sample_ids: torch.Tensor, corruption: str, severity: int, brightest: float = 255.0
) -> torch.Tensor:
    """Return images under ``noise``, ``blur`` or ``contrast``.

    Args:
        images: uint8 [B, C, H, W].
        sample_ids: int64 [B]; noise depends on them.
        corruption: ``noise``, ``blur`` or ``contrast``.
        severity: 1 to 5.
        brightest: raw value that corresponds to 1.

    Returns:
        uint8 [B, C, H, W], rounded, from 0 to ``brightest``.
    """
    strength = CORRUPTIONS[corruption][severity - 1]
    values = images.numpy().astype(np.float64) / brightest
    if corruption == "noise":
        values = values + strength * ndtri(_uniform_each(sample_ids, values[0].size).numpy()).reshape(values.shape)
    elif corruption == "blur":
        values = gaussian_filter(values, (0, 0, strength, strength), mode="nearest", truncate=4.0)
    else:
        means = values.mean(axis=(2, 3), keepdims=True)
        values = (values - means) * strength + means
    return torch.from_numpy(np.rint(values.clip(0.0, 1.0) * brightest).astype(np.uint8))


def _uniform_each(sample_ids: torch.Tensor, size: int) -> torch.Tensor:
    """Return a number in [0, 1) for each of ``size`` places of each sample, float64 [B, size]."""
    places = sample_ids[:, None] * size + torch.arange(size)
    return uniform(places.flatten(), _NOISE_SALT).reshape(places.shape)


def drop_events(frames: torch.Tensor, sample_ids: torch.Tensor, severity: int) -> torch.Tensor:
    """Return event counts after each event was independently kept or lost.

    Args:
        frames: counts [B, T, C, H, W], whole numbers.
        sample_ids: int64 [B].
        severity: 1 to 5.

    Raises:
        DataError: the frames are not counts.
    """
    counts = frames.to(torch.int64)
    if not torch.equal(counts.to(frames.dtype), frames) or int(counts.min()) < 0 or int(counts.max()) >= _MOST_EVENTS:
        raise DataError("events can be dropped from frames of event counts only; these hold other values")
    flat = counts.flatten(1)
    sample, place = torch.nonzero(flat, as_tuple=True)
    held = flat[sample, place]
    pixel = torch.repeat_interleave(torch.arange(len(held)), held)  # pixel of each event
    number = torch.arange(len(pixel)) - (held.cumsum(0) - held)[pixel]  # index of each event within its pixel
    event = (sample_ids[sample] * flat.shape[1] + place)[pixel] * _MOST_EVENTS + number
    lost = uniform(event, _DROP_SALT) < CORRUPTIONS["drop"][severity - 1]
    kept = flat.clone()
    kept[sample, place] = held - torch.bincount(pixel[lost], minlength=len(held))
    return kept.reshape(frames.shape).to(frames.dtype)


class _Changed(LazyImages):
    """Selected samples of a split, corrupted when they are read."""

    def __init__(
        self,
        split: ImageSplit,
        kept: torch.Tensor,
        change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        shape: tuple[int, ...],
        what: str,
    ) -> None:
        self._images, self._sample_ids = split.images, split.sample_ids  # labels are not stored
        self._kept, self._change, self._shape = kept, change, shape
        self._digest = json_digest({"from": split.digest, "corrupted": what})

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self._kept), *self._shape))

    @property
    def digest(self) -> str:
        return self._digest

    def read(self, positions: list[int]) -> torch.Tensor:
        where = self._kept[torch.tensor(positions, dtype=torch.int64)]
        return self._change(self._images[where], self._sample_ids[where])


class CorruptedTest(Dataset):
    """A data set whose ``corrupted_split`` is part of the test split under one corruption.

    Training, conversion and calibration use the unmodified data set, and its identity stays the same: recordings under
    corruption are distinguished by the name of the split.

    Args:
        dataset: of images, simulated events or recordings.
        corruption: one of ``CORRUPTIONS`` that applies to it.
        severity: 1 to 5.
        samples: number of test samples, chosen by hash; all if there are fewer.
        timesteps: T, the number of frames that events are binned into before they are dropped.
    """

    def __init__(self, dataset: Dataset, corruption: str, severity: int, samples: int, timesteps: int) -> None:
        """Wrap a data set; see the class."""
        self._dataset, self._corruption, self._severity = dataset, corruption, severity
        self._samples, self._timesteps = samples, timesteps
        self.corrupted_split = f"test {corruption}-{severity} {samples} v{VERSION}"
        self.name, self.classes, self.input_shape = dataset.name, dataset.classes, dataset.input_shape
        self.constant_input, self.simulated, self.recorded = dataset.constant_input, dataset.simulated, dataset.recorded
        self.licence, self.reference = dataset.licence, dataset.reference
        self.mean_color, self.brightest = dataset.mean_color, dataset.brightest

    @property
    def identity(self) -> dict[str, Any]:
        """Return the identity of the unmodified data set."""
        return self._dataset.identity

    def split(self, name: str) -> ImageSplit:
        """Return the corrupted split, or a split of the unmodified data set."""
        if name != self.corrupted_split:
            return self._dataset.split(name)
        test = self._dataset.split("test")
        kept = subsample(test.sample_ids, self._samples)
        if self._corruption == "drop":
            channels, height, width = self.input_shape
            images = _Changed(test, kept, self._dropped, (self._timesteps * channels, height, width), name)
        else:
            images = _Changed(test, kept, self._corrupted, tuple(test.images.shape[1:]), name)
        return ImageSplit(name, images, test.labels[kept], test.sample_ids[kept])

    def _corrupted(self, images: torch.Tensor, sample_ids: torch.Tensor) -> torch.Tensor:
        return corrupt_images(images, sample_ids, self._corruption, self._severity, self.brightest)

    def _dropped(self, images: torch.Tensor, sample_ids: torch.Tensor) -> torch.Tensor:
        """Return frames [B, T C, H, W] with dropped events; only encoded input has events."""
        frames = self._dataset.encode(images, self._timesteps).transpose(0, 1)
        return drop_events(frames, sample_ids, self._severity).flatten(1, 2)

    def encode(self, images: Images, timesteps: int, frames: int | None = None) -> torch.Tensor:
        """Encode samples as the data set does; frames with dropped events are already encoded."""
        if self._corruption != "drop":
            return self._dataset.encode(images[:], timesteps, frames)
        channels = self.input_shape[0]
        dropped: torch.Tensor = images[:].unflatten(1, (timesteps, channels)).transpose(0, 1)
        return dropped if frames is None else dropped[:frames]

    def milliseconds_per_step(self, timesteps: int) -> float | None:
        """Return the duration of a timestep, as for the unmodified data set."""
        return self._dataset.milliseconds_per_step(timesteps)
