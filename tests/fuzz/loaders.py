"""The loaders that are fuzzed: valid files of each, how they are changed by meaning, and what reads them."""

import gzip
import io
import json
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import numpy as np
import torch

from bench_core.board.board import read_board
from bench_core.board.consistency import refuse_contradictions
from bench_core.board.differences import compare_boards
from bench_core.board.published import PUBLISHED_COLUMNS, read_published
from bench_core.data.cifar import PIXELS, parse_cifar
from bench_core.data.events import FrameCache
from bench_core.data.fetch.fetch import problems
from bench_core.data.fetch.sources import Archive, FileTree, Source
from bench_core.data.fetch.unpack import unpack
from bench_core.data.idx import read_idx, write_idx
from bench_core.data.pictures import open_picture
from bench_core.data.recordings import DVSGesture
from bench_core.data.tonic_reader import read_aedat2, read_bin
from bench_core.errors import ExitBenchError
from bench_core.report.latex import latex
from bench_core.report.markdown import markdown
from bench_core.report.terminal import terminal
from bench_core.run.suite import load_suite
from bench_core.store.inventory import describe, entries, prune, shipped_entries, verify
from bench_core.store.local import Store, read_artifact
from bench_core.trace.bundles import import_bundle
from bench_core.trace.files import load_trace, save_trace_shards
from tests.fuzz.board import BOARD, board_seeds
from tests.fuzz.files import (
    Target,
    bundle_seeds,
    mutate_bundle,
    mutate_safetensors,
    mutate_toml,
    suite_seeds,
    trace_seeds,
)
from tests.fuzz.mutations import mutate_csv, mutate_json, mutate_npy, mutate_numbers, mutate_tar, mutate_zip
from tests.traces import make_trace

__all__ = ["LOADERS", "loader"]


# --- valid files -----------------------------------------------------------------------------------------------------


def _tar_seed() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, body in (("data/a.bin", b"abc" * 50), ("data/é.bin", b"x"), ("README", b"text")):
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return stream.getvalue()


def _zip_seed() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in (("data/a.bin", b"abc" * 50), ("data/é.bin", b"x"), ("README", b"text")):
            archive.writestr(name, body)
    return stream.getvalue()


def _written(write: Callable[[Path], object], path: Path) -> bytes:
    write(path)
    return path.read_bytes()


# --- loaders ---------------------------------------------------------------------------------------------------------


def _unpacking(folder: Path, suffix: str, seed: bytes, mutate: Callable[[bytes, random.Random], bytes]) -> Target:
    place = folder / "unpacked"
    archive = Archive("a", pick=r"data/(.*\.bin)|a\.bin|[^/]+", place=r"\g<0>", limit=10**6)

    def take(path: Path) -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        with suppress_disk_errors():
            for name in unpack(path, archive, place):
                assert (place / name).is_file()

    return Target(f"archive{suffix}", [seed], suffix, mutate, take, (ExitBenchError,))


def suppress_disk_errors() -> suppress:
    """The one other error that ``unpack`` documents: the disk's own."""
    return suppress(OSError)


def archives(folder: Path) -> list[Target]:
    """Tar, zip and gzip archives of data sets."""
    packed = gzip.compress(b"abc" * 100, mtime=0)
    return [
        _unpacking(folder, ".tar", _tar_seed(), mutate_tar),
        _unpacking(folder, ".tar.gz", gzip.compress(_tar_seed(), mtime=0), mutate_numbers),
        _unpacking(folder, ".zip", _zip_seed(), mutate_zip),
        _unpacking(folder, ".gz", packed, mutate_numbers),
    ]


def inventory(folder: Path) -> list[Target]:
    """``inventory.json`` of a data set."""
    home = folder / "set"
    home.mkdir(exist_ok=True)
    (home / "a.bin").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    seed = json.dumps({"files": {"a.bin": [3, digest], "sub/b.bin": [4, digest]}}).encode()
    source = Source("set", None, licence="x", homepage="x", citation="x", by_hand="x", trees=(FileTree("*.bin", 1),))

    def take(path: Path) -> None:
        shutil.copyfile(path, home / "inventory.json")
        for problem in problems(source, home):
            assert str(problem).isprintable()
            assert len(str(problem)) < 4000

    return [Target("inventory", [seed], ".json", mutate_json, take, (ExitBenchError,))]


