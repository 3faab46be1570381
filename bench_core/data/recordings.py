"""N-MNIST, CIFAR10-DVS, N-Caltech101 and DVS128 Gesture: data sets recorded by event cameras, one file per recording.

A split's samples are recording numbers; ``encode`` turns them into T frames of two polarities. So only a list of files
is in memory, and the same recording can be used at any T.
"""

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from bench_core.data.base import SPLITS, Dataset, Images, ImageSplit, LazyImages
from bench_core.data.checked_files import remedy
from bench_core.data.events import Events, FrameCache, event_frames
from bench_core.data.folders import data_folder
from bench_core.data.splits import FROZEN, cut_by_rank, frozen
from bench_core.errors import DataError
from bench_core.util.digests import json_digest

__all__ = ["CIFAR10DVS", "NMNIST", "CIFAR10DVSOriginal", "DVSGesture", "NCaltech101", "Recording"]

BINNING = 1  # version of the conversion from events to frames
WORKERS = 4


@dataclass(frozen=True)
class Recording:
    """One file: its path in the data set's folder, its class, and its id, unique within its split's source part."""

    path: str
    label: int
    sample_id: int


class _Recordings(LazyImages):
    """Recording numbers, int64 [B, 1, 1, 1] when indexed; only their own data set can interpret them."""

    def __init__(self, dataset: "EventDataset", numbers: list[int]) -> None:
        self.dataset, self.numbers = dataset, numbers

    @property
    def shape(self) -> torch.Size:
        return torch.Size([len(self.numbers), 1, 1, 1])

    @property
    def digest(self) -> str:
        """Return the sha256 of the names and sizes of the files."""
        files = [self.dataset.recordings[number].path for number in self.numbers]
        return json_digest([(path, _size(self.dataset.folder / path)) for path in files])

    def read(self, positions: list[int]) -> torch.Tensor:
        return torch.tensor([self.numbers[position] for position in positions]).reshape(-1, 1, 1, 1)


class EventDataset(Dataset):
    """Base of the recorded data sets.

    Attributes:
        duration_ms: the part of a recording that is used, from its start; T frames share it evenly.
        archives: digests of the published archives, if known.
        cuts: names of the frozen files that make the splits.
    """

    constant_input = False
    recorded = True
    duration_ms: float
    archives: dict[str, str]
    cuts: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Return the folder of the recordings."""
        return data_folder(self.name)

    @property
    def identity(self) -> dict[str, Any]:
        """Return the name, archive digests, digests of the frozen cuts, duration and binning version."""
        frozen_files = {name: FROZEN[name] for name in self.cuts}
        seen = {"duration_ms": self.duration_ms, "binning": BINNING}
        return {"name": self.name, "archives": self.archives, "frozen": frozen_files, **seen}

    @property
    def how_to(self) -> str:
        """Return the remedy for missing or damaged files, for error messages."""
        return remedy(self.name)

    @cached_property
    def recordings(self) -> list[Recording]:
        """Return all recordings, the official test part last. Raises DataError if files are missing."""
        return self.find()

    @abstractmethod
    def find(self) -> list[Recording]:
        """Return the recordings found on disk. Raises DataError unless all are there."""

    @abstractmethod
    def numbers(self, split: str) -> list[int]:
        """Return the positions in ``recordings`` of a split's samples."""

    @abstractmethod
    def read(self, path: Path) -> Events:
        """Return the events in a file. Raises DataError that names it."""

    def split(self, name: str) -> ImageSplit:
        """Return the split ``name``, with recording numbers as samples. Raises DataError if files are missing."""
        if name not in SPLITS:
            raise self.refuse_split(name)
        numbers = self.numbers(name)
        chosen = [self.recordings[number] for number in numbers]
        labels = torch.tensor([recording.label for recording in chosen])
        ids = torch.tensor([recording.sample_id for recording in chosen])
        return ImageSplit(name, _Recordings(self, numbers), labels, ids)

    def encode(self, images: Images, timesteps: int, frames: int | None = None) -> torch.Tensor:
        """Turn recording numbers, int64 [B, 1, 1, 1], into event counts, float32 [frames, B, 2, H, W]."""
        numbers = images[:].reshape(-1).tolist()
        with ThreadPoolExecutor(WORKERS) as pool:
            counts = list(pool.map(lambda number: self._frames(number, timesteps)[:frames], numbers))
        if not counts:
            return torch.zeros(timesteps if frames is None else frames, 0, *self.input_shape)
        return torch.from_numpy(np.stack(counts, 1).astype(np.float32))

    def milliseconds_per_step(self, timesteps: int) -> float:
        """Return the duration of a timestep, ``duration_ms`` / T."""
        return self.duration_ms / timesteps

    def _frames(self, number: int, timesteps: int) -> "np.ndarray[Any, np.dtype[np.uint16]]":
        path = self.folder / self.recordings[number].path
        cache = FrameCache(self.name, f"{self.duration_ms:g}ms-v{BINNING}")
        if (found := cache.get(path, timesteps, str(number))) is not None:
            return found
        _, height, width = self.input_shape
        made = event_frames(
            self.read(path), timesteps, duration_us=int(self.duration_ms * 1000), height=height, width=width, path=path
        )
        cache.put(path, timesteps, str(number), made)
        return made

    def _files(self, pattern: str, form: str) -> list[tuple[str, re.Match[str]]]:
        """Return (path, match), sorted, of files in the folder that match the glob and fully the regular expression."""
        found = []
        for path in sorted(self.folder.glob(pattern)):
            relative = path.relative_to(self.folder).as_posix()
            if (match := re.fullmatch(form, relative)) is not None:
                found.append((relative, match))
        if not found:
            raise DataError(f"{self.folder}: no recordings ({pattern}); {self.how_to}")
        return found

    def _check(self, what: str, found: int, expected: int) -> None:
        if found != expected:
            raise DataError(f"{self.folder / what}: {found:,} recordings, expected {expected:,}; {self.how_to}")


