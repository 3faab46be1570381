"""A plugin in a single file: two tiny data sets, computed here, and a tiny network, so that a suite runs in seconds."""

from functools import cache

import numpy as np
import torch
from torch import nn

from bench_core import Dataset, ImageSplit, Model, hookimpl
from bench_core.errors import DataError
from bench_core.snn import AveragePool, Flatten, Synapse

SIDE = 8
SPLITS = {"train": (0, 400), "calibration": (400, 200), "test": (600, 300)}  # first sample id, samples


@cache
def shapes(first, count):
    """Bars, columns, diagonals and rings at random places, some hardly brighter than the noise around them."""
    images = np.empty((count, 1, SIDE, SIDE), np.uint8)
    labels = np.arange(first, first + count) % 4
    for index, label in enumerate(labels):
        rng = np.random.default_rng(first + index)
        image = rng.integers(0, 130, (SIDE, SIDE))
        row, column = rng.integers(0, SIDE - 4, 2)
        window = image[row : row + 5, column : column + 5]
        shape = np.zeros((5, 5), bool)
        if label == 0:
            shape[2] = True
        elif label == 1:
            shape[:, 2] = True
        elif label == 2:
            shape[np.arange(5), np.arange(5)] = True
        else:
            shape[[0, -1], 1:-1] = shape[1:-1, [0, -1]] = True
        window[shape] = rng.integers(90, 256)
        images[index, 0] = image
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


class TinyShapes(Dataset):
    """1 x 8 x 8 images of four shapes, direct coding."""

    name = "tiny-shapes"
    classes = 4
    input_shape = (1, SIDE, SIDE)
    constant_input = True
    licence = "Apache-2.0"
    reference = "computed by the tests"

    @property
    def identity(self):
        return {"name": self.name, "version": 1}

    def split(self, name):
        if name not in SPLITS:
            raise DataError(f"{self.name} has no split {name!r}; it has {', '.join(SPLITS)}")
        first, count = SPLITS[name]
        images, labels = shapes(first, count)
        return ImageSplit(name, images, labels, torch.arange(first, first + count))

    def encode(self, images, timesteps, frames=None):
        return images.float() / 128.0 - 0.5


class TinyEvents(TinyShapes):
    """The same images as events: what crosses a brightness that changes from step to step, upwards and downwards."""

    name = "tiny-events"
    input_shape = (2, SIDE, SIDE)
    constant_input = False
    simulated = True

    def encode(self, images, timesteps, frames=None):
        values = images.squeeze(1)
        levels = [60 + 40 * (t % 4) for t in range(timesteps if frames is None else frames)]
        above = torch.stack([values >= level for level in levels])
        before = torch.cat([torch.zeros_like(above[:1]), above[:-1]])
        return torch.stack([above, before & ~above], dim=2).float()

    def milliseconds_per_step(self, timesteps):
        return 10.0


class TinyConv(Model):
    """4 - pool - 8 - FC, 3 x 3 convolutions."""

    name = "tiny-conv"
    reference = "the tests"

    def layers(self, input_shape, classes, parts):
        channels, height, width = input_shape
        return [
            *parts.synapse(nn.Conv2d(channels, 4, 3, padding=1, bias=False)),
            parts.node(),
            AveragePool(2),
            *parts.synapse(nn.Conv2d(4, 8, 3, padding=1, bias=False)),
            parts.node(),
            Flatten(),
            Synapse(nn.Linear(8 * (height // 2) * (width // 2), classes)),
        ]


@hookimpl
def bench_datasets():
    return [TinyShapes(), TinyEvents()]


@hookimpl
def bench_models():
    return [TinyConv()]
