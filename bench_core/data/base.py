"""The data set interface: named splits of raw samples, and their encoding as network input."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from bench_core.errors import DataError
from bench_core.util.digests import json_digest, tensor_digest, tensors_digest

__all__ = ["SPLITS", "Dataset", "ImageSplit", "Images", "LazyImages"]

SPLITS = ("train", "calibration", "test")


class LazyImages(ABC):
    """Samples that are read when they are indexed, for data sets that don't fit into memory.

    Index it like the first dimension of a tensor, by a number, a slice or a tensor of positions; ``[:]`` reads all.
    """

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Return the shape of the tensor that ``[:]`` gives, (N, C, H, W)."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """Return a sha256 that identifies the samples, usually from names and sizes of the files, not every byte."""

    @abstractmethod
    def read(self, positions: list[int]) -> torch.Tensor:
        """Return the samples at ``positions``, uint8 [B, C, H, W]. Raises DataError that names an unreadable file."""

    def __len__(self) -> int:
        """Return N, the number of samples."""
        return self.shape[0]

    def __getitem__(self, index: int | slice | torch.Tensor) -> torch.Tensor:
        """Read one sample by number, or several by slice or tensor of positions."""
        positions = torch.arange(len(self))[index]
        found = self.read(positions.reshape(-1).tolist())
        return found if positions.dim() else found[0]


Images = torch.Tensor | LazyImages


@dataclass(frozen=True)
class ImageSplit:
    """The samples of one split.

    Attributes:
        name: ``train``, ``calibration`` or ``test``.
        images: uint8 [N, C, H, W], in memory or read when indexed.
        labels: int64 [N], class index.
        sample_ids: int64 [N], index in the data set's own order, unique.
    """

    name: str
    images: Images = field(repr=False)
    labels: torch.Tensor = field(repr=False)
    sample_ids: torch.Tensor = field(repr=False)

    def __len__(self) -> int:
        """Return N, the number of samples."""
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of images (or their substitute, see ``LazyImages.digest``), labels and ids."""
        if isinstance(self.images, LazyImages):
            parts = {"labels": tensor_digest(self.labels), "sample_ids": tensor_digest(self.sample_ids)}
            return json_digest({"images": self.images.digest, **parts})
        return tensors_digest({"images": self.images, "labels": self.labels, "sample_ids": self.sample_ids})


class Dataset(ABC):
    """Base of every data set that ``bench_datasets`` returns.

    Attributes:
        name: as written in suites.
        classes: number of classes K.
        input_shape: (C, H, W) of one frame of network input.
        constant_input: True if every timestep sees the same frame (direct coding), so that the network's first layer is
            evaluated once; False if each timestep has its own frame (events).
        simulated: True if the events were computed from images and never recorded by a sensor.
        recorded: True if samples are recordings of an event camera, which only ``encode`` turns into frames.
        licence, reference: of the data.
        mean_color: raw value per channel that means "nothing to see"; fills what cutout erases.
        brightest: raw value of the brightest pixel, by which corruptions are scaled.
    """

    name: str
    classes: int
    input_shape: tuple[int, int, int]
    constant_input: bool
    simulated: bool = False
    recorded: bool = False
    licence: str
    reference: str
    mean_color: tuple[int, ...] = (0,)
    brightest: float = 255.0

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return the identity of the data, as JSON: file digests, the cut of the splits, parameters of a simulation.

        It is part of every artifact's key, so it must change whenever a sample would.
        """

    @abstractmethod
    def split(self, name: str) -> ImageSplit:
        """Return the split called ``name``. Raises DataError if its files are missing or altered."""

    @abstractmethod
    def encode(self, images: Images, timesteps: int, frames: int | None = None) -> torch.Tensor:
        """Encode raw samples as network input.

        Args:
            images: uint8 [B, C, H, W], as in a split; lazy ones are read whole.
            timesteps: T.
            frames: number of the T frames to return, from the first; default all. Constant input has only one.

        Returns:
            float32 [B, C, H, W] if the input is constant, else [frames, B, C, H, W].
        """

    def frames(self, split: ImageSplit, timesteps: int) -> Callable[[torch.Tensor, int], torch.Tensor]:
        """Return a function that reads network input: (positions [B], frames F) to float32 [B, F, C, H, W]."""
        images = split.images  # not the split, which would give access to labels

        def read(positions: torch.Tensor, frames: int) -> torch.Tensor:
            encoded = self.encode(images[positions], timesteps, frames)
            return encoded.unsqueeze(1) if self.constant_input else encoded.transpose(0, 1)

        return read

    def milliseconds_per_step(self, timesteps: int) -> float | None:
        """Return the duration of a timestep in the recording, or None if time is not real (constant input)."""
        del timesteps
        return None

    def refuse_split(self, name: str) -> DataError:
        """Return the error to raise if ``name`` is not a split."""
        return DataError(f"{self.name} has no split {name!r}; it has {', '.join(SPLITS)}")
