"""Image sets: readers of the official formats, frozen splits, lazy pictures; bad files are named and never left out."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from bench_core.data import LazyImages, splits
from bench_core.data.builtin import bench_datasets
from bench_core.data.cifar import CIFAR10, CIFAR100, parse_cifar, sheets_to_binary
from bench_core.data.digits import Digits
from bench_core.data.fetch.fetch import whereabouts
from bench_core.data.fetch.sources import SOURCES
from bench_core.data.folders import data_folder
from bench_core.data.imagenet import ImageNet, TinyImageNet
from bench_core.data.mnist import MNIST
from bench_core.data.pictures import LazyPictures, class_folders, open_picture, pictures_in
from bench_core.data.splits import FROZEN, cut_by_rank, frozen, ranks_in_class, stratified_cut
from bench_core.errors import DataError
from bench_core.util.digests import json_digest
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.data import no_data_folder, refused  # noqa: F401  # the fixture is switched on by being here

REAL = {name: whereabouts(SOURCES[name]) for name in ("cifar-10", "mnist")}  # before a test moves the home


# --- all of them -----------------------------------------------------------------------------------------------------

ALL = {dataset.name: dataset for dataset in bench_datasets()}


@pytest.mark.parametrize("dataset", ALL.values(), ids=ALL.keys())
def test_a_data_set_is_whole_without_its_files(dataset):
    assert json_digest(dataset.identity)
    assert dataset.licence
    assert dataset.reference
    assert len(dataset.input_shape) == 3
    assert dataset.simulated == ("simulated" in dataset.name) == ("simulated" in dataset.reference)
    assert dataset.constant_input == (dataset.milliseconds_per_step(4) is None)
    refused(lambda: dataset.split("validation"), "train, calibration, test")


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("digits",) and not n.startswith("fashion")])
def test_without_files_an_error_says_what_to_do(name):
    for split in ("train", "test"):
        refused(lambda split=split: ALL[name].split(split), "exitbench data fetch")


def test_identities_differ():
    assert len({json_digest(dataset.identity) for dataset in ALL.values()}) == len(ALL)


# --- frozen splits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FROZEN)
def test_a_frozen_file_is_ascending_and_its_sha256_is_checked(name, tmp_path, monkeypatch):
    numbers = frozen(name)
    assert torch.equal(numbers, numbers.unique())
    folder = shutil.copytree(splits.Path(splits.__file__).parent / "frozen", tmp_path / "frozen")
    path = folder / f"{name}.txt"
    path.write_text(path.read_text() + "7\n")
    monkeypatch.setattr(splits, "__file__", str(tmp_path / "splits.py"))
    refused(lambda: frozen(name), str(path), "altered")
    path.unlink()
    refused(lambda: frozen(name), str(path))


def test_ranks_and_recorded_cuts_come_from_the_rule():
    def ranks(samples, size):
        return stratified_cut(torch.zeros(samples, dtype=torch.int64), size)[1]

    assert torch.equal(frozen("cifar-100-calibration-ranks"), ranks(500, 50))
    assert torch.equal(frozen("tiny-imagenet-calibration-ranks"), ranks(500, 50))
    assert torch.equal(frozen("imagenet-calibration-ranks"), ranks(732, 50))
    assert torch.equal(frozen("dvs128-gesture-calibration-users"), ranks(23, 3) + 1)
    for name, labels, tested, calibrated in (
        ("n-caltech101", torch.arange(800) // 10, "test-ranks", "calibration-ranks"),
        ("cifar10-dvs", torch.arange(10_000) // 1_000, "test", "calibration"),
    ):
        sizes = {"n-caltech101": (80, 80), "cifar10-dvs": (1_000, 900)}[name]
        rest, test = stratified_cut(labels, sizes[0])
        assert torch.equal(frozen(f"{name}-{tested}"), test)
        assert torch.equal(frozen(f"{name}-{calibrated}"), rest[stratified_cut(labels[rest], sizes[1])[1]])


def test_ranks_count_within_a_class():
    labels = [2, 0, 2, 2, 1, 0, 2]
    assert ranks_in_class(torch.tensor(labels)).tolist() == [labels[:i].count(c) for i, c in enumerate(labels)]
    kept, cut = cut_by_rank(torch.tensor(labels), torch.tensor([1, 3]))
    assert (kept.tolist(), cut.tolist()) == ([0, 1, 3, 4], [2, 5, 6])


# --- CIFAR -----------------------------------------------------------------------------------------------------------


def records(images, labels):
    """A binary CIFAR file in plain Python; ``labels``: bytes before the pixels."""
    out = b""
    for image, label in zip(images, labels, strict=True):
        out += bytes(label) + bytes(image[c][y][x] for c in range(3) for y in range(32) for x in range(32))
    return out


def some_images(count):
    rng = random.Random(1)
    return [[[[rng.randrange(256) for _ in range(32)] for _ in range(32)] for _ in range(3)] for _ in range(count)]


@pytest.mark.parametrize(("labels", "fine"), [([[3], [9]], [3, 9]), ([[11, 60], [3, 99]], [60, 99])])
def test_records_are_read(tmp_path, labels, fine):
    images = some_images(2)
    raw = records(images, labels)
    found, read = parse_cifar(raw, tmp_path, label_bytes=len(labels[0]), classes=100)
    assert found.tolist() == images
    assert read.tolist() == fine


@pytest.mark.parametrize("raw", [b"", b"x", bytes(3072), bytes(3074)])
def test_part_of_a_record_is_refused(tmp_path, raw):
    refused(lambda: parse_cifar(raw, tmp_path / "b.bin", label_bytes=1, classes=10), "b.bin", "whole number of records")


def test_a_label_out_of_range_is_refused_with_its_record(tmp_path):
    raw = records(some_images(2), [[3], [10]])
    refused(lambda: parse_cifar(raw, tmp_path / "b.bin", label_bytes=1, classes=10), "b.bin", "label 10 of record 1")


def test_other_batches_are_refused_with_digest_and_remedy():
    folder = data_folder("cifar-10")
    folder.mkdir(parents=True)
    (folder / "test_batch.bin").write_bytes(records(some_images(1), [[1]]))
    words = ("test_batch.bin", "3,073 bytes", CIFAR10.DIGESTS["test_batch.bin"][7:19], "exitbench data fetch cifar-10")
    refused(lambda: CIFAR10().split("test"), *words)


def test_the_pickled_version_is_refused_by_name():
    folder = data_folder("cifar-10")
    folder.mkdir(parents=True)
    (folder / "test_batch").write_bytes(b"\x80\x02}q\x01.")
    refused(lambda: CIFAR10().split("test"), "test_batch", "pickle")


@pytest.fixture
def small_sheets(tmp_path, monkeypatch):
    """Sheets of two images each in the form of the real ones; gives folder, images and labels of each batch."""
    monkeypatch.setattr("bench_core.data.cifar.PER_SHEET", 2)
    images, labels = some_images(2), list(range(10)) * 5_000
    pixels = np.array(images, np.uint8).reshape(2, 3, 1024).transpose(0, 2, 1)
    for file in CIFAR10.DIGESTS:
        Image.fromarray(pixels).save(tmp_path / file.replace(".bin", ".png"))
    (tmp_path / "train_lables.json").write_text(json.dumps(labels))
    (tmp_path / "test_lables.json").write_text(json.dumps(labels[:10_000]))
    return tmp_path, images


def test_sheets_become_the_binary_files(small_sheets):
    folder, images = small_sheets
    sheets_to_binary(folder)
    assert (folder / "data_batch_2.bin").read_bytes() == records(images, [[2], [3]])
    assert (folder / "test_batch.bin").read_bytes() == records(images, [[0], [1]])
    assert sorted(path.name for path in folder.iterdir()) == sorted(CIFAR10.DIGESTS)


@pytest.mark.parametrize(
    "content", ["[1, 2]", "{}", "[", json.dumps([10] * 50_000)], ids=["few", "other", "half", "ten"]
)
def test_bad_lists_of_labels_are_refused(small_sheets, content):
    folder, _ = small_sheets
    (folder / "train_lables.json").write_text(content)
    refused(lambda: sheets_to_binary(folder), "train_lables.json")


def test_a_sheet_of_another_shape_is_refused(small_sheets):
    folder, _ = small_sheets
    Image.new("RGB", (32, 32)).save(folder / "data_batch_1.png")
    refused(lambda: sheets_to_binary(folder), "data_batch_1.png", "expected RGB")


def write_cifar100(per_class):
    folder = data_folder("cifar-100")
    folder.mkdir(parents=True)
    order = random.Random(3).sample(range(100 * per_class), 100 * per_class)
    raw = b"".join(bytes([0, n % 100]) + bytes([n % 256]) * 3072 for n in order)
    (folder / "train.bin").write_bytes(raw)
    return raw


def test_cifar100_is_cut_class_by_class(monkeypatch):
    raw = write_cifar100(500)
    monkeypatch.setattr("bench_core.data.cifar.read_checked", lambda path, *_: path.read_bytes())
    dataset = CIFAR100()
    train, calibration = dataset.split("train"), dataset.split("calibration")
    assert (len(train), len(calibration)) == (45_000, 5_000)
    assert calibration.labels.bincount().tolist() == [50] * 100
    assert sorted(train.sample_ids.tolist() + calibration.sample_ids.tolist()) == list(range(50_000))
    first = int(calibration.sample_ids[0])
    assert calibration.images[0, 0, 0, 0] == raw[first * 3074 + 2]


needs_cifar10 = pytest.mark.skipif(not (REAL["cifar-10"] / "test_batch.bin").exists(), reason="needs fetched CIFAR-10")
needs_mnist = pytest.mark.skipif(not (REAL["mnist"] / "t10k-labels-idx1-ubyte").exists(), reason="needs fetched MNIST")


@needs_cifar10
def test_cifar10_is_the_original_and_split_as_frozen(monkeypatch):
    monkeypatch.setenv("EXITBENCH_DATA", str(REAL["cifar-10"].parent))
    train, calibration, test = (CIFAR10().split(name) for name in ("train", "calibration", "test"))
    assert (len(train), len(calibration), len(test)) == (45_000, 5_000, 10_000)
    order = torch.cat([train.sample_ids, calibration.sample_ids]).argsort()
    labels = torch.cat([train.labels, calibration.labels])[order]
    assert labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert torch.equal(stratified_cut(labels, 5_000)[1], calibration.sample_ids)
    assert calibration.labels.bincount().tolist() == [500] * 10
    values = torch.cat([train.images, calibration.images])[order].float() / 255
    assert values.mean((0, 2, 3)).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    assert values.transpose(0, 1).flatten(1).std(1).tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=1e-4)


@needs_mnist
def test_mnist_is_the_original_and_split_as_frozen(monkeypatch):
    monkeypatch.setenv("EXITBENCH_DATA", str(REAL["mnist"].parent))
    train, calibration, test = (MNIST().split(name) for name in ("train", "calibration", "test"))
    assert (len(train), len(calibration), len(test)) == (55_000, 5_000, 10_000)
    order = torch.cat([train.sample_ids, calibration.sample_ids]).argsort()
    labels = torch.cat([train.labels, calibration.labels])[order]
    assert labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert torch.equal(stratified_cut(labels, 5_000)[1], calibration.sample_ids)
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]


# --- digits ----------------------------------------------------------------------------------------------------------


def test_digits_are_split_as_frozen():
    pytest.importorskip("sklearn")
    parts = {name: Digits().split(name) for name in ("train", "calibration", "test")}
    assert [len(part) for part in parts.values()] == [1_197, 240, 360]
    ids = torch.cat([part.sample_ids for part in parts.values()])
    assert ids.sort().values.tolist() == list(range(1_797))
    labels = torch.cat([part.labels for part in parts.values()])[ids.argsort()]
    rest, test = stratified_cut(labels, 360)
    assert torch.equal(parts["test"].sample_ids, test)
    assert torch.equal(parts["calibration"].sample_ids, rest[stratified_cut(labels[rest], 240)[1]])
    frame = Digits().encode(parts["test"].images[:2], 4)
    assert frame[0, 0, 0, 3] == pytest.approx((int(parts["test"].images[0, 0, 0, 3]) / 16 - 0.3052) / 0.3759, abs=1e-6)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    refused(lambda: Digits().split("test"), "scikit-learn")


# --- pictures --------------------------------------------------------------------------------------------------------


def picture(path, size=(64, 64), mode="RGB", seed=0):
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


def test_lazy_pictures_are_indexed_like_a_tensor(tmp_path):
    expected = torch.stack(
        [torch.from_numpy(picture(tmp_path / f"{n}.png", seed=n)).permute(2, 0, 1) for n in range(5)]
    )
    images = LazyPictures(tmp_path, [f"{n}.png" for n in range(5)], crop=64)
    assert (len(images), images.shape, images[:].dtype) == (5, (5, 3, 64, 64), torch.uint8)
    for index in (slice(None), slice(1, 3), torch.tensor([4, 0, 4]), torch.tensor([True, False, True, True, False]), 2):
        assert torch.equal(images[index], expected[index])
    assert images[torch.tensor([], dtype=torch.int64)].shape == (0, 3, 64, 64)
    assert isinstance(images, LazyImages)


def test_larger_pictures_are_brought_to_size_and_grey_ones_become_rgb(tmp_path):
    picture(tmp_path / "wide.jpeg", (500, 375))
    picture(tmp_path / "grey.jpeg", (40, 200), "L")
    picture(tmp_path / "palette.png", (256, 256), "P")
    found = LazyPictures(tmp_path, ["wide.jpeg", "grey.jpeg", "palette.png"], crop=224, resize=256)[:]
    assert found.shape == (3, 3, 224, 224)
    assert torch.equal(found[1, 0], found[1, 2])
    whole = Image.open(tmp_path / "wide.jpeg").resize((341, 256), Image.Resampling.BILINEAR)
    assert torch.equal(found[0], torch.from_numpy(np.array(whole)[16:240, 58:282]).permute(2, 0, 1))


def test_a_picture_of_another_size_is_refused_where_all_are_alike(tmp_path):
    picture(tmp_path / "a.png", (64, 63))
    refused(lambda: LazyPictures(tmp_path, ["a.png"], crop=64)[0], "a.png", "64 x 63")


def corrupt(path, how):
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"<html>", "half": content[: len(content) // 2]}[how])


@pytest.mark.parametrize("how", ["empty", "text", "half"])
@pytest.mark.parametrize("end", ["jpeg", "png"])
def test_a_corrupt_picture_in_the_middle_is_named(tmp_path, how, end):
    paths = [f"{n}.{end}" for n in range(5)]
    for name in paths:
        picture(tmp_path / name)
    corrupt(tmp_path / paths[3], how)
    images = LazyPictures(tmp_path, paths, crop=64)
    assert len(images[:3]) == 3
    refused(lambda: images[:], f"{tmp_path}/3.{end}", "damaged picture")
    (tmp_path / paths[3]).unlink()
    refused(lambda: images[torch.tensor([0, 3])], f"{tmp_path}/3.{end}")
    refused(lambda: images.digest, f"{tmp_path}/3.{end}")


def test_a_picture_with_too_many_pixels_is_refused(tmp_path):
    picture(tmp_path / "a.png")
    with (
        pytest.raises(DataError, match="64 x 64 pixels, more than 4,000"),
        open_picture(tmp_path / "a.png", limit=4_000),
    ):
        pass


def test_folders_without_pictures_or_with_other_classes_are_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    refused(lambda: pictures_in(tmp_path / "cat", "do this"), "cat", "no pictures", "do this")
    refused(lambda: class_folders(tmp_path, 2, "do this"), "1 folders, but there are 2 classes", "do this")
    refused(lambda: class_folders(tmp_path / "absent", 2, "do this"), "absent", "do this")


class ToyNet(ImageNet):
    name = "toynet"
    classes = 2
    samples = {"train": 200, "val": 4}


@pytest.fixture
def toynet():
    """Hundred training pictures of two classes each, most of them the same file."""
    folder = data_folder("toynet")
    picture(folder / "one.jpeg", (300, 260))
    for part, count in (("train", 100), ("val", 2)):
        for name in ("n01", "n02"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                (folder / part / name / f"{name}_{number:03}.JPEG").symlink_to(folder / "one.jpeg")
    return folder


def test_an_image_folder_is_split_and_not_loaded(toynet, monkeypatch):
    monkeypatch.setattr(LazyPictures, "_read", lambda *_: pytest.fail("decoded before it was indexed"))
    train, calibration, test = (ToyNet().split(name) for name in ("train", "calibration", "test"))
    ranks = [rank for rank in frozen("imagenet-calibration-ranks").tolist() if rank < 100]
    assert calibration.sample_ids.tolist() == [*ranks, *(100 + rank for rank in ranks)]
    assert sorted(train.sample_ids.tolist() + calibration.sample_ids.tolist()) == list(range(200))
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert len({split.digest for split in (train, calibration, test)}) == 3
    assert train.images.paths[0].startswith("n01/")


def test_batches_of_an_image_folder_are_network_input(toynet):
    split = ToyNet().split("test")
    inputs = ToyNet().encode(split.images[torch.tensor([0, 3])], 4)
    assert inputs.shape == (2, 3, 224, 224)
    assert torch.equal(inputs, ToyNet().encode(split.images, 4)[[0, 3]])
    assert ToyNet().frames(split, 4)(torch.tensor([1]), 2).shape == (1, 1, 3, 224, 224)


def test_a_shorter_image_folder_is_refused(toynet):
    (toynet / "train" / "n02" / "n02_050.JPEG").unlink()
    refused(lambda: ToyNet().split("train"), "199 pictures, expected 200")
    shutil.rmtree(toynet / "train" / "n02")
    refused(lambda: ToyNet().split("train"), "1 folders, but there are 2 classes")


def test_another_digest_belongs_to_another_file(toynet):
    before = ToyNet().split("test").digest
    path = toynet / "val" / "n01" / "n01_001.JPEG"
    path.unlink()
    picture(path, (100, 100))
    assert ToyNet().split("test").digest != before


class ToyTiny(TinyImageNet):
    name = "toy-tiny"
    classes = 2
    samples = {"train": 6, "val": 2}


@pytest.fixture
def toytiny(monkeypatch):
    folder = data_folder("toy-tiny")
    for name in ("n01", "n02"):
        for number in range(3):
            picture(folder / "train" / name / "images" / f"{name}_{number}.JPEG")
    for number in range(2):
        picture(folder / "val" / "images" / f"val_{number}.JPEG")
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n")
    monkeypatch.setattr("bench_core.data.imagenet.class_folders", lambda f, _, h: class_folders(f, 2, h))
    return folder


def test_tiny_imagenet_takes_its_test_labels_from_the_annotations(toytiny):
    test = ToyTiny().split("test")
    assert (test.labels.tolist(), test.images.paths) == ([1, 0], ["images/val_0.JPEG", "images/val_1.JPEG"])
    assert len(ToyTiny().split("train")) + len(ToyTiny().split("calibration")) == 6
    assert ToyTiny().encode(test.images[:1], 2).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("line", ["val_0.JPEG\tn99", "../val_0.JPEG\tn01", "rubbish", "val_7.JPEG\tn01"])
def test_bad_annotations_are_refused(toytiny, line):
    (toytiny / "val" / "val_annotations.txt").write_text(line + "\nval_1.JPEG\tn01\n")
    refused(lambda: ToyTiny().split("test"), "exitbench data fetch tiny-imagenet")