class NMNIST(EventDataset):
    """MNIST's digits on a screen, recorded by a camera making three saccades; numbered and split like MNIST."""

    name = "n-mnist"
    classes = 10
    input_shape = (2, 34, 34)
    licence = "CC BY-SA 4.0"
    reference = "Orchard et al., Front. Neurosci. 9:437, 2015"
    duration_ms = 315.0
    archives = {"train.zip": "md5:20959b8e626244a1b502305a9e6e2031", "test.zip": "md5:69ca8762b2fe404d9b9bad1103e97832"}
    cuts = ("mnist-calibration",)
    samples: ClassVar[dict[str, int]] = {"Train": 60_000, "Test": 10_000}

    def find(self) -> list[Recording]:
        """Return the recordings of ``Train`` and ``Test``, by sample id. Raises DataError unless all are there."""
        found: list[Recording] = []
        for part, expected in self.samples.items():
            files = self._files(f"{part}/*/*.bin", part + r"/([0-9])/([0-9]{5})\.bin")
            recordings = [Recording(path, int(match[1]), int(match[2]) - 1) for path, match in files]
            self._check(part, len({recording.sample_id for recording in recordings}), expected)
            found += sorted(recordings, key=lambda recording: recording.sample_id)
        return found

    def numbers(self, split: str) -> list[int]:
        """Return the positions of a split's samples; calibration uses MNIST's frozen cut."""
        tested = self.samples["Train"]
        if split == "test":
            return list(range(tested, len(self.recordings)))
        cut = set(frozen("mnist-calibration").tolist())
        wanted = split == "calibration"
        return [n for n in range(tested) if (self.recordings[n].sample_id in cut) == wanted]

    def read(self, path: Path) -> Events:
        """Return the events of a .bin file. Raises DataError that names it."""
        from bench_core.data.tonic_reader import read_bin

        return read_bin(path)


