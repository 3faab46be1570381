"""Data: IDX files, the embedded splits and simulated saccades are what they claim to be; damaged ones are refused."""

import gzip
import hashlib
import json
import math
import os
import shutil
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench_core.data import SPLITS, fashion_mnist
from bench_core.data.cifar import CIFAR10
from bench_core.data.fashion_mnist import DEBIAN_FOLDER, RAW_MD5, FashionMNIST
from bench_core.data.idx import read_idx, write_idx
from bench_core.data.saccades import SimulatedSaccades, _log_levels, saccade_frames, saccade_path
from bench_core.data.splits import stratified_cut
from bench_core.errors import DataError
from bench_core.util.digests import json_digest, tensor_digest
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.data import write_training_images
from tests.helpers.kernels import KERNELS, run_python
from tests.reference import saccades as reference

SACCADES = SimulatedSaccades(FashionMNIST())
VALUES = torch.arange(2 * 3 * 4, dtype=torch.uint8).reshape(2, 3, 4) * 10
RAW = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 3, 4) + bytes(range(0, 240, 10))

# --- IDX -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["values-idx3-ubyte", "values.gz"])
@pytest.mark.parametrize("shape", [(24,), (4, 6), (2, 3, 4), (1, 2, 3, 4), (0, 5)], ids=str)
def test_what_is_written_is_read_back(tmp_path, name, shape):
    values = VALUES.flatten()[: math.prod(shape)].reshape(shape)
    write_idx(tmp_path / name, values)
    found = read_idx(tmp_path / name)
    assert found.dtype == torch.uint8
    assert torch.equal(found, values)


def test_the_bytes_are_those_of_the_format(tmp_path):
    write_idx(tmp_path / "values", VALUES)
    assert (tmp_path / "values").read_bytes() == RAW
    write_idx(tmp_path / "values.gz", VALUES)
    assert gzip.decompress((tmp_path / "values.gz").read_bytes()) == RAW


def test_a_turned_tensor_is_written_by_value(tmp_path):
    write_idx(tmp_path / "values", VALUES.transpose(0, 2))
    assert torch.equal(read_idx(tmp_path / "values"), VALUES.transpose(0, 2))


def test_a_compressed_file_is_the_same_every_time(tmp_path):
    for name in ("a.gz", "b.gz"):
        write_idx(tmp_path / name, VALUES)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_compression_is_recognised_by_content_and_not_by_name(tmp_path):
    (tmp_path / "plain.gz").write_bytes(RAW)
    (tmp_path / "packed").write_bytes(gzip.compress(RAW))
    assert torch.equal(read_idx(tmp_path / "plain.gz"), VALUES)
    assert torch.equal(read_idx(tmp_path / "packed"), VALUES)


def test_other_types_are_not_written(tmp_path):
    with pytest.raises(TypeError, match="int64"):
        write_idx(tmp_path / "values", VALUES.long())
    assert not (tmp_path / "values").exists()


