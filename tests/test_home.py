"""Where the store and the data are: ``~`` is expanded, and where no home is known one line names EXITBENCH_HOME."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench_core.data.folders import data_root
from bench_core.errors import NoHomeError, UsageError
from bench_core.store.local import default_root, default_store
from bench_core.trace.files import save_trace
from tests.traces import make_trace

HOMELESS = ("HOME", "XDG_CACHE_HOME", "EXITBENCH_HOME", "EXITBENCH_DATA")


@pytest.fixture
def homeless(tmp_path, monkeypatch):
    """No variable says where home is, and the password file doesn't either."""

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in HOMELESS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)


# As a user whom the password file doesn't know, and who has no variable that says where home is.
SOURCE = """
import pwd, sys
from bench_core.cli import main

def unknown(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")

def run(arguments):
    sys.argv = ["exitbench", *arguments]
    try:
        main()
    except SystemExit as stop:
        return stop.code or 0

pwd.getpwuid = unknown
traces = ["--calibration", "cal.safetensors", "--test", "test.safetensors"]
print("codes", run(["store", "list"]), run(["replay", *traces, "--strategy", "seenn-i"]))
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with two traces."""
    for name, seed in (("cal", 1), ("test", 2)):
        save_trace(make_trace("strong", seed, 60, 4, 5), tmp_path / f"{name}.safetensors")
    return tmp_path


def test_no_home_is_one_line_that_names_the_variable(homeless, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for where in (default_root, default_store, data_root):
        with pytest.raises(NoHomeError, match=r"HOME is not set.*set EXITBENCH_HOME to a folder") as refusal:
            where()
        assert str(refusal.value).isprintable()
    monkeypatch.setenv("HOME", "")
    with pytest.raises(NoHomeError, match="EXITBENCH_HOME"):
        default_root()
    assert list(tmp_path.iterdir()) == []


def test_a_url_needs_a_home_for_its_own_folder_too(homeless, monkeypatch):
    monkeypatch.setenv("EXITBENCH_HOME", "memory://somewhere")
    with pytest.raises(NoHomeError, match="EXITBENCH_HOME"):
        default_root()


def test_a_cache_folder_or_a_home_of_ones_own_is_enough(homeless, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/cache")
    assert default_root() == Path("/somewhere/cache/exitbench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("EXITBENCH_DATA", "/somewhere/data")
    assert data_root() == Path("/somewhere/data")
    monkeypatch.setenv("EXITBENCH_HOME", "/somewhere/home")
    assert default_root() == Path("/somewhere/home")


@pytest.mark.parametrize("variable", ["EXITBENCH_HOME", "EXITBENCH_DATA"])
def test_a_tilde_is_the_users_home(monkeypatch, variable):
    where = {"EXITBENCH_HOME": default_root, "EXITBENCH_DATA": data_root}[variable]
    monkeypatch.setenv("HOME", "/somewhere")
    for given, expected in (
        ("~/store", "/somewhere/store"),
        ("~", "/somewhere"),
        ("a/~/b", "a/~/b"),
        ("./~", "~"),
        ("~root/x", f"{Path('~root').expanduser()}/x"),
    ):
        monkeypatch.setenv(variable, given)
        assert where() == Path(expected)


@pytest.mark.parametrize("variable", ["EXITBENCH_HOME", "EXITBENCH_DATA"])
@pytest.mark.parametrize("given", ["~/store", "~", "~nobody-of-this-name/store"])
def test_a_tilde_without_a_home_is_refused(homeless, monkeypatch, variable, given):
    monkeypatch.setenv(variable, given)
    with pytest.raises(UsageError, match=f"{variable}={given}: there is no home folder of ~"):
        {"EXITBENCH_HOME": default_root, "EXITBENCH_DATA": data_root}[variable]()


def test_a_user_without_a_home_is_told_and_can_replay(folder):
    done = subprocess.run(
        [sys.executable, "-c", SOURCE],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name not in HOMELESS},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["codes 2 0"], done.stderr
    assert "average exit timestep" in done.stdout
    refused, warned = done.stderr.splitlines()
    assert refused.startswith("exitbench: the store has no folder")
    assert warned.startswith("nothing is kept: the store has no folder")
    assert refused.count("EXITBENCH_HOME") == warned.count("EXITBENCH_HOME") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["cal.safetensors", "test.safetensors"]
