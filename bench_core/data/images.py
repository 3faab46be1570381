"""Base of image data sets: direct coding of normalised pixels, and the cut of the frozen calibration split."""

from abc import abstractmethod
from typing import Any

import torch

from bench_core.data.base import SPLITS, Dataset, Images, ImageSplit, LazyImages
from bench_core.data.splits import FROZEN
from bench_core.errors import DataError

__all__ = ["ImageDataset", "check_labels", "take"]


class ImageDataset(Dataset):
    """Images, with the same normalised frame at every timestep.

    Attributes:
        mean, deviation: of the training pixels per channel, as shares of the brightest value.
        cuts: names of the frozen index files in ``splits.FROZEN`` that make the splits.
        content: what else the samples depend on, JSON: digests of files, sizes that images are resized to.
    """

    constant_input = True
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    cuts: tuple[str, ...]
    content: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """Return the name, content, digests of the frozen cuts, and the normalisation."""
        frozen = {name: FROZEN[name] for name in self.cuts}
        coding = {"mean": self.mean, "deviation": self.deviation}
        return {"name": self.name, "content": self.content, "frozen": frozen, **coding}

    def split(self, name: str) -> ImageSplit:
        """Return the split ``name``. Raises DataError for an unknown name, or missing or altered files."""
        if name not in SPLITS:
            raise self.refuse_split(name)
        return self.read_split(name)

    @abstractmethod
    def read_split(self, name: str) -> ImageSplit:
        """Return the split ``name``, which is one of the three."""

    def encode(self, images: Images, timesteps: int, frames: int | None = None) -> torch.Tensor:
        """Return normalised pixels, float32 [B, C, H, W]."""
        del timesteps, frames
        values = images[:].float() / self.brightest
        mean, deviation = (values.new_tensor(v).reshape(-1, 1, 1) for v in (self.mean, self.deviation))
        return (values - mean) / deviation


def take(name: str, images: Images, labels: torch.Tensor, positions: torch.Tensor) -> ImageSplit:
    """Return the split with the samples at ``positions`` [n] of a larger set, which are also their ids."""
    if isinstance(images, LazyImages):
        raise TypeError("lazy images are cut before they are made")
    return ImageSplit(name, images[positions], labels[positions], positions)


def check_labels(place: object, labels: torch.Tensor, classes: int) -> None:
    """Raise DataError, naming the first bad record of ``place``, unless all labels [N] are in 0..classes-1."""
    wrong = torch.nonzero((labels < 0) | (labels >= classes)).flatten()
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"{place}: label {int(labels[first])} of record {first}, but there are {classes} classes; fetch it again"
        )
