"""Recordings: small files in the true formats become frames of two polarities; waiting is latency; bad ones named."""

import errno
import random

import numpy as np
import pytest
import torch

from bench_core.data import events as events_module
from bench_core.data.events import Events, event_frames
from bench_core.data.folders import data_folder
from bench_core.data.recordings import CIFAR10DVS, CIFAR_CLASSES, NMNIST, CIFAR10DVSOriginal, DVSGesture, NCaltech101
from bench_core.data.splits import frozen
from bench_core.store.local import default_root
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.data import no_data_folder, refused  # noqa: F401  # the fixture is switched on by being here

pytest.importorskip("tonic")


def some_events(count, width, height, until, seed=0):
    """(x, y, microseconds, polarity), by time."""
    rng = random.Random(seed)
    times = sorted(rng.randrange(until) for _ in range(count))
    return [(rng.randrange(width), rng.randrange(height), t, rng.randrange(2)) for t in times]


def as_events(rows):
    return Events(*np.array(rows, np.int64).reshape(-1, 4).T)


def plain_frames(rows, timesteps, duration_us, height, width):
    """Counts [T][2][H][W], event by event."""
    counts = np.zeros((timesteps, 2, height, width), np.int64)
    for x, y, t, p in rows:
        step = next((s for s in range(timesteps) if duration_us * s <= t * timesteps < duration_us * (s + 1)), None)
        if step is not None:
            counts[step, 0 if p else 1, y, x] += 1
    return counts


# --- writers of the true formats -------------------------------------------------------------------------------------


def write_bin(path, rows):
    """40 bits an event: x, y, polarity and 23 bits of time, big-endian."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(bytes([x, y, (p << 7) | (t >> 16), (t >> 8) & 255, t & 255]) for x, y, t, p in rows))


def write_aedat2(path, rows, start=5_000_000):
    """A header of comments, then address and time in four bytes each, big-endian, as jAER writes for a DVS128."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# Timestamps are in us\r\n"
    body = b""
    for x, y, t, p in rows:
        address = ((127 - x) << 8) | ((127 - y) << 1) | (1 - p)
        body += address.to_bytes(4, "big") + (start + t).to_bytes(4, "big")
    path.write_bytes(header + body)


def write_aedat4(path, rows, start=1_600_000_000_000_000):
    dv = pytest.importorskip("dv_processing")
    pytest.importorskip("aedat")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = dv.io.MonoCameraWriter(str(path), dv.io.MonoCameraWriter.EventOnlyConfig("DVS128", (128, 128)))
    store = dv.EventStore()
    for x, y, t, p in rows:
        store.push_back(start + t, x, y, bool(p))
    writer.writeEvents(store)
    del writer


