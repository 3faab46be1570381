"""Servers that never answer, buckets that don't exist, sends that fail again and again, passwords in URLs."""

import socket
import threading
import time

import fsspec
import pytest
import torch

from bench_core.errors import StoreError, UsageError
from bench_core.store.remote import RemoteStore
from bench_core.store.remote_files import RemoteFiles, scrubbed, without_password
from bench_core.util.digests import json_digest
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.processes import completed, run_command
from tests.helpers.suites import write_suite

KEYS = [json_digest(number) for number in range(20)]
TENSORS = {"weight": torch.arange(6.0)}


@pytest.fixture
def silent():
    """The port of a server that accepts connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def accept():
            while True:
                try:
                    held.append(server.accept())
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    for connection, _ in held:
        connection.close()


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A store whose file system does what a test says."""
    monkeypatch.setenv("EXITBENCH_REMOTE_SECONDS", "0.3")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    return RemoteStore(tmp_path / "here", "memory://bucket/exitbench", zoo=None)


def never(*_arguments, **_more):
    time.sleep(5)


# --- servers that never answer ---------------------------------------------------------------------------------------


def test_a_server_that_never_answers_is_one_line_and_nothing_is_trained(silent, tmp_path, monkeypatch):
    monkeypatch.setenv("EXITBENCH_REMOTE_SECONDS", "1.5")
    write_suite(tmp_path / "tiny.toml")
    command = run_command("tiny.toml", "--output", "board")
    done = completed(command, home=f"ftp://me:s3cret@127.0.0.1:{silent}/exitbench", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "can't be reached (SilentError: no answer for 1.5 s (EXITBENCH_REMOTE_SECONDS sets" in line
    assert f"ftp://…@127.0.0.1:{silent}/exitbench" in line
    assert "s3cret" not in done.stderr + done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


@pytest.mark.parametrize("call", ["get_file", "find", "pipe_file"])
def test_whatever_call_hangs_is_given_up(remote, monkeypatch, call):
    monkeypatch.setattr(remote._filesystem, call, never)
    asks = {
        "get_file": lambda: remote.get("networks", KEYS[0]),
        "find": remote.shared,
        "pipe_file": lambda: remote.obtain("networks", KEYS[0], lambda: pytest.fail("made")),
    }
    start = time.monotonic()
    with pytest.raises(StoreError, match=r"can't be reached \(SilentError: no answer for 0.3 s") as refused:
        asks[call]()
    assert "\n" not in str(refused.value)
    assert time.monotonic() - start < 4  # the call itself takes 5


def test_once_it_is_silent_nobody_waits_again(remote, monkeypatch):
    asked = []
    monkeypatch.setattr(remote._filesystem, "get_file", lambda *_a, **_m: asked.append(1) or never())
    for key in KEYS:
        with pytest.raises(StoreError, match="no answer"):
            remote.get("networks", key)
    assert asked == [1]


def test_a_slow_transfer_that_moves_is_not_given_up(remote, tmp_path, monkeypatch):
    """Whether the file system says how far it is, or the file grows."""

    def told(_remote, here, callback, **_more):
        for _ in range(8):
            time.sleep(0.1)
            callback.relative_update(1)
        here = open(here, "wb")  # noqa: PTH123, SIM115
        here.close()

    def grows(_remote, here, **_more):
        with open(here, "wb", buffering=0) as file:  # noqa: PTH123
            for _ in range(8):
                time.sleep(0.1)
                file.write(b"x")

    for number, slow in enumerate((told, grows)):
        monkeypatch.setattr(remote._filesystem, "get_file", slow)
        remote._files.get("anything", tmp_path / str(number))
        assert (tmp_path / str(number)).exists()


@pytest.mark.parametrize("wrong", ["soon", "0", "-3", "nan", "inf"])
def test_the_time_has_to_be_a_number(monkeypatch, wrong):
    monkeypatch.setenv("EXITBENCH_REMOTE_SECONDS", wrong)
    with pytest.raises(UsageError, match=f"EXITBENCH_REMOTE_SECONDS={wrong}: not a number of seconds above 0"):
        RemoteFiles("memory://bucket")


# --- sends that fail, and places that don't exist --------------------------------------------------------------------


def refuses(*_arguments, **_more):
    raise ConnectionError("no")


@pytest.mark.parametrize("how", [never, refuses], ids=["silent", "refuses"])
def test_after_a_failed_send_there_is_no_storm_and_all_is_sent_once_it_answers(remote, monkeypatch, capfd, how):
    sent = []

    def fails(*_arguments, **_more):
        sent.append(1)
        how()

    now = [1000.0]
    monkeypatch.setattr("bench_core.store.remote._now", lambda: now[0])
    with monkeypatch.context() as broken:
        broken.setattr(remote._filesystem, "put_file", fails)
        for key in KEYS:  # as epochs of a training
            remote.put("training", key, TENSORS)
            assert remote.get("training", key) is not None
            remote.remove("training", [key])
        remote.put("networks", KEYS[0], TENSORS)
        assert sent == [1]
        (line,) = capfd.readouterr().err.splitlines()
        assert line.endswith("tries again after 5 min")
        now[0] += 301
        remote.put("networks", KEYS[1], TENSORS)
        assert sent == [1, 1]
        assert capfd.readouterr().err.rstrip().endswith("tries again after 10 min")
    now[0] += 601
    remote.put("networks", KEYS[2], TENSORS)
    assert remote.unsent() == []
    assert {key for _, key in remote.shared()} == set(KEYS[:3])


@pytest.mark.parametrize("kind", ["networks", "traces", "training", "policies"])
def test_a_bucket_that_does_not_exist_is_refused_before_anything_is_made(remote, monkeypatch, kind):
    def missing(*_arguments, **_more):
        raise FileNotFoundError("The specified bucket does not exist")

    monkeypatch.setattr(remote._filesystem, "pipe_file", missing)
    words = r"memory://bucket/exitbench: there is no such place; create the bucket or folder.*does not exist"
    for _ in range(2):
        with pytest.raises(StoreError, match=words):
            remote.obtain(kind, KEYS[0], lambda: pytest.fail("made"))


@pytest.mark.parametrize("error", [PermissionError("AccessDenied"), NotImplementedError()])
def test_what_may_only_be_read_is_said_once(remote, monkeypatch, capfd, error):
    def forbids(*_arguments, **_more):
        raise error

    monkeypatch.setattr(remote._filesystem, "pipe_file", forbids)
    monkeypatch.setattr(remote._filesystem, "put_file", lambda *_a, **_m: pytest.fail("sent"))
    for key in KEYS[:3]:
        remote.obtain("networks", key, lambda key=key: remote.put("networks", key, TENSORS))
    (line,) = capfd.readouterr().err.splitlines()
    assert "can only be read; what is made is kept in" in line


def test_what_tries_the_place_leaves_nothing_there(remote):
    remote.obtain("networks", KEYS[0], lambda: remote.put("networks", KEYS[0], TENSORS))
    assert list(remote._filesystem.find("/bucket")) == [
        f"/bucket/exitbench/networks/{KEYS[0][:2]}/{KEYS[0]}.safetensors"
    ]


# --- passwords -------------------------------------------------------------------------------------------------------

URLS = {
    "s3://bucket/exitbench": "s3://bucket/exitbench",
    "s3://me@bucket/a@b": "s3://…@bucket/a@b",
    "ftp://me:s3cret@host:21/x": "ftp://…@host:21/x",
    "ftp://me:s3%2Fcret@host/x/": "ftp://…@host/x",
    "ftp://me:s3/cr@et@host/x": "ftp://…@host/x",
    "ftp://me:s3c@ret@host/x": "ftp://…@host/x",
    "simplecache::ftp://me:s3cret@host/x": "simplecache::ftp://…@host/x",
    "https://host/x?token=s3cret&more=1": "https://host/x?…",
    "s3://host:9000/a@b": "s3://host:9000/a@b",
}


@pytest.mark.parametrize("url", URLS)
def test_what_is_shown_of_a_url_has_no_password(url):
    assert without_password(url) == URLS[url]
    for secret in ("s3cret", "s3%2Fcret", "s3/cr@et", "s3c@ret"):
        if secret in url:
            assert secret not in scrubbed(f"530 Login failed: {url} ({secret!r})", url)


def test_an_error_that_quotes_the_password_is_printed_without(remote, monkeypatch, tmp_path):
    store = RemoteStore(tmp_path / "here", "memory://me:s3cret@bucket/x", zoo=None)

    def fails(*_arguments, **_more):
        raise ConnectionError("me:s3cret may not log in with s3cret")

    monkeypatch.setattr(store._filesystem, "get_file", fails)
    with pytest.raises(StoreError, match="can't be reached") as refused:
        store.get("networks", KEYS[0])
    assert "s3cret" not in str(refused.value)
    assert refused.value.__cause__ is None
