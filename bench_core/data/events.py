"""Event-camera recordings: binned to frames of two polarities, and cached on disk so that each is read once.

Frames are cut by time, all of the same length, from the start of the recording, so that a timestep lasts
``milliseconds_per_step`` for every sample: on event data, waiting is latency. Events after the data set's duration are
dropped; if a recording ends earlier, its remaining frames are empty.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench_core.errors import DataError
from bench_core.store.local import default_root

__all__ = ["Events", "FrameCache", "event_frames"]

Integers = np.ndarray[Any, np.dtype[np.int64]]
Frames = np.ndarray[Any, np.dtype[np.uint16]]


@dataclass(frozen=True)
class Events:
    """Events of one recording, int64 [E] each: column, row, microseconds from its start, 1 for brightening."""

    x: Integers
    y: Integers
    t: Integers
    p: Integers


def event_frames(events: Events, timesteps: int, *, duration_us: int, height: int, width: int, path: Path) -> Frames:
    """Return event counts, uint16 [T, 2, H, W]; channel 0 counts brightening, channel 1 darkening.

    An event at t is counted in frame floor(t T / duration). Raises DataError, naming ``path``, if an event is outside
    the sensor or before the start, or if a count exceeds uint16.
    """
    outside = (events.x < 0) | (events.x >= width) | (events.y < 0) | (events.y >= height) | (events.t < 0)
    outside |= (events.p < 0) | (events.p > 1)
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        place = f"x = {events.x[at]}, y = {events.y[at]}, t = {events.t[at]} µs, polarity {events.p[at]}"
        raise DataError(f"{path}: event {at} ({place}) can't be of a sensor of {width} x {height}; fetch it again")
    seen = events.t < duration_us
    step = events.t[seen] * timesteps // duration_us
    place_in = ((step * 2 + (1 - events.p[seen])) * height + events.y[seen]) * width + events.x[seen]
    counts = np.bincount(place_in, minlength=timesteps * 2 * height * width)
    if counts.max(initial=0) > np.iinfo(np.uint16).max:
        raise DataError(f"{path}: a pixel with {counts.max():,} events in one frame; leave this recording out")
    return counts.astype(np.uint16).reshape(timesteps, 2, height, width)


class FrameCache:
    """Frames on disk, one small file per recording and number of timesteps, in exitbench's own folder.

    A file is used only while its recording still has the same size and modification time.
    """

    def __init__(self, dataset: str, form: str) -> None:
        """Set the data set's name and the form of the frames, which are part of the path."""
        self._name, self._form = dataset, form

    def path(self, timesteps: int, key: str) -> Path:
        """Return the path of a recording's cached frames."""
        return default_root() / "event-frames" / self._name / self._form / f"T{timesteps}" / f"{key}.npz"

    def get(self, recording: Path, timesteps: int, key: str) -> Frames | None:
        """Return the frames, or None if they are missing, damaged, or made from another version of the file."""
        try:
            with self.path(timesteps, key).open("rb") as stream:
                found = np.load(stream, allow_pickle=False)
                frames, made_from = found["frames"], found["made_from"].tolist()
        except Exception:  # damaged files raise many types of errors; the frames are made again
            return None
        fits = (
            isinstance(frames, np.ndarray)
            and frames.dtype == np.uint16
            and frames.ndim == 4
            and frames.shape[:2] == (timesteps, 2)
        )
        return frames if fits and made_from == _fingerprint(recording) else None

    def put(self, recording: Path, timesteps: int, key: str, frames: Frames) -> None:
        """Write frames atomically. Raises DataError, with the size needed, if the file cannot be written."""
        path = self.path(timesteps, key)
        temporary: Path | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as stream:
                temporary = Path(stream.name)
                np.savez_compressed(stream, frames=frames, made_from=np.array(_fingerprint(recording)))
            temporary.replace(path)
            temporary = None
        except OSError as error:
            needed = f"up to {frames.nbytes:,} bytes a recording are needed"
            raise DataError(f"{path}: can't be written ({error.strerror}; {needed}); set EXITBENCH_HOME") from error
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


def _fingerprint(path: Path) -> list[int]:
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); fetch the data set again") from error
    return [facts.st_size, facts.st_mtime_ns]
