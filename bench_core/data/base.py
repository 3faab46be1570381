"""What a data set is to this project: named splits of raw samples, and how raw samples become network input."""

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

    Indexed like the first dimension of a tensor, by a number, a slice or a tensor of positions; ``[:]`` reads all.
    """

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Of the tensor that ``[:]`` would give, (N, C, H, W)."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """sha256 of what tells these samples from others: as a rule names and sizes of the files, not every byte."""

    @abstractmethod
    def read(self, positions: list[int]) -> torch.Tensor:
        """The samples at ``positions``, uint8 [B, C, H, W]. Raises DataError that names an unreadable file."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | torch.Tensor) -> torch.Tensor:
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
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """sha256 over images (or what stands for them, see ``LazyImages.digest``), labels and ids."""
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
        constant_input: True when every timestep sees the same frame (direct coding), so that the network's first
            layer is evaluated once; False when each timestep brings its own frame (events).
        simulated: True when the events were computed from images and never recorded by a sensor.
        recorded: True when samples are recordings of an event camera, which only ``encode`` turns into frames.
        licence, reference: of the data.
        mean_color: raw value per channel that stands for "nothing to see"; fills what cutout erases.
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
        """What the data are, as JSON: file digests, the cut of the splits, parameters of a simulation. Part of every
        artifact's key, so it must change whenever a sample would."""

    @abstractmethod
    def split(self, name: str) -> ImageSplit:
        """The split called ``name``. Raises DataError when its files are missing or altered."""

    @abstractmethod
    def encode(self, images: Images, timesteps: int, frames: int | None = None) -> torch.Tensor:
        """Raw samples to network input.

        Args:
            images: uint8 [B, C, H, W], as in a split; lazy ones are read whole.
            timesteps: T.
            frames: how many of the T frames are wanted, from the first; default all. Constant input has one anyway.

        Returns:
            float32 [B, C, H, W] where the input is constant, else [frames, B, C, H, W].
        """

    def frames(self, split: ImageSplit, timesteps: int) -> Callable[[torch.Tensor, int], torch.Tensor]:
        """Network input by position in a split: (positions [B], frames F) to float32 [B, F, C, H, W]."""
        images = split.images  # not the split, through which labels could be reached

        def read(positions: torch.Tensor, frames: int) -> torch.Tensor:
            encoded = self.encode(images[positions], timesteps, frames)
            return encoded.unsqueeze(1) if self.constant_input else encoded.transpose(0, 1)

        return read

    def milliseconds_per_step(self, timesteps: int) -> float | None:
        """How long a timestep lasts in the recording, or None where time is not real (constant input)."""
        del timesteps
        return None

    def refuse_split(self, name: str) -> DataError:
        """The error to raise where ``name`` is no split."""
        return DataError(f"{self.name} has no split {name!r}; it has {', '.join(SPLITS)}")
