"""The 8 x 8 digits that scikit-learn includes: a small data set for first tries; requires scikit-learn."""

from typing import Any

import numpy as np
import torch

from bench_core.data.base import ImageSplit
from bench_core.data.images import ImageDataset, take
from bench_core.data.splits import frozen
from bench_core.errors import DataError
from bench_core.util.digests import tensors_digest

__all__ = ["Digits"]

SHA256 = "7e7e4c6d99d0485d520e1f9eb16c097c5de88d4bc34f276d6a72738ec3a76491"


class Digits(ImageDataset):
    """1,797 grey images of 8 x 8 pixels, values 0 to 16; 1,197 train, 240 calibration, 360 test (not official)."""

    name = "digits"
    classes = 10
    input_shape = (1, 8, 8)
    licence = "CC BY 4.0 (UCI), shipped with scikit-learn under BSD-3-Clause"
    reference = "Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998"
    brightest = 16.0
    mean, deviation = (0.3052,), (0.3759,)
    cuts = ("digits-calibration", "digits-test")
    content = {"sha256": SHA256}

    def read_split(self, name: str) -> ImageSplit:
        """Return the split ``name``. Raises DataError if scikit-learn is missing or its copy differs."""
        images, labels = _load()
        everything = torch.arange(len(labels))
        parts = {"calibration": frozen("digits-calibration"), "test": frozen("digits-test")}
        parts["train"] = everything[~torch.isin(everything, torch.cat(list(parts.values())))]
        return take(name, images, labels, parts[name])


def _load() -> tuple[torch.Tensor, torch.Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("digits: they come with scikit-learn; install it (pip install scikit-learn)") from error
    found: Any = load_digits()
    images = torch.from_numpy(np.asarray(found.images).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(np.asarray(found.target).astype(np.int64))
    digest = tensors_digest({"images": images, "labels": labels})
    if digest != SHA256:
        raise DataError(
            f"digits: scikit-learn's copy is another (sha256 {digest[:12]}…, expected {SHA256[:12]}…); install 1.9"
        )
    return images, labels