class NCaltech101(EventDataset):
    """Caltech101 recorded like N-MNIST: 100 classes and background; images of many sizes, in the upper left corner.

    There is no official split: of every ten recordings of a class, one is for testing and one for calibration.
    """

    name = "n-caltech101"
    classes = 101
    input_shape = (2, 180, 240)
    licence = "CC BY-SA 4.0"
    reference = "Orchard et al., Front. Neurosci. 9:437, 2015"
    duration_ms = 315.0
    archives = {"N-Caltech101-archive.zip": "md5:66201824eabb0239c7ab992480b50ba3"}
    cuts = ("n-caltech101-calibration-ranks", "n-caltech101-test-ranks")
    samples: ClassVar[int] = 8_709

    def find(self) -> list[Recording]:
        """Return the recordings of all class folders. Raises DataError unless all are there."""
        files = self._files("Caltech101/*/*.bin", r"Caltech101/([^/]+)/image_([0-9]+)\.bin")
        names = sorted({match[1] for _, match in files})
        if len(names) != self.classes:
            here = self.folder / "Caltech101"
            raise DataError(f"{here}: {len(names)} folders, but there are {self.classes} classes; {self.how_to}")
        self._check("Caltech101", len(files), self.samples)
        return [Recording(path, names.index(match[1]), place) for place, (path, match) in enumerate(files)]

    def numbers(self, split: str) -> list[int]:
        """Return the positions of a split's samples, cut by rank within each class."""
        labels = torch.tensor([recording.label for recording in self.recordings])
        parts = {part: cut_by_rank(labels, frozen(f"n-caltech101-{part}-ranks"))[1] for part in ("calibration", "test")}
        if split in parts:
            return parts[split].tolist()
        taken = set(torch.cat(list(parts.values())).tolist())
        return [number for number in range(len(labels)) if number not in taken]

    def read(self, path: Path) -> Events:
        """Return the events of a .bin file, moved to the upper left corner. Raises DataError that names it."""
        from bench_core.data.tonic_reader import read_bin

        events = read_bin(path)
        if not len(events.x):
            return events
        return Events(events.x - events.x.min(), events.y - events.y.min(), events.t, events.p)


CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CIFAR10DVS(EventDataset):
    """10,000 images of CIFAR-10 moved on a screen before a DVS128; aedat4 files, as tonic's source has them.

    There is no official split: 1,000 are for testing and 900 for calibration, the same number of each class.
    """

    name = "cifar10-dvs"
    classes = 10
    input_shape = (2, 128, 128)
    licence = "CC BY 4.0"
    reference = "Li et al., Front. Neurosci. 11:309, 2017"
    duration_ms = 1300.0
    archives: dict[str, str] = {"CIFAR10DVS.zip": "md5:ce3a4a0682dc0943703bd8f749a7701c"}
    cuts = ("cifar10-dvs-calibration", "cifar10-dvs-test")
    suffix: ClassVar[str] = "aedat4"
    per_class: ClassVar[int] = 1_000

    def find(self) -> list[Recording]:
        """Return the recordings of all classes, by sample id. Raises DataError unless all are there."""
        form = r"([a-z]+)/cifar10_\1_([0-9]{1,3})\." + self.suffix
        files = [(path, match) for path, match in self._files(f"*/*.{self.suffix}", form) if match[1] in CIFAR_CLASSES]
        counts = Counter(match[1] for _, match in files)
        for name in CIFAR_CLASSES:
            self._check(name, counts[name], self.per_class)
        labelled = [(path, CIFAR_CLASSES.index(match[1]), int(match[2])) for path, match in files]
        found = [Recording(path, label, 1_000 * label + number) for path, label, number in labelled]
        return sorted(found, key=lambda recording: recording.sample_id)

    def numbers(self, split: str) -> list[int]:
        """Return the positions of a split's samples, from the frozen cuts."""
        parts = {part: set(frozen(f"cifar10-dvs-{part}").tolist()) for part in ("calibration", "test")}
        parts["train"] = set(range(10_000)) - parts["calibration"] - parts["test"]
        return [n for n, recording in enumerate(self.recordings) if recording.sample_id in parts[split]]

    def read(self, path: Path) -> Events:
        """Return the events of an aedat4 file. Raises DataError that names it."""
        from bench_core.data.tonic_reader import read_aedat4

        return read_aedat4(path)