PACKED = gzip.compress(RAW, mtime=0)
REFUSED = {
    "empty": (b"", "not an IDX file"),
    "text": (b"label,pixel\n", "not an IDX file"),
    "floating point": (bytes([0, 0, 0x0D, 1, 0, 0, 0, 0]), "not an IDX file of unsigned bytes"),
    "no dimensions": (bytes([0, 0, 8, 0, 1]), "not an IDX file"),
    "five dimensions": (bytes([0, 0, 8, 5]) + bytes(24), "not an IDX file"),
    "half a header": (RAW[:11], "truncated in its header"),
    "one byte short": (RAW[:-1], "23 values where the header promises 24"),
    "one byte more": (RAW + b"\x00", "25 values where the header promises 24"),
    "sizes beyond all bounds": (RAW[:4] + b"\xff" * 12, "values where the header promises"),
    "half a gzip file": (PACKED[: len(PACKED) // 2], "damaged gzip"),
    "gzip with a flipped bit": (PACKED[:-8] + bytes([PACKED[-8] ^ 1]) + PACKED[-7:], "damaged gzip"),
    "gzip and rubbish": (PACKED + b"rubbish", "damaged gzip"),
    "gzip of something else": (gzip.compress(b"hello"), "not an IDX file"),
}


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refusal_names_the_file_and_what_is_wrong(tmp_path, content, words):
    path = tmp_path / "train-images.gz"
    path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        read_idx(path)
    assert str(path) in str(refused.value)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"absent: can't be read \(No such file"):
        read_idx(tmp_path / "absent")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_bytes_are_a_tensor_or_a_data_error_and_nothing_else(tmp_path, data):
    content = bytearray(data.draw(st.sampled_from([RAW, PACKED])))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "mutated"
    path.write_bytes(content)
    try:
        assert read_idx(path).dtype == torch.uint8
    except DataError as error:
        assert str(path) in str(error)


# --- the embedded splits ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded():
    return {name: FashionMNIST().split(name) for name in ("calibration", "test")}


@pytest.mark.parametrize(("name", "samples"), [("calibration", 5_000), ("test", 10_000)])
def test_an_embedded_split_has_its_size_and_all_classes_alike(embedded, name, samples):
    split = embedded[name]
    assert len(split) == samples
    assert split.images.shape == (samples, 1, 28, 28)
    assert split.images.dtype == torch.uint8
    assert split.labels.bincount().tolist() == [samples // 10] * 10
    assert len(split.sample_ids.unique()) == samples
    assert (len(split.digest), split.name) == (64, name)


def md5(values):
    """Of the original IDX file that holds ``values``."""
    header = bytes([0, 0, 8, values.dim()]) + struct.pack(f">{values.dim()}I", *values.shape)
    return hashlib.md5(header + values.numpy().tobytes(), usedforsecurity=False).hexdigest()


def test_the_test_split_is_the_original_to_the_bit(embedded):
    split = embedded["test"]
    assert md5(split.images.squeeze(1)) == RAW_MD5["t10k-images-idx3-ubyte"]
    assert md5(split.labels.to(torch.uint8)) == RAW_MD5["t10k-labels-idx1-ubyte"]
    assert split.sample_ids.tolist() == list(range(10_000))


def test_calibration_ids_are_training_images(embedded):
    ids = embedded["calibration"].sample_ids
    assert ids.min() >= 0
    assert ids.max() < 60_000
    assert torch.equal(ids, ids.sort().values)


needs_training_images = pytest.mark.skipif(
    not any((DEBIAN_FOLDER / f"train-images-idx3-ubyte{end}").exists() for end in ("", ".gz")),
    reason="needs the training images of Debian's dataset-fashion-mnist",
)


@needs_training_images
def test_training_and_calibration_are_disjoint_and_together_the_original(embedded, monkeypatch):
    monkeypatch.delenv("EXITBENCH_DATA", raising=False)
    train, calibration = FashionMNIST().split("train"), embedded["calibration"]
    assert len(train) == 55_000
    ids = torch.cat([train.sample_ids, calibration.sample_ids])
    order = ids.argsort()
    assert ids[order].tolist() == list(range(60_000))
    assert md5(torch.cat([train.images, calibration.images])[order].squeeze(1)) == RAW_MD5["train-images-idx3-ubyte"]
    labels = torch.cat([train.labels, calibration.labels])[order]
    assert md5(labels.to(torch.uint8)) == RAW_MD5["train-labels-idx1-ubyte"]


def test_the_training_split_is_what_calibration_leaves_of_the_images_in_the_data_folder(tmp_path, monkeypatch):
    write_training_images(tmp_path, monkeypatch)
    train = FashionMNIST().split("train")
    assert train.images.shape == (55_000, 1, 28, 28)
    assert train.labels.bincount().tolist() == [5_500] * 10
    cut = stratified_cut(torch.arange(60_000) % 10, 5_000)[1]
    assert torch.cat([train.sample_ids, cut]).sort().values.tolist() == list(range(60_000))
    numbers = 256 * train.images[:, 0, 0, 0].long() + train.images[:, 0, 0, 1]
    assert torch.equal(numbers, train.sample_ids)
    assert torch.equal(numbers % 10, train.labels)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the embedded files that may be altered."""
    folder = shutil.copytree(fashion_mnist.EMBEDDED, tmp_path / "embedded")
    monkeypatch.setattr(fashion_mnist, "EMBEDDED", folder)
    return folder


FILES = [f"{split}-{kind}.gz" for split in ("calibration", "test") for kind in ("images", "labels")]


def check_refused(split, path):
    with pytest.raises(DataError) as refused:
        FashionMNIST().split(split)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", FILES)
def test_an_altered_embedded_file_is_refused_by_name(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    check_refused(name.split("-")[0], copied / name)


@pytest.mark.parametrize("split", ["calibration", "test"])
def test_other_labels_in_a_sound_file_are_refused(copied, split):
    path = copied / f"{split}-labels.gz"
    write_idx(path, read_idx(path).flip(0))
    check_refused(split, path)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_embedded_file_is_refused_by_name(copied, name):
    (copied / name).write_bytes((copied / name).read_bytes()[:-100])
    check_refused(name.split("-")[0], copied / name)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_embedded_file_is_refused_by_name(copied, name):
    (copied / name).unlink()
    check_refused(name.split("-")[0] if name in FILES else "test", copied / name)


def test_altered_ids_are_refused(copied):
    path = copied / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["calibration_ids"][:2] = reversed(manifest["calibration_ids"][:2])
    path.write_text(json.dumps(manifest))
    check_refused("calibration", path)


def test_one_altered_split_leaves_the_other_usable(copied):
    (copied / "calibration-images.gz").write_bytes(b"")
    assert len(FashionMNIST().split("test")) == 10_000


def test_without_training_images_the_error_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "absent")
    monkeypatch.setenv("EXITBENCH_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"dataset-fashion-mnist.*\$EXITBENCH_DATA/fashion-mnist"):
        FashionMNIST().split("train")


def test_training_images_that_are_not_the_original_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("EXITBENCH_DATA", str(tmp_path))
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    write_idx(folder / "train-images-idx3-ubyte.gz", VALUES)
    write_idx(folder / "train-labels-idx1-ubyte.gz", VALUES[:, 0, 0])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: not the original"):
        FashionMNIST().split("train")


@pytest.mark.parametrize("dataset", [FashionMNIST(), SACCADES], ids=lambda dataset: dataset.name)
def test_an_unknown_split_is_refused_with_those_there_are(dataset):
    with pytest.raises(DataError, match=", ".join(SPLITS)):
        dataset.split("validation")


def test_identities_are_json_and_differ():
    identities = [json.dumps(dataset.identity, sort_keys=True) for dataset in (FashionMNIST(), SACCADES)]
    assert len(set(identities)) == 2


def test_direct_coding_is_one_normalised_frame(embedded):
    images = embedded["test"].images[:50]
    dataset = FashionMNIST()
    frame = dataset.encode(images, 4)
    assert (frame.dtype, frame.shape) == (torch.float32, (50, 1, 28, 28))
    assert frame[3, 0, 14, 14] == pytest.approx((int(images[3, 0, 14, 14]) / 255 - 0.2860) / 0.3530, abs=1e-6)
    read = dataset.frames(embedded["test"], 4)
    assert torch.equal(read(torch.tensor([7, 3]), 3), dataset.encode(images, 4)[[7, 3]].unsqueeze(1))
    assert (dataset.simulated, dataset.constant_input, dataset.milliseconds_per_step(4)) == (False, True, None)


# --- simulated saccades ----------------------------------------------------------------------------------------------


def test_saccades_are_called_simulated():
    dataset = SACCADES
    assert dataset.simulated is True
    assert dataset.constant_input is False
    assert "simulated" in dataset.name
    assert "simulated" in dataset.reference
    assert dataset.milliseconds_per_step(10) == 30.0


def test_saccades_are_the_same_every_time(embedded):
    images = embedded["test"].images[:20]
    assert torch.equal(saccade_frames(images, 8), saccade_frames(images.clone(), 8))
    assert torch.equal(SACCADES.encode(images, 8), saccade_frames(images, 8))


def test_saccades_do_not_depend_on_the_batch(embedded):
    images = embedded["test"].images[:20]
    assert torch.equal(saccade_frames(images[7:9], 8), saccade_frames(images, 8)[:, 7:9])


@pytest.mark.parametrize("timesteps", [1, 4, 8, 10])
def test_event_counts_are_whole_and_not_negative(embedded, timesteps):
    counts = saccade_frames(embedded["test"].images[:100], timesteps)
    assert (counts.dtype, counts.shape) == (torch.float32, (timesteps, 100, 2, 28, 28))
    assert torch.equal(counts, counts.round())
    assert counts.min() == 0
    assert counts.max() > 1


@pytest.mark.parametrize("name", ["calibration", "test"])
@pytest.mark.parametrize("timesteps", [4, 8])
def test_the_first_frame_of_every_image_holds_events(embedded, name, timesteps):
    images = embedded[name].images[:2000]
    assert saccade_frames(images, timesteps, 1).sum((0, 2, 3, 4)).min() > 0


@pytest.mark.parametrize("frames", [1, 3, 8])
def test_the_first_frames_are_those_of_the_whole(embedded, frames):
    images = embedded["test"].images[:20]
    assert torch.equal(saccade_frames(images, 8, frames), saccade_frames(images, 8)[:frames])
    assert torch.equal(SACCADES.encode(images, 8, frames), saccade_frames(images, 8, frames))


def test_frames_are_read_by_position(embedded):
    dataset, split = SACCADES, embedded["test"]
    positions = torch.tensor([11, 4, 9_999])
    found = dataset.frames(split, 8)(positions, 3)
    assert found.shape == (3, 3, 2, 28, 28)
    assert torch.equal(found, dataset.encode(split.images[positions], 8, 3).transpose(0, 1))


def test_the_first_simulated_data_set_stays_what_it_was(embedded):
    assert SACCADES.name == "fashion-mnist-simulated-saccades"
    assert json_digest(SACCADES.identity) == "6cf8caedf57b781c88c118c4c22c88bb594c5cb367483a34919a3eaab9464ef3"
    assert (
        tensor_digest(SACCADES.encode(embedded["test"].images[:50], 8))
        == "0ba1cf3e8bffa0ecd983c1cc3516b4e5881aa6f33e8877a7a02eca629aa352d1"
    )
    assert embedded["test"].digest == "1daafd713adc8f654c1117589d23da4f40b3894de57004b13787f71a15c8f7ba"


def test_saccades_over_colours_see_their_brightness():
    dataset = SimulatedSaccades(CIFAR10())
    assert (dataset.name, dataset.simulated, dataset.input_shape) == ("cifar-10-simulated-saccades", True, (2, 32, 32))
    generator = torch.Generator().manual_seed(1)
    grey = torch.randint(0, 256, (4, 1, 32, 32), generator=generator, dtype=torch.uint8)
    counts = dataset.encode(grey.expand(-1, 3, -1, -1).contiguous(), 4)
    assert counts.shape == (4, 4, 2, 32, 32)
    assert torch.equal(counts, saccade_frames(grey, 4))
    green, blue = (torch.zeros(1, 3, 32, 32, dtype=torch.uint8) for _ in range(2))
    green[:, 1, 8:24, 8:24] = blue[:, 2, 8:24, 8:24] = 255
    assert dataset.encode(green, 4).sum() > dataset.encode(blue, 4).sum() > 0


def test_the_path_is_a_closed_triangle():
    path = saccade_path(6)
    assert path.shape == (25, 2)
    assert torch.equal(path[0], path[-1])
    assert path[[0, 8, 16]].tolist() == [[-4.0, -4.0], [4.0, 0.0], [-4.0, 4.0]]
    assert path.abs().max() == 4.0


@pytest.mark.parametrize("timesteps", [1, 3, 5, 8, 10, 100])
def test_positions_are_exact_or_rounded_to_parts_of_a_pixel(timesteps):
    assert (saccade_path(timesteps) * 256).tolist() == [list(position) for position in reference.path(timesteps)]


def test_levels_are_correctly_rounded_logarithms():
    levels = _log_levels()
    assert levels.dtype == torch.int16
    assert levels.tolist() == [reference.log_level(intensity) for intensity in range(255 * 32 + 1)]


def test_an_even_image_in_the_dark_and_a_black_one_have_no_events():
    assert saccade_frames(torch.zeros(1, 1, 28, 28, dtype=torch.uint8), 8).sum() == 0


def test_what_brightens_darkens_again_on_a_closed_path(embedded):
    counts = saccade_frames(embedded["test"].images[:200], 8).sum(0)
    assert torch.equal(counts[:, 0], counts[:, 1])


ROUNDING = 2e-3  # of two intensities in the dark, and of levels


def plain_levels(image, timesteps):
    """Log intensity under every pixel at every position of the sensor, in plain Python: [4 T + 1][H][W]."""
    height, width = len(image), len(image[0])
    corners = [(-4.0, -4.0), (4.0, 0.0), (-4.0, 4.0), (-4.0, -4.0)]

    def level(row, column):
        """At a place between pixels; outside the image it is black."""
        top, left = math.floor(row), math.floor(column)
        total = 0.0
        for y, x in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            if 0 <= y < height and 0 <= x < width:
                total += (1 - abs(row - y)) * (1 - abs(column - x)) * image[y][x] / 255
        return math.log(total + 0.1)

    levels = []
    for moment in range(4 * timesteps + 1):
        along = 3 * moment / (4 * timesteps)
        side = min(int(along), 2)
        (y0, x0), (y1, x1) = corners[side], corners[side + 1]
        down, right = y0 + (along - side) * (y1 - y0), x0 + (along - side) * (x1 - x0)
        levels.append([[level(y + down, x + right) for x in range(width)] for y in range(height)])
    return levels


def test_events_are_those_of_a_sensor_with_a_contrast_threshold_of_a_fifth(embedded):
    timesteps = 8  # all positions are exact then
    image = embedded["test"].images[0]
    counts = saccade_frames(image[None], timesteps)[:, 0].double()
    levels = torch.tensor(plain_levels(image[0].tolist(), timesteps), dtype=torch.float64)
    followed = levels[0] + 0.2 * (counts[:, 0] - counts[:, 1]).cumsum(0)
    assert (levels[4::4] - followed).abs().max() <= 0.2 + ROUNDING  # else there would be one more event
    moved = (levels[1:] - levels[:-1]).unflatten(0, (timesteps, 4))
    for polarity, direction in ((0, moved.clamp(min=0)), (1, -moved.clamp(max=0))):
        assert (0.2 * counts[:, polarity] <= direction.sum(1) + 0.2 + ROUNDING).all()  # no event without movement
    assert counts.sum() > 100


IMAGE_SHAPES = st.tuples(st.sampled_from([1, 3]), st.integers(1, 7), st.integers(1, 7))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), timesteps=st.integers(1, 9))
def test_events_are_those_of_the_plain_reference(data, timesteps):
    frames = data.draw(st.none() | st.integers(1, timesteps))
    batch, (channels, height, width) = data.draw(st.integers(1, 2)), data.draw(IMAGE_SHAPES)
    grey_value = data.draw(st.sampled_from([st.integers(0, 255), st.sampled_from([0, 1, 254, 255])]))
    size = batch * channels * height * width
    values = data.draw(st.lists(grey_value, min_size=size, max_size=size))
    images = torch.tensor(values, dtype=torch.uint8).reshape(batch, channels, height, width)
    counts = saccade_frames(images, timesteps, frames)
    for number, image in enumerate(images if channels == 3 else images.squeeze(1)):
        assert counts[:, number].tolist() == reference.event_counts(image.tolist(), timesteps)[:frames]


def test_events_of_a_photograph_are_those_of_the_plain_reference(embedded):
    image = embedded["test"].images[0, :, 8:20, 8:20]
    counts = saccade_frames(image[None], 8)[:, 0]
    assert counts.tolist() == reference.event_counts(image[0].tolist(), 8)
    assert counts.sum() > 100


# What decides how a CPU rounds floating-point numbers. Where kernels can't be chosen (Arm), the variables do nothing.
PRINT_DIGESTS = """
import torch
from bench_core.data.fashion_mnist import FashionMNIST
from bench_core.data.saccades import saccade_frames
from bench_core.util.digests import tensor_digest

grey = FashionMNIST().split("test").images[:100]
colours = torch.stack([grey[:99, 0], grey[1:, 0], 255 - grey[:99, 0]], dim=1)
for threads in (1, 2):
    torch.set_num_threads(threads)
    for images, timesteps in ((grey, 8), (colours, 5)):
        for batch in (1, 7, len(images)):
            counts = torch.cat([saccade_frames(part, timesteps) for part in images.split(batch)], dim=1)
            print(timesteps, tensor_digest(counts))
"""
DIGESTS = {
    "8": "7df742b8f46e9d7d2c7da53bc9eefe734f4ea8608eef0750d984bc2955b143c9",
    "5": "50c98c6fc02c800106fce06730d797520436979a495ad3a2c06d1866142c1bc1",
}


@pytest.mark.parametrize("kernels", KERNELS)
def test_events_are_the_same_on_every_cpu_at_any_threads_and_in_any_batch(kernels):
    done = run_python(["-c", PRINT_DIGESTS], kernels)
    found = [line.split() for line in done.stdout.splitlines()]
    assert found == [[timesteps, DIGESTS[timesteps]] for timesteps in "888555" * 2]


def test_the_data_are_found_without_any_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("EXITBENCH")]:
        monkeypatch.delenv(name)
    assert len(FashionMNIST().split("test")) == 10_000
