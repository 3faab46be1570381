"""Cutout, AutoAugment and augmented frames of events: compared with Pillow, seeded, off by default."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from bench_core.errors import UsageError
from bench_core.store.local import Store
from bench_core.training.augmentation import augment, augment_frames
from bench_core.training.autoaugment import CIFAR_POLICY, Operation, apply_operation, autoaugment_cifar
from bench_core.training.loop import train_network
from bench_core.training.recipe import Recipe
from tests.helpers.tiny_plugin import TinyConv, TinyEvents


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=30, channels=3, side=32):
    found = torch.randint(0, 256, (count, channels, side, side), generator=seeded(), dtype=torch.uint8)
    found[: count // 2] = (found[: count // 2].float() * 0.4 + 30).to(torch.uint8)  # poor in contrast
    found[3] = 77
    return found


PILLOW = {
    "autocontrast": lambda picture, _share, _sign: ImageOps.autocontrast(picture),
    "equalize": lambda picture, _share, _sign: ImageOps.equalize(picture),
    "invert": lambda picture, _share, _sign: ImageOps.invert(picture),
    "solarize": lambda picture, share, _sign: ImageOps.solarize(picture, 255 * (1 - share)),
    "posterize": lambda picture, share, _sign: ImageOps.posterize(picture, 8 - round(share * 4)),
    "brightness": lambda picture, share, sign: ImageEnhance.Brightness(picture).enhance(1 + sign * share * 0.9),
    "color": lambda picture, share, sign: ImageEnhance.Color(picture).enhance(1 + sign * share * 0.9),
    "contrast": lambda picture, share, sign: ImageEnhance.Contrast(picture).enhance(1 + sign * share * 0.9),
    "sharpness": lambda picture, share, sign: ImageEnhance.Sharpness(picture).enhance(1 + sign * share * 0.9),
    "rotate": lambda picture, share, sign: picture.rotate(sign * share * 30, fillcolor=(128,) * 3),
    "shear-x": lambda picture, share, sign: moved(picture, 1, sign * share * 0.3, -sign * share * 4.8, 0, 1, 0),
    "shear-y": lambda picture, share, sign: moved(picture, 1, 0, 0, sign * share * 0.3, 1, -sign * share * 4.8),
    "translate-x": lambda picture, share, sign: moved(picture, 1, 0, sign * share * 150 / 331 * 32, 0, 1, 0),
    "translate-y": lambda picture, share, sign: moved(picture, 1, 0, 0, 0, 1, sign * share * 150 / 331 * 32),
}
ROUNDED_ELSEWHERE = ("rotate", "shear-x", "shear-y")  # Pillow computes places in fixed point


def moved(picture, *matrix):
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, fillcolor=(128,) * 3)


@pytest.mark.parametrize("name", PILLOW)
def test_an_operation_is_pillows(name):
    level, sign = torch.arange(30) % 10, torch.arange(30) % 3 % 2 * 2 - 1
    found = apply_operation(name, images(), level, sign)
    assert (found.shape, found.dtype) == (images().shape, torch.uint8)
    differing = 0.0
    for place, image in enumerate(images()):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = np.array(PILLOW[name](picture, int(level[place]) / 9, int(sign[place]))).transpose(2, 0, 1)
        differing += (found[place].numpy() != expected).mean() / len(images())
    assert differing <= (0.03 if name in ROUNDED_ELSEWHERE else 0.0)


def test_the_policy_has_25_pairs_of_known_operations():
    assert len(CIFAR_POLICY) == 25
    for pair in CIFAR_POLICY:
        assert len(pair) == 2
        for operation in pair:
            assert operation.name in PILLOW
            assert 0 <= operation.probability <= 1
            assert 0 <= operation.level <= 9
    assert CIFAR_POLICY[0] == (Operation("invert", 0.1, 7), Operation("contrast", 0.2, 6))


@pytest.mark.parametrize("channels", [1, 3])
def test_autoaugment_is_decided_by_the_generator_and_changes_most_images(channels):
    batch = images(200, channels)
    before = batch.clone()
    one, two = autoaugment_cifar(batch, seeded(7)), autoaugment_cifar(batch, seeded(7))
    assert torch.equal(one, two)
    assert torch.equal(batch, before)
    assert (one.shape, one.dtype) == (batch.shape, torch.uint8)
    assert not torch.equal(one, autoaugment_cifar(batch, seeded(8)))
    assert 0.5 < (one != batch).flatten(1).any(1).float().mean() < 1.0


def test_autoaugment_of_one_image_does_not_depend_on_the_others():
    batch = images(50)
    other = batch.flip(0).clone()
    other[7] = batch[7]
    assert torch.equal(autoaugment_cifar(batch, seeded(1))[7], autoaugment_cifar(other, seeded(1))[7])


@pytest.mark.parametrize("batch", [torch.zeros(2, 3, 8, 8), torch.zeros(2, 2, 8, 8, dtype=torch.uint8)])
def test_autoaugment_of_anything_but_images_is_refused(batch):
    with pytest.raises(ValueError, match="grey or RGB"):
        autoaugment_cifar(batch, seeded())


@pytest.mark.parametrize("side", [1, 2, 5, 16, 128])
def test_cutout_erases_one_square_per_image(side):
    batch = images(100) | 1
    found = augment(batch, seeded(), shift=0, flip=False, cutout=side, fill=(2, 4, 6))
    gone = (found != batch).all(1)
    assert torch.equal(gone[:, None].expand_as(found) & (found != batch), found != batch)
    for place in range(100):
        rows, columns = gone[place].any(1).nonzero().flatten(), gone[place].any(0).nonzero().flatten()
        assert gone[place].sum() == len(rows) * len(columns) >= min(side, 32) ** 2 // 4
        assert len(rows) <= side
        assert rows[-1] - rows[0] + 1 == len(rows)
        assert len(rows) == side or rows[0] == 0 or rows[-1] == 31
        assert found[place][:, gone[place]].unique(dim=1).flatten().tolist() == [2, 4, 6]


def test_new_augmentation_leaves_the_old_as_it_was():
    plain = augment(images(), seeded(3), shift=2, flip=True)
    erased = augment(images(), seeded(3), shift=2, flip=True, cutout=4, fill=(128,))
    assert torch.equal(torch.where(erased == 128, plain, erased), plain)


def test_all_frames_of_a_sample_are_changed_alike():
    frames = images(4, 2, 8)[:, None].expand(-1, 5, -1, -1, -1).transpose(0, 1).float()
    found = augment_frames(frames, seeded(1), shift=2, flip=True, cutout=3)
    assert found.shape == frames.shape
    assert torch.equal(found, found[:1].expand_as(found))
    expected = augment(frames[0], seeded(1), shift=2, flip=True, cutout=3)
    assert torch.equal(found[0], expected)


def test_recipes_without_the_new_fields_keep_their_identity():
    plain = Recipe(epochs=1)
    assert {"cutout", "autoaugment"} & plain.identity.keys() == set()
    assert Recipe(epochs=1, cutout=8).identity == {**plain.identity, "cutout": 8}
    assert Recipe(epochs=1, precision="bfloat16").identity == {**plain.identity, "precision": "bfloat16"}
    assert Recipe(epochs=1, autoaugment=True).identity == {**plain.identity, "autoaugment": True}


class Recorded(TinyEvents):
    recorded = True


def train(dataset, tmp_path, **fields):
    recipe = Recipe(epochs=1, batch_size=200, shift=1, flip=True, **fields)
    network = TinyConv().spiking(dataset.input_shape, dataset.classes, constant_input=False)
    store = Store(tmp_path, zoo=None)
    split = dataset.split("train")
    return train_network(network, dataset, split, timesteps=2, recipe=recipe, seed=0, store=store, key="k", title="t")


def test_recordings_are_augmented_as_frames(tmp_path, monkeypatch):
    seen = []
    dataset = Recorded()
    monkeypatch.setattr(dataset, "encode", lambda x, *_: seen.append(x) or TinyEvents.encode(dataset, x, 2))
    train(dataset, tmp_path, cutout=2)
    raw = {image.numpy().tobytes() for image in dataset.split("train").images}
    assert all(image.numpy().tobytes() in raw for batch in seen for image in batch)


def test_autoaugment_of_recordings_is_refused(tmp_path):
    with pytest.raises(UsageError, match="autoaugment"):
        train(Recorded(), tmp_path, autoaugment=True)