class CIFAR10DVSOriginal(CIFAR10DVS):
    """The same recordings in the authors' files (AEDAT 2.0); a separate data set, as pixel orientation may differ."""

    name = "cifar10-dvs-original"
    archives = {}
    suffix = "aedat"

    def read(self, path: Path) -> Events:
        """Return the events of an AEDAT 2.0 file. Raises DataError that names it."""
        from bench_core.data.tonic_reader import read_aedat2

        return read_aedat2(path)


class DVSGesture(EventDataset):
    """Eleven gestures of 29 people under five lights; people 24 to 29 are the test split, as officially.

    Three of the other 23 people are for calibration: no person is in two splits. Sources differ in how many recordings
    they contain, so the split is by person; the split's digest distinguishes sources.
    """

    name = "dvs128-gesture"
    classes = 11
    input_shape = (2, 128, 128)
    licence = "CC BY 4.0"
    reference = "Amir et al., CVPR 2017"
    duration_ms = 6000.0
    archives = {
        "ibmGestureTrain.tar.gz": "md5:3a8f0d4120a166bac7591f77409cb105",
        "ibmGestureTest.tar.gz": "md5:56070e45dadaa85fff82e0fbfbc06de5",
    }
    cuts = ("dvs128-gesture-calibration-users",)
    LIGHTS: ClassVar[tuple[str, ...]] = ("fluorescent", "fluorescent_led", "lab", "led", "natural")

    def find(self) -> list[Recording]:
        """Return the recordings of all people, by sample id. Raises DataError if one person has none."""
        form = r"ibmGesture(?:Train|Test)/user([0-9]{2})_([a-z_]+)/([0-9]{1,2})\.npy"
        found = []
        for path, match in self._files("ibmGesture*/*/*.npy", form):
            user, label = int(match[1]), int(match[3])
            if match[2] not in self.LIGHTS or label >= self.classes:
                raise DataError(f"{self.folder / path}: light or label unknown; {self.how_to}")
            number = (user * len(self.LIGHTS) + self.LIGHTS.index(match[2])) * self.classes + label
            found.append(Recording(path, label, number))
        users = {self._user(recording) for recording in found}
        if missing := sorted(set(range(1, 30)) - users):
            raise DataError(f"{self.folder}: no recordings of user{missing[0]:02}; {self.how_to}")
        return sorted(found, key=lambda recording: recording.sample_id)

    def numbers(self, split: str) -> list[int]:
        """Return the positions of a split's samples, by person."""
        calibrating = set(frozen("dvs128-gesture-calibration-users").tolist())
        of_split: dict[str, Callable[[int], bool]] = {
            "train": lambda user: user <= 23 and user not in calibrating,
            "calibration": lambda user: user in calibrating,
            "test": lambda user: user > 23,
        }
        return [n for n, recording in enumerate(self.recordings) if of_split[split](self._user(recording))]

    def _user(self, recording: Recording) -> int:
        return recording.sample_id // (len(self.LIGHTS) * self.classes)

    def read(self, path: Path) -> Events:
        """Read columns x, y, polarity and milliseconds; time counts from the first event. Raises DataError."""
        try:
            found = np.load(path, allow_pickle=False)
        except Exception as error:  # the header is Python, the sizes are untrusted, and it may be a zip file
            raise DataError(f"{path}: damaged or another format ({error!s:.200}); {self.how_to}") from error
        if (
            not isinstance(found, np.ndarray)
            or found.ndim != 2
            or found.shape[1] != 4
            or found.dtype.kind not in "iuf"
            or not np.isfinite(found).all()
        ):
            raise DataError(f"{path}: not a table of x, y, polarity and time; {self.how_to}")
        x, y, p, t = found.astype(np.int64).T
        return Events(x, y, 1000 * (t - (t.min() if len(t) else 0)), p)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); fetch the data set again") from error
