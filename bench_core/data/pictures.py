"""Picture files: decoded one by one on demand, from one folder per class."""

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench_core.data.base import LazyImages
from bench_core.errors import DataError
from bench_core.util.digests import json_digest

__all__ = ["LazyPictures", "class_folders", "open_picture", "pictures_in"]

SUFFIXES = (".jpeg", ".jpg", ".png")
LARGEST = 100_000_000  # pixels; the largest ImageNet picture has 25 million
WORKERS = min(8, os.cpu_count() or 1)


@contextmanager
def open_picture(path: Path, *, limit: int = LARGEST) -> Iterator[Image.Image]:
    """Yield a decoded picture. Raises DataError, naming the file, if it is damaged or exceeds ``limit`` pixels."""
    with warnings.catch_warnings(), ExitStack() as opened:
        warnings.simplefilter("ignore")  # odd metadata, and Pillow's own size limit; ours is below
        try:
            picture = opened.enter_context(Image.open(path))
            pixels = picture.width * picture.height
            if pixels <= limit:
                picture.load()
        except Exception as error:  # decoders of many formats raise anything, MemoryError included
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"{path}: damaged picture ({reason:.200}); replace this file, or fetch the data set again"
            ) from error
        if pixels > limit:
            raise DataError(f"{path}: {picture.width} x {picture.height} pixels, more than {limit:,}")
        yield picture


class LazyPictures(LazyImages):
    """Picture files, brought to one size when they are indexed.

    Args:
        folder: the folder that ``paths`` are relative to.
        paths: of the pictures, in the order of the samples.
        crop: side of the square that is returned.
        resize: the shorter side is resized to this length first (bilinear), then the middle is cropped; None if all
            pictures already have the side ``crop``, and others are errors.
    """

    def __init__(self, folder: Path, paths: list[str], *, crop: int, resize: int | None = None) -> None:
        """Store the paths and sizes; see the class. No file is opened."""
        self.folder, self.paths, self.crop, self.resize = folder, paths, crop, resize

    @property
    def shape(self) -> torch.Size:
        """Return (N, 3, crop, crop)."""
        return torch.Size([len(self.paths), 3, self.crop, self.crop])

    @property
    def digest(self) -> str:
        """Return the sha256 of the names and sizes of all files, and of the crop and resize parameters."""
        sizes = [(path, _size(self.folder / path)) for path in self.paths]
        return json_digest({"files": sizes, "crop": self.crop, "resize": self.resize})

    def read(self, positions: list[int]) -> torch.Tensor:
        """Return uint8 [B, 3, crop, crop]; grey pictures become RGB. Raises DataError that names a damaged file."""
        if not positions:
            return torch.empty(0, *self.shape[1:], dtype=torch.uint8)
        with ThreadPoolExecutor(WORKERS) as pool:
            return torch.stack(list(pool.map(self._read, positions)))

    def _read(self, position: int) -> torch.Tensor:
        path = self.folder / self.paths[position]
        with open_picture(path) as picture:
            rgb = picture.convert("RGB")
        if self.resize is None and rgb.size != (self.crop, self.crop):
            raise DataError(f"{path}: {rgb.width} x {rgb.height} pixels, expected {self.crop} x {self.crop}")
        if self.resize is not None:
            scale = self.resize / min(rgb.size)
            size = [max(self.crop, round(side * scale)) for side in rgb.size]
            rgb = rgb.resize((size[0], size[1]), Image.Resampling.BILINEAR)
        left, top = (rgb.width - self.crop) // 2, (rgb.height - self.crop) // 2
        seen = rgb.crop((left, top, left + self.crop, top + self.crop))
        return torch.from_numpy(np.array(seen)).permute(2, 0, 1).contiguous()


def class_folders(folder: Path, classes: int, how_to: str) -> list[str]:
    """Return the sorted names of the folders in ``folder``, the classes. Raises DataError unless ``classes`` exist."""
    try:
        found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: can't be read ({error.strerror}); {how_to}") from error
    if len(found) != classes:
        raise DataError(f"{folder}: {len(found)} folders, but there are {classes} classes; {how_to}")
    return found


def pictures_in(folder: Path, how_to: str) -> list[str]:
    """Return the sorted names of the pictures in ``folder``. Raises DataError if there are none."""
    try:
        found = sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(SUFFIXES))
    except OSError as error:
        raise DataError(f"{folder}: can't be read ({error.strerror}); {how_to}") from error
    if not found:
        raise DataError(f"{folder}: no pictures ({', '.join(SUFFIXES)}); {how_to}")
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); fetch the data set again") from error
