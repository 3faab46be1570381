"""Fetching: continued, checked, unpacked safely, whole or not at all; verifying names what is missing or altered."""

import errno
import gzip
import hashlib
import http.server
import io
import os
import re
import stat
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from bench_core.data.fetch import download
from bench_core.data.fetch import fetch as fetching
from bench_core.data.fetch.download import FetchError, NoSpaceError, obtain
from bench_core.data.fetch.fetch import fetch, how_to, problems, state
from bench_core.data.fetch.sources import SOURCES, Archive, DataFile, FileTree, Mirror, Source
from bench_core.data.fetch.unpack import unpack
from bench_core.data.folders import data_folder, data_root
from bench_core.errors import DataError
from tests.helpers import own_home  # noqa: F401  # switched on by being here

CONTENT = bytes(range(256)) * 4_000  # about a megabyte


def digest(content: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.delenv("EXITBENCH_DATA", raising=False)
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 5)


# --- a server on this machine ----------------------------------------------------------------------------------------


class Server:
    """Serves ``content`` with Range; ``breaks`` holds after how many bytes the next answers end too early."""

    def __init__(self):
        self.content, self.breaks, self.ranges, self.range_support = CONTENT, [], [], True
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path != "/data.bin":
                    self.send_error(404)
                    return
                asked = self.headers.get("Range")
                outer.ranges.append(asked)
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and outer.range_support else 0
                if start and start >= len(outer.content):
                    self.send_error(416)
                    return
                body = outer.content[start:]
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(outer.content) - 1}/{len(outer.content)}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: outer.breaks.pop(0)] if outer.breaks else body)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/data.bin"