def published(folder: Path) -> list[Target]:
    """``published.csv`` beside a board."""
    home = folder / "published"
    home.mkdir(exist_ok=True)
    row = 'DT-SNN,"VGG, large",cifar-10,4,93.5,1.46,Li et al.,Table 2,on test\n'
    seed = (",".join(PUBLISHED_COLUMNS) + "\n" + row * 3).encode()

    def take(path: Path) -> None:
        shutil.copyfile(path, home / "published.csv")
        read_published(home, ["cifar-10"])

    return [Target("published", [seed], ".csv", mutate_csv, take, (ExitBenchError,))]


def board(folder: Path) -> list[Target]:
    """Every table of a board, and its manifest: read, checked, and what passes is shown in all forms."""
    files = board_seeds(folder / "whole")
    whole = read_board(folder / "whole")

    def target(name: str) -> Target:
        place = folder / f"board-{name}"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / "whole", place)

        def take(path: Path) -> None:
            shutil.copyfile(path, place / name)
            found = read_board(place, verified=False)  # a digest would refuse every case
            refuse_contradictions(found, "in a test")
            points = list(dict.fromkeys(found.rows["operating_point"]))
            ways = (
                lambda: terminal(found, points),
                lambda: markdown(found),
                lambda: latex(found),
                lambda: compare_boards(found, whole).text,
            )
            for way in ways[crc32(path.read_bytes()) % 12 :][:1]:  # none or one of them, so that a case takes less
                assert all(line.isprintable() for line in way().split("\n"))

        mutate = mutate_json if name.endswith(".json") else mutate_csv
        return Target(name, [files[name]], Path(name).suffix, mutate, take, (ExitBenchError,))

    return [target(name) for name in BOARD]


def suites(folder: Path) -> list[Target]:
    """Suites in TOML."""
    del folder
    return [Target("suite", suite_seeds(), ".toml", mutate_toml, lambda p: load_suite(str(p)), (ExitBenchError,))]


def traces(folder: Path) -> list[Target]:
    """Trace files."""
    del folder
    return [Target("trace", trace_seeds(), ".safetensors", mutate_safetensors, load_trace, (ExitBenchError,))]


def indices(folder: Path) -> list[Target]:
    """Indices of traces in shards."""
    home = folder / "shards"
    home.mkdir(exist_ok=True)
    save_trace_shards(make_trace("strong", 1, 9, 3, 4), home / "seed.json", 4)
    seed = (home / "seed.json").read_bytes()

    def take(path: Path) -> None:
        shutil.copyfile(path, home / "case.json")
        load_trace(home / "case.json")

    return [Target("index", [seed], ".json", mutate_json, take, (ExitBenchError,))]


def bundles(folder: Path) -> list[Target]:
    """Bundles of artifacts."""
    store = Store(folder / "bundle-store", zoo=None)

    def take(path: Path) -> None:
        shutil.rmtree(store.root, ignore_errors=True)
        import_bundle(path, store)

    return [Target("bundle", bundle_seeds(folder), ".tar", mutate_bundle, take, (ExitBenchError,))]


def artifacts(folder: Path) -> list[Target]:
    """Artifacts of a store, as every command of ``exitbench store`` looks at them, and those of the zoo."""
    bundle_seeds(folder)  # leaves the store that it exports
    store = Store(folder / "seed-store", zoo=None)
    places = {path: path.read_bytes() for path in sorted(store.root.rglob("*.safetensors"))}
    zoo = folder / "zoo" / "networks"
    zoo.mkdir(parents=True, exist_ok=True)

    def target(place: Path, seed: bytes) -> Target:
        def take(path: Path) -> None:
            shutil.copyfile(path, zoo / place.name)
            shipped_entries(zoo.parent)
            with suppress(ExitBenchError):
                Store(folder / "empty", zoo=zoo.parent).get("networks", place.stem)
            try:
                shutil.copyfile(path, place)
                for entry in entries(store):
                    assert entry.what.isprintable()
                    with suppress(ExitBenchError):
                        json.dumps(describe(entry))
                verify(store)
                prune(store, dry_run=True)
                read_artifact(place)
            finally:
                place.write_bytes(seed)

        return Target(
            f"artifact of {place.parent.parent.name}",
            [seed],
            ".safetensors",
            mutate_safetensors,
            take,
            (ExitBenchError,),
        )

    return [target(place, seed) for place, seed in places.items()]


