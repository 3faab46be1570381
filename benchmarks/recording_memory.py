"""What recording a large split takes in memory: recording it, putting the trace together, exporting it.

    python benchmarks/recording_memory.py [--samples 50000] [--timesteps 8] [--classes 1000] [--folder FOLDER]

A network that does nothing but draw logits is recorded through the store, in parts as any workload is. Memory is the
largest anonymous resident memory that each step adds to what the process had before; mapped files aren't in it. Each
step is a process of its own: ``record`` records all parts and puts them together; ``assemble`` finds the parts there;
``save`` writes the trace to a file as ``--traces`` does; ``export`` puts it into a bundle.
"""

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench_core import Dataset, ImageSplit, load_registry, save_trace
from bench_core.data.base import Images
from bench_core.run.artifacts import Workload, record_shard, recorded_trace, shards_of
from bench_core.run.suite import load_suite
from bench_core.store.inventory import entries
from bench_core.store.local import Artifact, Store
from bench_core.trace.bundles import export_bundle
from bench_core.util.environment import environment


class Blank(Dataset):
    """Labels without pictures."""

    name, licence, reference = "blank", "CC0-1.0", "made up"
    input_shape = (1, 1, 1)
    constant_input = True

    def __init__(self, samples: int, classes: int) -> None:
        self.classes, self._samples = classes, samples

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "samples": self._samples, "classes": self.classes}

    def split(self, name: str) -> ImageSplit:
        ids = torch.arange(self._samples)
        return ImageSplit(name, torch.zeros(self._samples, 1, 1, 1, dtype=torch.uint8), ids % self.classes, ids)

    def encode(self, images: Images, timesteps: int, frames: int | None = None) -> torch.Tensor:
        return images[:].float()[None].expand(timesteps if frames is None else frames, -1, -1, -1, -1)


class Drawing:
    """A network that draws its logits."""

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def reset(self) -> None:
        pass

    def run(self, inputs: torch.Tensor, timesteps: int, *, fold: int | None = None) -> torch.Tensor:
        return torch.randn(
            timesteps, inputs.shape[1], self._classes, generator=torch.Generator().manual_seed(fold or 0)
        )


def anonymous_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) / 1024


@contextmanager
def added_memory(name: str) -> Iterator[None]:
    """Prints how long the block took, and how much anonymous memory it added at most."""
    environment()  # once in every process, and no part of what is measured
    before = peak = anonymous_mib()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - start
        done.set()
        thread.join()
        print(f"{name:10s} {peak - before:6.0f} MiB more, {seconds:6.1f} s", flush=True)


def apart(work: Callable[[], object]) -> None:
    """Do something in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--timesteps", type=int, default=8)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where the store is made; default a temporary folder")
    arguments = parser.parse_args()
    samples, classes = arguments.samples, arguments.classes
    spec = next(spec for spec in load_suite("quick").workloads if spec.conversion is None)
    spec = spec.model_copy(update={"timesteps": arguments.timesteps})
    dataset = Blank(samples, classes)
    network: Any = Drawing(classes)  # stands in for a network that takes no time
    workload = Workload(spec, dataset, load_registry().find("models", spec.model), None)
    weights = Artifact({}, {"content": "0" * 64}, {})
    size = samples * arguments.timesteps * classes * 4 / 2**20
    print(f"{samples} x {arguments.timesteps} x {classes}: {size:.0f} MiB of logits, {shards_of(samples)} parts")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        one, two = (Store(Path(folder) / name, zoo=None) for name in ("one", "two"))

        def record(store: Store) -> Any:
            return recorded_trace(workload, weights, "test", store, network=network)

        def parts() -> None:
            for number in range(shards_of(samples)):
                record_shard(workload, weights, "test", number, two, network=network)

        def recording() -> None:
            with added_memory("record"):
                record(one)

        def assembling() -> None:
            with added_memory("assemble"):
                record(two)

        def saving() -> None:
            trace = record(one)
            with added_memory("save"):
                save_trace(trace, Path(folder) / "copy.safetensors")

        def exporting() -> None:
            with added_memory("export"):
                export_bundle(entries(one), Path(folder) / "bundle.tar")

        for work in (recording, parts, assembling, saving, exporting):
            apart(work)


if __name__ == "__main__":
    main()
