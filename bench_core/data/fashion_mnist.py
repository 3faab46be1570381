"""Fashion-MNIST: the embedded test and calibration splits, and the training split from a folder.

The package contains the complete test split (10,000) and a calibration split of 5,000 cut from the training images. The
other 55,000 are needed only for training and come from a folder with the four original IDX files, plain or ``.gz``: the
data folder (``bench_core.data.folders``), or the folder of Debian's package ``dataset-fashion-mnist``.

``python -m bench_core.data.fashion_mnist FOLDER`` created the embedded files from such a folder.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from bench_core.data.base import SPLITS, Dataset, Images, ImageSplit
from bench_core.data.folders import data_folder
from bench_core.data.idx import read_idx, write_idx
from bench_core.data.splits import stratified_cut
from bench_core.errors import DataError
from bench_core.util.digests import file_digest

__all__ = ["FashionMNIST", "embed"]

EMBEDDED = Path(__file__).parent.parent / "zoo" / "data" / "fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CALIBRATION_SIZE = 5_000
MANIFEST_SHA256 = "47c3c4e37c8de9a35c6fc53c5e1f13ac946c3351c06a63d2cb2b596170df46cb"
MEAN, STANDARD_DEVIATION = 0.2860, 0.3530

# md5 of the uncompressed files, which is the same everywhere; the .gz files of different sources differ.
RAW_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}


class FashionMNIST(Dataset):
    """28 x 28 grey images of ten kinds of clothing (Xiao, Rasul and Vollgraf, arXiv 1708.07747), direct coding."""

    name = "fashion-mnist"
    classes = 10
    input_shape = (1, 28, 28)
    constant_input = True
    licence = "MIT"
    reference = "Xiao, Rasul and Vollgraf, arXiv 1708.07747"

    @property
    def identity(self) -> dict[str, Any]:
        """Return the name, the md5 of the original files, and the calibration cut."""
        return {"name": self.name, "md5": RAW_MD5, "calibration": CALIBRATION_SIZE, "cut": 1}

    def split(self, name: str) -> ImageSplit:
        """Return the split ``name``. Raises DataError if its files are missing or altered."""
        if name == "train":
            return _training_split()
        if name in SPLITS:
            return _embedded_split(name)
        raise self.refuse_split(name)

    def encode(self, images: Images, timesteps: int, frames: int | None = None) -> torch.Tensor:
        """Return normalised pixels, float32 [B, 1, 28, 28]; every timestep sees the same frame."""
        del timesteps, frames
        return (images[:].float() / 255.0 - MEAN) / STANDARD_DEVIATION


def _embedded_split(name: str) -> ImageSplit:
    _check(EMBEDDED / "manifest.json", MANIFEST_SHA256)
    manifest = json.loads((EMBEDDED / "manifest.json").read_text(encoding="utf-8"))
    for file, expected in manifest["sha256"].items():
        if file.startswith(name):
            _check(EMBEDDED / file, expected)
    labels = read_idx(EMBEDDED / f"{name}-labels.gz").to(torch.int64)
    ids = torch.tensor(manifest["calibration_ids"]) if name == "calibration" else torch.arange(len(labels))
    return ImageSplit(name, read_idx(EMBEDDED / f"{name}-images.gz").unsqueeze(1), labels, ids)


def _check(path: Path, expected: str) -> None:
    try:
        found = file_digest(path)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); install exitbench again") from error
    if found != expected:
        raise DataError(f"{path}: altered (sha256 {found[:12]}…, expected {expected[:12]}…); install exitbench again")


def _training_split() -> ImageSplit:
    folder = _source_folder()
    images, labels = (_read_checked(folder, f"train-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    kept, _ = stratified_cut(labels, CALIBRATION_SIZE)
    return ImageSplit("train", images[kept].unsqueeze(1), labels[kept].to(torch.int64), kept)


def _source_folder() -> Path:
    for place in (data_folder("fashion-mnist"), DEBIAN_FOLDER):
        if any((place / f"train-images-idx3-ubyte{end}").exists() for end in ("", ".gz")):
            return place
    raise DataError(
        "fashion-mnist: the training images are not on this machine; run `exitbench data fetch fashion-mnist`, install "
        "Debian's package dataset-fashion-mnist, or put the four original IDX files into $EXITBENCH_DATA/fashion-mnist"
    )


def _read_checked(folder: Path, name: str) -> torch.Tensor:
    path = next((p for end in ("", ".gz") if (p := folder / f"{name}{end}").exists()), folder / f"{name}.gz")
    values = read_idx(path)
    header = bytes([0, 0, 8, values.dim()]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    found = hashlib.md5(header + values.numpy().tobytes(), usedforsecurity=False).hexdigest()
    if found != RAW_MD5[name]:
        raise DataError(f"{path}: not the original {name} (md5 {found}, expected {RAW_MD5[name]}); fetch it again")
    return values


def embed(source: Path, destination: Path = EMBEDDED) -> None:
    """Write the embedded splits and their manifest from a folder with the four original files."""
    destination.mkdir(parents=True, exist_ok=True)
    train_images, train_labels = (_read_checked(source, f"train-{k}-ubyte") for k in ("images-idx3", "labels-idx1"))
    test_images, test_labels = (_read_checked(source, f"t10k-{k}-ubyte") for k in ("images-idx3", "labels-idx1"))
    _, cut = stratified_cut(train_labels, CALIBRATION_SIZE)
    files = {
        "calibration-images.gz": train_images[cut],
        "calibration-labels.gz": train_labels[cut],
        "test-images.gz": test_images,
        "test-labels.gz": test_labels,
    }
    for name, values in files.items():
        write_idx(destination / name, values)
    manifest = {
        "source": "Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist",
        "licence": "MIT, Copyright 2017 Zalando SE",
        "sha256": {name: file_digest(destination / name) for name in files},
        "calibration_ids": cut.tolist(),
    }
    (destination / "manifest.json").write_text(json.dumps(manifest) + "\n", encoding="utf-8")


if __name__ == "__main__":
    embed(Path(sys.argv[1]))