def write_gesture(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array([(x, y, p, 400 + t // 1000) for x, y, t, p in rows], np.float64))


# --- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timesteps", [1, 3, 7, 10])
def test_frames_are_the_counts_of_the_rule(tmp_path, timesteps):
    rows = some_events(500, 6, 5, 1_200)
    found = event_frames(as_events(rows), timesteps, duration_us=1_000, height=5, width=6, path=tmp_path)
    assert (found.shape, found.dtype) == ((timesteps, 2, 5, 6), np.uint16)
    assert (found == plain_frames(rows, timesteps, 1_000, 5, 6)).all()


def test_frames_agree_with_tonics_where_both_are_defined(tmp_path):
    from tonic.transforms import ToFrame

    rows = [*some_events(300, 6, 5, 1_000), (0, 0, 999, 1)]
    table = np.zeros(len(rows), [("x", int), ("y", int), ("t", int), ("p", int)])
    for name, values in zip("xytp", zip(*rows, strict=True), strict=True):
        table[name] = values
    theirs = ToFrame(sensor_size=(6, 5, 2), time_window=250, start_time=0, end_time=1_000)(table)
    ours = event_frames(as_events(rows), 4, duration_us=1_000, height=5, width=6, path=tmp_path)
    assert (ours == theirs[:, ::-1]).all()  # theirs has darkening first


def test_no_events_are_empty_frames(tmp_path):
    found = event_frames(as_events([]), 3, duration_us=1_000, height=5, width=6, path=tmp_path)
    assert (found.shape, found.sum()) == ((3, 2, 5, 6), 0)


@pytest.mark.parametrize("row", [(6, 0, 0, 0), (0, 5, 0, 0), (-1, 0, 0, 0), (0, 0, -1, 0), (0, 0, 0, 2)], ids=str)
def test_an_event_that_cannot_be_is_refused(tmp_path, row):
    rows = [(1, 1, 1, 1), row]
    refused(
        lambda: event_frames(as_events(rows), 2, duration_us=9, height=5, width=6, path=tmp_path / "r.bin"),
        "r.bin: event 1",
        "6 x 5",
    )


def test_a_count_that_does_not_fit_is_refused(tmp_path):
    many = Events(*np.zeros((4, 70_000), np.int64))
    refused(lambda: event_frames(many, 1, duration_us=9, height=1, width=1, path=tmp_path), "70,000 events")


# --- N-MNIST ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def nmnist(monkeypatch):
    """Six training and two test recordings; gives their events by path."""
    monkeypatch.setattr(NMNIST, "samples", {"Train": 6, "Test": 2})
    calibrating = frozen("mnist-calibration")[0].item()
    numbers = [calibrating, *(n for n in range(6) if n != calibrating)][:6]
    written = {}
    for part, ids in (("Train", numbers), ("Test", [0, 1])):
        for place, number in enumerate(ids):
            path = f"{part}/{place % 10}/{number + 1:05}.bin"
            written[path] = some_events(200, 34, 34, 320_000, seed=number)
            write_bin(data_folder("n-mnist") / path, written[path])
    return written


def test_recordings_are_split_by_their_numbers(nmnist):
    train, calibration, test = (NMNIST().split(name) for name in ("train", "calibration", "test"))
    assert calibration.sample_ids.tolist() == [frozen("mnist-calibration")[0].item()]
    assert (len(train), len(test)) == (5, 2)
    assert (calibration.labels.tolist(), test.labels.tolist()) == ([0], [0, 1])
    assert len({split.digest for split in (train, calibration, test)}) == 3


def test_recordings_become_frames(nmnist):
    dataset = NMNIST()
    split = dataset.split("test")
    found = dataset.encode(split.images[:], 5)
    assert (found.shape, found.dtype) == ((5, 2, 2, 34, 34), torch.float32)
    for place, rows in enumerate((nmnist["Test/0/00001.bin"], nmnist["Test/1/00002.bin"])):
        assert (found[:, place].numpy() == plain_frames(rows, 5, 315_000, 34, 34)).all()
    assert torch.equal(dataset.encode(split.images[torch.tensor([1])], 5, 2), found[:2, 1:])
    assert torch.equal(dataset.frames(split, 5)(torch.tensor([1, 0]), 3), found[:3, [1, 0]].transpose(0, 1))


def test_waiting_is_latency(nmnist):
    assert NMNIST().milliseconds_per_step(5) == 63.0
    assert (NMNIST().recorded, NMNIST().simulated, NMNIST().constant_input) == (True, False, False)


def test_events_are_those_that_tonics_data_set_reads(nmnist, tmp_path, monkeypatch):
    import tonic

    monkeypatch.setattr(tonic.datasets.NMNIST, "_check_exists", lambda _: True)
    data_folder("n-mnist").rename(tmp_path / "NMNIST")
    theirs = tonic.datasets.NMNIST(str(tmp_path), train=False)
    events, label = theirs[1]
    assert label == 1
    assert [tuple(int(event[n]) for n in "xytp") for event in events] == nmnist["Test/1/00002.bin"]


def test_frames_are_kept_and_used_again(nmnist, monkeypatch):
    dataset = NMNIST()
    images = dataset.split("test").images[:]
    first = dataset.encode(images, 5)
    monkeypatch.setattr(NMNIST, "read", lambda *_: pytest.fail("read again"))
    assert torch.equal(dataset.encode(images, 5), first)


def test_kept_frames_follow_a_changed_recording_and_survive_damage(nmnist):
    dataset = NMNIST()
    images = dataset.split("test").images[:1]
    dataset.encode(images, 5)
    (kept,) = default_root().rglob("*.npz")
    for content in (b"", kept.read_bytes()[:50], b"PK\x03\x04"):
        kept.write_bytes(content)
        assert dataset.encode(images, 5).sum() > 0
    rows = some_events(10, 34, 34, 300_000, seed=99)
    write_bin(data_folder("n-mnist") / "Test/0/00001.bin", rows)
    assert (dataset.encode(images, 5)[:, 0].numpy() == plain_frames(rows, 5, 315_000, 34, 34)).all()


def test_a_full_disk_says_what_is_needed_and_leaves_nothing(nmnist, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(events_module.np, "savez_compressed", full)
    refused(lambda: NMNIST().encode(NMNIST().split("test").images[:1], 5), "23,120 bytes", "EXITBENCH_HOME")
    assert not list((default_root() / "event-frames").rglob("*.*z"))
    assert not list((default_root() / "event-frames").rglob("*.tmp"))


def test_a_missing_recording_is_missed(nmnist):
    (data_folder("n-mnist") / "Test/1/00002.bin").unlink()
    refused(lambda: NMNIST().split("test"), "n-mnist/Test", "1 recordings, expected 2", "exitbench data fetch n-mnist")


def test_a_recording_that_goes_missing_later_is_named(nmnist):
    images = NMNIST().split("test").images[:]
    dataset = NMNIST()
    dataset.split("test")
    (data_folder("n-mnist") / "Test/1/00002.bin").unlink()
    refused(lambda: dataset.encode(images, 5), "Test/1/00002.bin")


def test_half_an_event_is_refused(nmnist):
    path = data_folder("n-mnist") / "Test/1/00002.bin"
    path.write_bytes(path.read_bytes()[:-2])
    refused(lambda: NMNIST().encode(NMNIST().split("test").images[:], 5), str(path), "whole number of events")


def test_an_empty_recording_is_empty_frames(nmnist):
    (data_folder("n-mnist") / "Test/1/00002.bin").write_bytes(b"")
    found = NMNIST().encode(NMNIST().split("test").images[:], 5)
    assert found[:, 0].sum() > 0
    assert found[:, 1].sum() == 0


def test_without_tonic_the_error_says_what_to_install(nmnist, monkeypatch):
    images = NMNIST().split("test").images[:1]
    monkeypatch.setitem(__import__("sys").modules, "tonic.io", None)
    refused(lambda: NMNIST().encode(images, 5), "pip install tonic")


# --- CIFAR10-DVS -----------------------------------------------------------------------------------------------------


def write_dvs(monkeypatch, dataset, write, suffix):
    monkeypatch.setattr(dataset, "per_class", 1)
    number = 0
    rows = {}
    for label, name in enumerate(CIFAR_CLASSES):
        rows[label] = some_events(300, 128, 128, 1_400_000, seed=label)
        rows[label][0] = (*rows[label][0][:2], 0, rows[label][0][3])  # time counts from the first event
        write(data_folder(dataset.name) / name / f"cifar10_{name}_{number}.{suffix}", rows[label])
    return rows


@pytest.mark.parametrize(
    ("dataset", "write", "suffix"),
    [(CIFAR10DVS, write_aedat4, "aedat4"), (CIFAR10DVSOriginal, write_aedat2, "aedat")],
    ids=["aedat4", "AEDAT 2.0"],
)
def test_cifar10_dvs_is_read(monkeypatch, dataset, write, suffix):
    rows = write_dvs(monkeypatch, dataset, write, suffix)
    found = dataset()
    splits = [found.split(name) for name in ("train", "calibration", "test")]
    assert sorted(i for split in splits for i in split.sample_ids.tolist()) == [1_000 * label for label in range(10)]
    for split in splits:
        for place, label in enumerate(split.labels.tolist()):
            frames = found.encode(split.images[place : place + 1], 4)[:, 0]
            assert (frames.numpy() == plain_frames(rows[label], 4, 1_300_000, 128, 128)).all()
    assert found.milliseconds_per_step(4) == 325.0


def test_the_frozen_split_of_cifar10_dvs_is_whole_and_balanced():
    test, calibration = frozen("cifar10-dvs-test"), frozen("cifar10-dvs-calibration")
    assert (test // 1_000).bincount().tolist() == [100] * 10
    assert (calibration // 1_000).bincount().tolist() == [90] * 10
    assert not set(test.tolist()) & set(calibration.tolist())


@pytest.mark.parametrize("content", [b"", b"rubbish", b"#!AER-DAT4.0\r\nrubbish"])
def test_a_damaged_aedat4_is_named(monkeypatch, content):
    write_dvs(monkeypatch, CIFAR10DVS, write_aedat4, "aedat4")
    for path in data_folder("cifar10-dvs").rglob("*.aedat4"):
        path.write_bytes(content)
    refused(lambda: CIFAR10DVS().encode(CIFAR10DVS().split("train").images[:1], 4), ".aedat4: damaged")


@pytest.mark.parametrize("cut", [3, 10_000])
def test_a_damaged_aedat2_is_named(monkeypatch, cut):
    write_dvs(monkeypatch, CIFAR10DVSOriginal, write_aedat2, "aedat")
    for path in data_folder("cifar10-dvs-original").rglob("*.aedat"):
        path.write_bytes(path.read_bytes()[:-cut])
    dataset = CIFAR10DVSOriginal()
    refused(lambda: dataset.encode(dataset.split("train").images[:1], 4), ".aedat: damaged")


def test_a_class_too_few_is_missed(monkeypatch):
    write_dvs(monkeypatch, CIFAR10DVSOriginal, write_aedat2, "aedat")
    (data_folder("cifar10-dvs-original") / "frog" / "cifar10_frog_0.aedat").unlink()
    refused(lambda: CIFAR10DVSOriginal().split("train"), "frog: 0 recordings, expected 1")


# --- N-Caltech101 ----------------------------------------------------------------------------------------------------


@pytest.fixture
def caltech(monkeypatch):
    monkeypatch.setattr(NCaltech101, "samples", 20 * 2)
    monkeypatch.setattr(NCaltech101, "classes", 2)
    for name in ("ant", "Faces_easy"):
        for number in range(1, 21):
            rows = [(x + 3, y + 2, t, p) for x, y, t, p in some_events(50, 200, 150, 300_000, seed=number)]
            write_bin(data_folder("n-caltech101") / "Caltech101" / name / f"image_{number:04}.bin", rows)


def test_of_every_ten_recordings_one_is_tested_and_one_calibrates(caltech):
    parts = {name: NCaltech101().split(name) for name in ("train", "calibration", "test")}
    assert {name: part.labels.bincount().tolist() for name, part in parts.items()} == {
        "train": [16, 16],
        "calibration": [2, 2],
        "test": [2, 2],
    }
    assert sorted(i for part in parts.values() for i in part.sample_ids.tolist()) == list(range(40))


def test_pictures_of_many_sizes_are_moved_to_the_corner(caltech):
    dataset = NCaltech101()
    found = dataset.encode(dataset.split("test").images[:1], 3)
    assert found.shape == (3, 1, 2, 180, 240)
    assert found.sum((0, 1, 2))[0].sum() > 0
    assert found.sum((0, 1, 2))[:, 0].sum() > 0


def test_another_number_of_classes_is_refused(caltech, monkeypatch):
    monkeypatch.setattr(NCaltech101, "classes", 101)
    refused(lambda: NCaltech101().split("test"), "2 folders, but there are 101 classes")


# --- DVS128 Gesture --------------------------------------------------------------------------------------------------


@pytest.fixture
def gestures():
    rows = {}
    for user in range(1, 30):
        part = "Train" if user <= 23 else "Test"
        for label in (0, 10):
            rows[user, label] = [(3, 4, 0, 1), *some_events(20, 128, 128, 5_000_000, seed=user)]
            path = data_folder("dvs128-gesture") / f"ibmGesture{part}" / f"user{user:02}_led" / f"{label}.npy"
            write_gesture(path, rows[user, label])
    return rows


def test_no_person_is_in_two_splits(gestures):
    people = {}
    for name in ("train", "calibration", "test"):
        split = DVSGesture().split(name)
        people[name] = {int(i) // 55 for i in split.sample_ids}
        assert set(split.labels.tolist()) == {0, 10}
    assert people["test"] == set(range(24, 30))
    assert people["calibration"] == set(frozen("dvs128-gesture-calibration-users").tolist())
    assert people["train"] == set(range(1, 24)) - people["calibration"]


def test_gestures_become_frames(gestures):
    dataset = DVSGesture()
    found = dataset.encode(dataset.split("test").images[:1], 6)[:, 0]
    rows = [(x, y, t // 1000 * 1000, p) for x, y, t, p in gestures[24, 0]]
    assert (found.numpy() == plain_frames(rows, 6, 6_000_000, 128, 128)).all()
    assert dataset.milliseconds_per_step(6) == 1000.0


def test_a_pickle_and_other_tables_are_refused(gestures):
    path = data_folder("dvs128-gesture") / "ibmGestureTest" / "user24_led" / "0.npy"
    dataset = DVSGesture()
    images = dataset.split("test").images[:1]
    np.save(path, np.array([{"run": "code"}], object), allow_pickle=True)
    refused(lambda: dataset.encode(images, 2), str(path))
    np.save(path, np.zeros((5, 3)))
    refused(lambda: dataset.encode(images, 2), str(path), "not a table")
    path.write_bytes(b"")
    refused(lambda: dataset.encode(images, 2), str(path))


def test_a_person_too_few_and_an_unknown_light_are_refused(gestures):
    folder = data_folder("dvs128-gesture") / "ibmGestureTest"
    (folder / "user24_led").rename(folder / "user24_moon")
    refused(lambda: DVSGesture().split("test"), "light or label unknown")
    for path in (folder / "user24_moon").iterdir():
        path.unlink()
    refused(lambda: DVSGesture().split("test"), "user24")
