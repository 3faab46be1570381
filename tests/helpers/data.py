"""What the tests of the data sets' readers share."""

import hashlib

import pytest
import torch

from bench_core.data import fashion_mnist
from bench_core.data.idx import write_idx
from bench_core.errors import DataError


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    """Nothing but a test's own files is read. Test files import this fixture, which is enough to switch it on."""
    monkeypatch.delenv("EXITBENCH_DATA", raising=False)


def write_training_images(folder, monkeypatch):
    """Write a data folder with files like Fashion-MNIST's training images, and let them pass for the original.

    There are 60,000 images of 28 x 28, whose first two pixels are their number, and ten classes in turn.
    """
    numbers = torch.arange(60_000)
    images = torch.zeros(60_000, 28, 28, dtype=torch.uint8)
    images[:, 0, 0], images[:, 0, 1] = numbers // 256, numbers % 256
    place = folder / "fashion-mnist"
    place.mkdir(parents=True)
    for name, values in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", (numbers % 10).byte())):
        write_idx(place / name, values)
        digest = hashlib.md5((place / name).read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setitem(fashion_mnist.RAW_MD5, name, digest)
    monkeypatch.setenv("EXITBENCH_DATA", str(folder))


def refused(read, *words):
    """Assert that ``read`` is refused in one line that holds the words."""
    with pytest.raises(DataError) as error:
        read()
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