@pytest.fixture
def server():
    found = Server()
    thread = threading.Thread(target=found.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.http.shutdown()
    thread.join()
    found.http.server_close()


def archive_of(server, **changes):
    whole = Archive("data.bin", "(.*)", r"\1", digest(CONTENT), size=len(CONTENT), url=server.url)
    return replace(whole, **changes)


def test_a_download_is_checked_and_gets_its_name_at_the_end(server, tmp_path):
    path = obtain(archive_of(server), tmp_path)
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["data.bin"]


def test_a_broken_connection_is_continued_where_it_ended(server, tmp_path):
    server.breaks = [300_000, 200_000]
    assert obtain(archive_of(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_a_stopped_download_is_continued_by_the_next_command(server, tmp_path):
    server.breaks = [100_000] * download.ATTEMPTS
    with pytest.raises(FetchError, match="the same command continues"):
        obtain(archive_of(server), tmp_path)
    assert not (tmp_path / "data.bin").exists()
    server.ranges.clear()
    assert obtain(archive_of(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={100_000 * download.ATTEMPTS}-"]


def test_a_server_without_ranges_is_asked_for_everything(server, tmp_path):
    server.range_support = False
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:1000])
    assert obtain(archive_of(server), tmp_path).read_bytes() == CONTENT


def test_a_whole_part_is_not_fetched_again(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    assert obtain(archive_of(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges == []


def test_a_whole_part_of_unknown_size_is_taken_when_nothing_is_left(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    assert obtain(archive_of(server, size=None), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "content", [CONTENT[:-1] + b"!", CONTENT + b"more", b"<html>log in</html>"], ids=["altered", "longer", "page"]
)
def test_another_content_is_refused_and_removed(server, tmp_path, content):
    server.content = content
    with pytest.raises(FetchError) as refused:
        obtain(archive_of(server), tmp_path)
    assert "expected" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("data.bin*"))


def test_found_and_expected_digest_are_named(server, tmp_path):
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(FetchError) as refused:
        obtain(archive_of(server), tmp_path)
    assert digest(CONTENT) in str(refused.value)
    assert digest(server.content) in str(refused.value)


def test_a_wrong_file_under_the_final_name_is_refused_and_kept(server, tmp_path):
    (tmp_path / "data.bin").write_bytes(b"mine")
    with pytest.raises(FetchError, match=r"data\.bin: 4 bytes, expected 1,024,000"):
        obtain(archive_of(server), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == b"mine"


def test_a_missing_page_is_one_line(server, tmp_path):
    with pytest.raises(FetchError, match="404"):
        obtain(archive_of(server, url=server.url + "x"), tmp_path)


def test_a_full_disk_is_said_with_the_bytes_needed_and_nothing_is_left(server, tmp_path, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(NoSpaceError, match=r"no space left; data\.bin needs 1,024,000 bytes"):
        obtain(archive_of(server), tmp_path)
    assert not list(tmp_path.glob("data.bin*"))


def test_a_disk_that_fills_up_on_the_way_is_said_too(server, tmp_path, monkeypatch):
    real = Path.open

    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda p, *a, **k: Full() if p.suffix == ".part" else real(p, *a, **k))
    with pytest.raises(NoSpaceError, match="needs 1,024,000 bytes"):
        obtain(archive_of(server), tmp_path)
    assert not list(tmp_path.glob("data.bin*"))


# --- package clients -------------------------------------------------------------------------------------------------


def client(folder, script):
    """A package client of our own in the search path, which notes its arguments."""
    program = folder / "bin" / "packer"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {folder}/arguments\n{script}\n")
    program.chmod(0o755)
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


def packed(**changes):
    return replace(
        Archive("thing-1.0.tgz", "(.*)", r"\1", digest(b"thing"), command=("packer", "pack", "a b;c")), **changes
    )


def test_a_package_client_is_run_with_a_list_of_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", client(tmp_path, "printf thing > thing-1.0.tgz"))
    assert obtain(packed(), tmp_path / "to").read_bytes() == b"thing"
    assert (tmp_path / "arguments").read_text().splitlines() == ["pack", "a b;c"]
    assert [entry.name for entry in (tmp_path / "to").iterdir()] == ["thing-1.0.tgz"]


@pytest.mark.parametrize(
    ("script", "words"),
    [("echo no such package >&2; exit 3", "no such package"), ("true", "no archive"), ("printf x > t.tgz", "expected")],
    ids=["fails", "writes nothing", "writes another"],
)
def test_a_client_that_fails_is_one_line(tmp_path, monkeypatch, script, words):
    monkeypatch.setenv("PATH", client(tmp_path, script))
    with pytest.raises(FetchError, match=words):
        obtain(packed(), tmp_path / "to")
    assert list((tmp_path / "to").iterdir()) == []


def test_a_client_that_is_not_installed_is_named(tmp_path):
    with pytest.raises(FetchError, match="no-such-client is not installed"):
        obtain(packed(command=("no-such-client", "x")), tmp_path)


# --- archives --------------------------------------------------------------------------------------------------------

WANTED = Archive("a", r"top/(.*\.bin)", r"\1")


def tar_of(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def zip_of(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


MEMBERS = {"top/a.bin": b"first", "top/deep/b.bin": b"second", "top/readme.txt": b"no"}


@pytest.mark.parametrize(("name", "write"), [("a.tar.gz", tar_of), ("a.tgz", tar_of), ("a.zip", zip_of)])
def test_wanted_members_are_unpacked_and_listed(tmp_path, name, write):
    path = write(tmp_path / name, MEMBERS)
    target = tmp_path / "to"
    target.mkdir()
    found = unpack(path, WANTED, target)
    assert {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if p.is_file()} == {
        "a.bin": b"first",
        "deep/b.bin": b"second",
    }
    assert found["a.bin"] == (5, hashlib.sha256(b"first").hexdigest())


def test_archives_within_archives_are_unpacked_where_that_is_said(tmp_path):
    inner = zip_of(tmp_path / "inner.zip", {"top/a.bin": b"inside"}).read_bytes()
    path = zip_of(tmp_path / "a.zip", {"x/inner.zip": inner, "__MACOSX/._inner.zip": b"junk"})
    target = tmp_path / "to"
    target.mkdir()
    unpack(path, replace(WANTED, nested=True), target)
    assert [p.name for p in target.rglob("*")] == ["a.bin"]


UNSAFE = {
    "absolute": {"/etc/x.bin": b"x"},
    "upwards": {"top/../../x.bin": b"x"},
    "symbolic link": {"top/x.bin": link("top/x.bin", "/etc/passwd")},
    "hard link": {"top/x.bin": link("top/x.bin", "top/y.bin", tarfile.LNKTYPE)},
    "device": {"top/x.bin": link("top/x.bin", "", tarfile.CHRTYPE)},
}


@pytest.mark.parametrize("members", UNSAFE.values(), ids=UNSAFE.keys())
def test_an_unsafe_tar_is_refused(tmp_path, members):
    target = tmp_path / "to"
    target.mkdir()
    with pytest.raises(DataError, match=r"a\.tar\.gz: member"):
        unpack(tar_of(tmp_path / "a.tar.gz", members), WANTED, target)
    assert not list(tmp_path.rglob("x.bin"))


@pytest.mark.parametrize("name", ["/x.bin", "../x.bin", "top\\..\\x.bin"])
def test_an_unsafe_zip_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=r"a\.zip: member"):
        unpack(zip_of(tmp_path / "a.zip", {name: b"x"}), WANTED, tmp_path)


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("top/x.bin")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="link or a device"):
        unpack(path, WANTED, tmp_path)


@pytest.mark.parametrize("write", [tar_of, zip_of])
def test_more_than_the_limit_is_refused(tmp_path, write):
    name = "a.zip" if write is zip_of else "a.tgz"
    path = write(tmp_path / name, {"top/a.bin": bytes(2_000_000)})
    with pytest.raises(DataError, match="unpacks to more than 1,000,000 bytes"):
        unpack(path, replace(WANTED, limit=1_000_000), tmp_path)


@pytest.mark.parametrize("content", [b"", b"rubbish", b"PK\x03\x04rubbish", b"\x1f\x8brubbish"])
@pytest.mark.parametrize("name", ["a.tgz", "a.zip"])
def test_a_damaged_archive_is_a_data_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(name)):
        unpack(tmp_path / name, WANTED, tmp_path)


def test_half_an_archive_is_a_data_error(tmp_path):
    path = tar_of(tmp_path / "a.tgz", {"top/a.bin": os.urandom(100_000)})
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(DataError, match=r"a\.tgz: damaged"):
        unpack(path, WANTED, tmp_path)


def test_an_archive_of_something_else_is_refused(tmp_path):
    with pytest.raises(DataError, match="nothing of what is wanted"):
        unpack(tar_of(tmp_path / "a.tgz", {"other": b"x"}), WANTED, tmp_path)


# --- fetch and verify ------------------------------------------------------------------------------------------------

FILES = {"a.bin": b"first", "deep/b.bin": b"second"}


def listed_source(*mirrors, **changes):
    files = tuple(DataFile(name, len(content), digest(content)) for name, content in FILES.items())
    whole = Source("toy", (1, 1, 1), "MIT", "nobody, 2026", "https://example.org", files=files, mirrors=mirrors)
    return replace(whole, by_hand="the two files", **changes)


def mirror_of(path, **changes):
    archive = Archive(path.name, r"top/(.*\.bin)", r"\1", digest(path.read_bytes()), size=path.stat().st_size)
    return Mirror("a mirror", (replace(archive, **changes),))


@pytest.fixture
def archive(tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    return tar_of(folder / "toy.tgz", MEMBERS)


def whole():
    folder = data_folder("toy")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.bin")} == FILES


def test_an_archive_in_a_local_folder_is_used_and_kept(archive):
    source = listed_source(mirror_of(archive))
    assert state(source) == "absent"
    assert fetch(source, archive.parent) == data_folder("toy")
    assert whole()
    assert archive.exists()
    assert (state(source), problems(source, data_folder("toy"))) == ("here", [])
    assert [p.name for p in data_root().iterdir()] == ["toy"]


def test_an_archive_in_the_data_sets_own_folder_is_used(archive):
    target = data_folder("toy")
    target.mkdir(parents=True)
    archive.rename(target / archive.name)
    fetch(listed_source(Mirror("m", (Archive("toy.tgz", r"top/(.*\.bin)", r"\1"),))))
    assert whole()


def test_unpacked_files_in_a_local_folder_are_copied(tmp_path):
    for name, content in FILES.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / f"{name}").write_bytes(content)
    fetch(listed_source(), tmp_path / "mine")
    assert whole()


def test_an_archive_is_fetched_and_removed_once_unpacked(server, archive):
    server.content = archive.read_bytes()
    server.breaks = [10]
    fetch(listed_source(mirror_of(archive, url=server.url)))
    assert whole()
    assert not any((data_root() / ".downloads").rglob("*.tgz"))


def test_the_next_mirror_is_tried(archive, server):
    server.content = b"<html>"
    bad = mirror_of(archive, url=server.url)
    good = mirror_of(archive, command=("cp", str(archive), "copy.tgz"))
    fetch(listed_source(bad, good))
    assert whole()


def test_what_is_there_is_left_alone(archive):
    source = listed_source(mirror_of(archive))
    fetch(source, archive.parent)
    archive.unlink()
    assert fetch(source) == data_folder("toy")


def test_an_altered_file_is_named_and_fetched_again(archive):
    source = listed_source(mirror_of(archive))
    fetch(source, archive.parent)
    (data_folder("toy") / "a.bin").write_bytes(b"FIRST")
    (found,) = problems(source, data_folder("toy"))
    assert str(found) == f"{data_folder('toy')}/a.bin: altered: {digest(b'FIRST')}, expected {digest(b'first')}"
    (data_folder("toy") / "deep" / "b.bin").unlink()
    assert [problem.missing for problem in problems(source, data_folder("toy"))] == [False, True]
    assert state(source) == "incomplete"


def test_altered_and_missing_files_are_replaced(archive):
    files = {"a.bin": b"first"}
    source = replace(
        listed_source(mirror_of(archive)),
        files=tuple(DataFile(name, len(content), digest(content)) for name, content in files.items()),
    )
    fetch(source, archive.parent)
    (data_folder("toy") / "a.bin").write_bytes(b"FIRST")
    fetch(source, archive.parent)
    assert problems(source, data_folder("toy")) == []


def test_a_packed_file_counts_by_its_content(tmp_path):
    source = listed_source()
    for name, content in FILES.items():
        path = tmp_path / f"{name}.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(content))
    assert problems(source, tmp_path) == []
    (tmp_path / "a.bin.gz").write_bytes(gzip.compress(b"other"))
    assert "altered" in str(problems(source, tmp_path)[0])
    (tmp_path / "a.bin.gz").write_bytes(b"\x1f\x8brubbish")
    assert "can't be read" in str(problems(source, tmp_path)[0])


def test_a_mirror_with_other_files_leaves_nothing_behind(tmp_path):
    path = tar_of(tmp_path / "toy.tgz", {"top/a.bin": b"first"})
    with pytest.raises(DataError, match=r"deep/b\.bin: missing"):
        fetch(listed_source(mirror_of(path)), tmp_path)
    assert not data_folder("toy").exists()
    assert not list(data_root().glob(".fetching-*"))


def test_no_mirror_gives_every_reason_in_one_line(archive, server):
    with pytest.raises(DataError) as refused:
        fetch(listed_source(mirror_of(archive, url=server.url + "x"), mirror_of(archive, command=("no-such-client",))))
    for words in ("404", "no-such-client is not installed"):
        assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_full_disk_while_unpacking_says_what_is_needed_and_leaves_nothing(archive, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetching, "unpack", full)
    with pytest.raises(NoSpaceError, match=r"toy needs about [\d,]+ bytes"):
        fetch(listed_source(mirror_of(archive)), archive.parent)
    assert list(data_root().iterdir()) == []


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        fetch(listed_source(), tmp_path / "absent")


def tree_source(*mirrors):
    trees = (FileTree("Train/*/*.bin", 3),)
    return replace(listed_source(*mirrors), files=(), trees=trees)


@pytest.fixture
def tree_archive(tmp_path):
    members = {f"top/Train/{n}/{n}.bin": bytes([n] * 10) for n in range(3)}
    return tar_of(tmp_path / "toy.tgz", members)


def test_a_tree_is_counted_and_checked_against_its_inventory(tree_archive):
    source = tree_source(mirror_of(tree_archive))
    folder = fetch(source, tree_archive.parent)
    assert problems(source, folder) == []
    (folder / "Train" / "1" / "1.bin").write_bytes(bytes(10))
    assert "altered: sha256" in str(problems(source, folder)[0])
    (folder / "Train" / "1" / "1.bin").write_bytes(b"")
    assert "altered: 0 bytes, expected 10" in str(problems(source, folder)[0])
    (folder / "Train" / "1" / "1.bin").unlink()
    assert [str(p).rsplit(": ")[-1] for p in problems(source, folder)] == ["2 files, expected 3", "missing"]


def test_half_a_tree_is_never_written_into(tree_archive):
    mine = data_folder("toy") / "Train" / "0" / "mine.bin"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(DataError, match="move it away"):
        fetch(tree_source(mirror_of(tree_archive)), tree_archive.parent)
    assert mine.read_bytes() == b"mine"


# --- the manifest ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
def test_a_source_says_all_it_should(source):
    assert source.licence
    assert source.citation
    assert source.by_hand
    assert source.homepage.startswith("http")
    text = how_to(source)
    assert len(text.splitlines()) <= 40
    for archive in (archive for mirror in source.mirrors for archive in mirror.archives):
        re.compile(archive.pick)
        assert bool(archive.url) != bool(archive.command)
        assert archive.digest or archive.command[0] == "apt-get"
        assert archive.name in text
    for file in source.files:
        assert file.digest in text


@pytest.mark.parametrize(
    ("name", "member", "place"),
    [
        ("cifar-10", "cifar-10-batches-bin/data_batch_3.bin", "data_batch_3.bin"),
        ("cifar-10", "cifar-10-batches-bin/readme.html", None),
        ("cifar-100", "cifar-100-binary/train.bin", "train.bin"),
        ("tiny-imagenet", "tiny-imagenet-200/train/n01/images/n01_0.JPEG", "train/n01/images/n01_0.JPEG"),
        ("tiny-imagenet", "tiny-imagenet-200/val/val_annotations.txt", "val/val_annotations.txt"),
        ("tiny-imagenet", "tiny-imagenet-200/test/images/test_0.JPEG", None),
        ("n-mnist", "Train/0/00002.bin", "Train/0/00002.bin"),
        ("n-mnist", "__MACOSX/Train/0/00002.bin", None),
        ("n-caltech101", "Caltech101/Faces_easy/image_0001.bin", "Caltech101/Faces_easy/image_0001.bin"),
        ("n-caltech101", "x/Caltech101/ant/image_0001.bin", "Caltech101/ant/image_0001.bin"),
        ("cifar10-dvs", "airplane/cifar10_airplane_0.aedat4", "airplane/cifar10_airplane_0.aedat4"),
        ("cifar10-dvs", "airplane/cifar10_bird_0.aedat4", None),
        ("dvs128-gesture", "ibmGestureTrain/user01_led/0.npy", "ibmGestureTrain/user01_led/0.npy"),
    ],
)  # fmt: skip
def test_members_of_the_real_archives_find_their_places(name, member, place):
    archive = SOURCES[name].mirrors[0].archives[0]
    match = re.fullmatch(archive.pick, member)
    assert (match and match.expand(archive.place)) == place