def numbers(folder: Path) -> list[Target]:
    """IDX and CIFAR's binary files, plain and packed."""
    values = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    plain, packed = (_written(lambda p: write_idx(p, values), folder / name) for name in ("seed.idx", "seed.gz"))
    cifar = b"".join(bytes([label]) + bytes(range(256)) * (PIXELS // 256) for label in (0, 3, 9))

    def take_cifar(path: Path) -> None:
        parse_cifar(path.read_bytes(), path, label_bytes=1, classes=10)

    return [
        Target("idx", [plain, packed], ".idx", mutate_numbers, read_idx, (ExitBenchError,)),
        Target("cifar", [cifar], ".bin", mutate_numbers, take_cifar, (ExitBenchError,)),
    ]


def arrays(folder: Path) -> list[Target]:
    """NumPy's files: recordings of gestures (.npy), kept frames (.npz)."""
    events = np.array([[1, 2, 1, 5], [3, 4, 0, 6]] * 3, dtype=np.int64)
    stream = io.BytesIO()
    np.save(stream, events)
    recording = folder / "recording"
    recording.write_bytes(b"x")
    cache = FrameCache("set", "form")
    cache.put(recording, 2, "k", np.zeros((2, 2, 3, 3), np.uint16))
    kept = cache.path(2, "k")

    def take_frames(path: Path) -> None:
        shutil.copyfile(path, kept)
        frames = cache.get(recording, 2, "k")
        assert frames is None or (frames.dtype == np.uint16 and frames.shape[:2] == (2, 2))

    return [
        Target(
            "gesture", [stream.getvalue()], ".npy", mutate_npy, lambda path: DVSGesture().read(path), (ExitBenchError,)
        ),
        Target("frames", [kept.read_bytes()], ".npz", mutate_zip, take_frames, (ExitBenchError,)),
    ]


def recordings(folder: Path) -> list[Target]:
    """Event recordings of 40 bits an event, and in AEDAT 2."""
    del folder
    header = b"#!AER-DAT2.0\r\n# a comment\r\n"
    events = b"".join(address.to_bytes(4, "big") + time.to_bytes(4, "big") for address, time in ((258, 1), (772, 90)))
    return [
        Target("bin", [bytes(range(50))], ".bin", mutate_numbers, read_bin, (ExitBenchError,)),
        Target("aedat2", [header + events], ".aedat", mutate_numbers, read_aedat2, (ExitBenchError,)),
    ]


def pictures(folder: Path) -> list[Target]:
    """Pictures of data sets."""
    from PIL import Image

    shown = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    seeds = [_written(shown.save, folder / f"seed.{kind}") for kind in ("png", "jpg")]

    def take(path: Path) -> None:
        with open_picture(path, limit=10**6) as picture:
            picture.convert("RGB")

    return [Target("picture", seeds, ".jpg", mutate_numbers, take, (ExitBenchError,))]


LOADERS: dict[str, Callable[[Path], list[Target]]] = {
    "archives": archives,
    "arrays": arrays,
    "artifacts": artifacts,
    "board": board,
    "bundles": bundles,
    "indices": indices,
    "inventory": inventory,
    "numbers": numbers,
    "pictures": pictures,
    "published": published,
    "recordings": recordings,
    "suites": suites,
    "traces": traces,
}


def loader(name: str, folder: Path) -> list[Target]:
    """The targets of one loader, with their files below ``folder``."""
    return LOADERS[name](folder)
