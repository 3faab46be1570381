"""MNIST: handwritten digits, from the four original IDX files."""

from typing import ClassVar

import torch

from bench_core.data.base import ImageSplit
from bench_core.data.checked_files import read_checked
from bench_core.data.folders import data_folder
from bench_core.data.idx import parse_idx
from bench_core.data.images import ImageDataset, take
from bench_core.data.splits import frozen

__all__ = ["MNIST"]

TRAIN_SAMPLES = 60_000


class MNIST(ImageDataset):
    """28 x 28 grey images of digits; 55,000 for training, 5,000 cut from them for calibration, 10,000 for testing."""

    name = "mnist"
    classes = 10
    input_shape = (1, 28, 28)
    licence = "CC BY-SA 3.0"
    reference = "LeCun, Bottou, Bengio and Haffner, Proc. IEEE 86(11), 1998"
    mean, deviation = (0.1307,), (0.3081,)
    cuts = ("mnist-calibration",)
    SHA256: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    }
    content = {"sha256": SHA256}

    def read_split(self, name: str) -> ImageSplit:
        """Return the split ``name``, read from the checked IDX files."""
        part = "t10k" if name == "test" else "train"
        images, labels = self._read(f"{part}-images-idx3-ubyte"), self._read(f"{part}-labels-idx1-ubyte")
        return take(name, images.unsqueeze(1), labels.to(torch.int64), self._positions(name, len(labels)))

    def _positions(self, name: str, samples: int) -> torch.Tensor:
        everything = torch.arange(samples)
        if name == "test":
            return everything
        cut = torch.isin(everything, frozen("mnist-calibration"))
        return everything[cut if name == "calibration" else ~cut]

    def _read(self, file: str) -> torch.Tensor:
        path = data_folder(self.name) / file
        return parse_idx(read_checked(path, f"sha256:{self.SHA256[file]}", self.name), path)
