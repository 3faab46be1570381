"""A store shared below a URL: what one puts another finds, what is damaged there isn't used, nothing made is lost."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch

from bench_core.errors import StoreError, UsageError
from bench_core.store.inventory import choose, entries, prune, removable, remove, verify
from bench_core.store.local import Store, default_root, default_store
from bench_core.store.remote import RemoteStore
from bench_core.trace.bundles import export_bundle, import_bundle
from bench_core.util.digests import json_digest, tensors_digest
from tests.helpers import own_home  # noqa: F401  # switched on by being here

KEY, OTHER = json_digest("an artifact"), json_digest("another")
TENSORS = {"weight": torch.linspace(-1, 1, 24).reshape(2, 3, 4), "steps": torch.tensor(7)}
METADATA = {"workload": {"name": "small", "seed": 3}, "history": [{"epoch": 1}]}


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    """A place that several stores share, empty at first."""
    if request.param == "file":
        return f"file://{tmp_path}/shared/exitbench"
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    return "memory://bucket/exitbench"


@pytest.fixture
def ours(url, tmp_path):
    return RemoteStore(tmp_path / "ours", url, zoo=None)


@pytest.fixture
def theirs(url, tmp_path):
    return RemoteStore(tmp_path / "theirs", url, zoo=None)


def there(url):
    """Name below the URL, and content, of every file there."""
    filesystem, base = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache()
    names = filesystem.find(base)
    return {name.removeprefix(base).strip("/"): filesystem.cat_file(name) for name in names}


def change(url, name, content):
    filesystem, base = fsspec.core.url_to_fs(url)
    filesystem.makedirs(f"{base}/{name}".rpartition("/")[0], exist_ok=True)
    filesystem.pipe_file(f"{base}/{name}", content)


def name_of(store, kind="networks", key=KEY):
    return store.path(kind, key).relative_to(store.root).as_posix()


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def fails(*_arguments, **_more):
    raise TimeoutError("no answer\nfrom the other side")


def test_what_one_puts_another_gets_with_the_same_bytes(ours, theirs, url):
    put = ours.put("networks", KEY, TENSORS, METADATA, {"split": "test"})
    got = theirs.get("networks", KEY)
    assert got.digest == put.digest == tensors_digest(TENSORS)
    assert torch.equal(got.tensors["weight"], TENSORS["weight"])
    assert got.metadata == put.metadata
    assert got.header == {"split": "test"}
    whole = ours.path("networks", KEY).read_bytes()
    assert theirs.path("networks", KEY).read_bytes() == whole
    assert there(url) == {name_of(ours): whole}
    assert files(theirs.root) == [name_of(theirs)]


def test_what_was_brought_is_not_brought_again(ours, theirs, monkeypatch):
    ours.put("networks", KEY, TENSORS)
    theirs.get("networks", KEY)
    monkeypatch.setattr(theirs._filesystem, "get_file", fails)
    assert theirs.get("networks", KEY).digest == tensors_digest(TENSORS)


def test_what_nobody_put_is_none_and_leaves_nothing(ours, url):
    assert ours.get("networks", KEY) is None
    assert files(ours.root) == []
    assert there(url) == {}
    assert ours.shared() == {}


def test_what_another_has_made_is_not_made(ours, theirs):
    ours.put("traces", KEY, TENSORS)
    found = theirs.obtain("traces", KEY, lambda: pytest.fail("it is there"))
    assert found.digest == tensors_digest(TENSORS)


def test_what_is_removed_is_removed_for_all_and_others_keep_their_copies(ours, theirs, url):
    for store in (ours, theirs):
        store.put("training", KEY, TENSORS)
    ours.remove("training", [KEY, OTHER])
    assert there(url) == {}
    assert files(ours.root) == []
    assert theirs.get("training", KEY) is not None


def altered(content):
    middle = len(content) - 5
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "truncated": lambda content: content[:-1],
    "altered": altered,
    "empty": lambda _content: b"",
    "no artifact": lambda _content: b"<html>please log in</html>",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_there_is_named_not_used_and_made_again(ours, theirs, url, capfd, damage):
    ours.put("networks", KEY, TENSORS)
    whole = there(url)[name_of(ours)]
    change(url, name_of(ours), damage(whole))
    assert theirs.get("networks", KEY) is None
    said = capfd.readouterr().err
    assert f"{theirs.url}/{name_of(theirs)}" in said
    assert "made again" in said
    assert len(said.splitlines()) == 1
    assert files(theirs.root) == []
    theirs.obtain("networks", KEY, lambda: theirs.put("networks", KEY, TENSORS))
    assert there(url) == {name_of(ours): whole}


def test_another_artifact_under_the_name_is_not_used(ours, theirs, url, capfd):
    ours.put("networks", KEY, TENSORS)
    change(url, name_of(ours, key=OTHER), there(url)[name_of(ours)])
    assert theirs.get("networks", OTHER) is None
    assert "holds another artifact than its name says" in capfd.readouterr().err


def test_a_damaged_copy_here_is_brought_again(ours, theirs, capfd):
    ours.put("networks", KEY, TENSORS)
    theirs.get("networks", KEY)
    theirs.path("networks", KEY).write_bytes(b"nothing")
    assert theirs.get("networks", KEY).digest == tensors_digest(TENSORS)
    assert str(theirs.path("networks", KEY)) in capfd.readouterr().err
    assert verify(theirs) == (1, [])


def test_offline_brings_and_neither_makes_nor_sends(ours, url, tmp_path):
    ours.put("networks", KEY, TENSORS)
    before = there(url)
    offline = RemoteStore(tmp_path / "offline", url, zoo=None, offline=True)
    assert offline.obtain("networks", KEY, lambda: pytest.fail("offline")).digest == tensors_digest(TENSORS)
    offline.remove("networks", [KEY])
    with pytest.raises(StoreError, match="nothing is written offline"):
        offline.put("networks", OTHER, TENSORS)
    change(url, name_of(ours, "traces"), b"nothing")
    with pytest.raises(StoreError, match=r"damaged .*nothing is made offline"):
        offline.get("traces", KEY)
    assert files(offline.root) == [name_of(offline)]
    assert {name: there(url)[name] for name in before} == before


def test_a_network_that_fails_while_sending_loses_nothing(ours, theirs, url, capfd, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(ours._filesystem, "put_file", fails)
        put = ours.put("networks", KEY, TENSORS)
        said = capfd.readouterr().err
    assert put.digest == tensors_digest(TENSORS)
    (line,) = said.splitlines()
    assert f"{ours.url}/{name_of(ours)}: can't be reached (TimeoutError: no answer?from the other side)" in line
    assert "check network and credentials" in line
    assert str(ours.root) in line
    assert there(url) == {}
    assert ours.unsent() == [("networks", KEY)]
    assert verify(ours) == (1, [])

    next_run = RemoteStore(ours.root, url, zoo=None)
    assert next_run.get("networks", KEY).digest == tensors_digest(TENSORS)
    assert theirs.get("networks", KEY).digest == tensors_digest(TENSORS)
    assert next_run.unsent() == []
    assert files(ours.root) == [name_of(ours)]


def test_a_network_that_fails_while_bringing_is_one_line_and_makes_nothing_twice(ours, monkeypatch):
    monkeypatch.setattr(ours._filesystem, "get_file", fails)
    with pytest.raises(StoreError) as refused:
        ours.obtain("networks", KEY, lambda: pytest.fail("it may be there"))
    assert f"{ours.url}/{name_of(ours)}: can't be reached" in str(refused.value)
    assert "then run it again" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert files(ours.root) == []
    with monkeypatch.context() as broken:
        broken.setattr(ours._filesystem, "find", fails)
        with pytest.raises(StoreError, match="can't be reached"):
            ours.shared()


def test_where_puts_are_atomic_nothing_is_moved(ours, theirs, url, monkeypatch):
    monkeypatch.setattr(RemoteStore, "_protocols", lambda _store: ("s3", "s3a"))
    monkeypatch.setattr(ours._filesystem, "mv", fails)
    change(url, name_of(ours), b"")  # an object store has no folders to make, these two have
    ours.put("networks", KEY, TENSORS)
    assert theirs.get("networks", KEY).digest == tensors_digest(TENSORS)
    assert ours.unsent() == []


KILLED_WHILE_SENDING = """
import os, signal, sys
from pathlib import Path
import fsspec, torch
from bench_core.store.remote import RemoteStore
store = RemoteStore(Path(sys.argv[1]), sys.argv[2], zoo=None)

def half(path, target, **_):
    with open(target, "wb") as stream:
        stream.write(Path(path).read_bytes()[:100])
        stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)

store._filesystem.put_file = half
store.put("networks", sys.argv[3], {"weight": torch.ones(100)})
"""


def test_killed_while_sending_it_is_kept_here_and_sent_by_the_next_run(tmp_path):
    url = f"file://{tmp_path}/shared"
    (tmp_path / "shared").mkdir()
    command = [sys.executable, "-c", KILLED_WHILE_SENDING, str(tmp_path / "ours"), url, KEY]
    killed = subprocess.run(command, check=False, timeout=120, cwd=Path(__file__).parent.parent)
    assert killed.returncode == -signal.SIGKILL
    theirs, again = (RemoteStore(tmp_path / name, url, zoo=None) for name in ("theirs", "ours"))
    (left,) = there(url)  # half of it, under a name that no store asks for
    assert ".writing-" in left
    assert theirs.get("networks", KEY) is None
    assert theirs.shared() == {}
    assert again.unsent() == [("networks", KEY)]
    assert again.get("networks", KEY) is not None
    assert torch.equal(theirs.get("networks", KEY).tensors["weight"], torch.ones(100))
    assert theirs.shared() == {("networks", KEY): again.path("networks", KEY).stat().st_size}


PUTS = """
import sys
from pathlib import Path
import torch
from bench_core.store.remote import RemoteStore
store = RemoteStore(Path(sys.argv[1]), sys.argv[2], zoo=None)
make = lambda: store.put("networks", sys.argv[3], {"weight": torch.ones(100_000)})
for _ in range(6):
    store.obtain("networks", sys.argv[3], make, again=True)
"""


def test_two_computers_that_make_the_same_at_once_spoil_nothing(tmp_path, capfd):
    url = f"file://{tmp_path}/shared"
    command = [sys.executable, "-c", PUTS]
    both = [
        subprocess.Popen([*command, str(tmp_path / name), url, KEY], cwd=Path(__file__).parent.parent)
        for name in ("first", "second")
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    third = RemoteStore(tmp_path / "third", url, zoo=None)
    assert torch.equal(third.get("networks", KEY).tensors["weight"], torch.ones(100_000))
    assert list(there(url)) == [name_of(third)]
    assert capfd.readouterr().err == ""


def test_bundles_go_both_ways(ours, theirs, url, tmp_path):
    alone = Store(tmp_path / "alone", zoo=None)
    alone.put("networks", KEY, TENSORS, METADATA)
    export_bundle(choose(entries(alone), ["small"]), tmp_path / "small.tar")
    assert len(import_bundle(tmp_path / "small.tar", ours)) == 1
    assert theirs.get("networks", KEY).digest == tensors_digest(TENSORS)
    assert import_bundle(tmp_path / "small.tar", theirs) == []


def test_a_bundle_with_another_artifact_under_a_key_that_is_shared_is_refused(ours, theirs, tmp_path):
    ours.put("networks", KEY, TENSORS, METADATA)
    alone = Store(tmp_path / "alone", zoo=None)
    alone.put("networks", KEY, {"weight": torch.zeros(3)}, METADATA)
    export_bundle(choose(entries(alone), ["small"]), tmp_path / "small.tar")
    with pytest.raises(StoreError, match="another one under the same key"):
        import_bundle(tmp_path / "small.tar", theirs)
    assert ours.get("networks", KEY).digest == tensors_digest(TENSORS)


def test_pruning_a_copy_leaves_what_is_shared(ours, url):
    ours.put("networks", KEY, TENSORS)
    os.utime(ours.path("networks", KEY), (0, 0))
    assert len(prune(ours, older_than=1)) == 1
    assert not ours.path("networks", KEY).exists()
    assert ours.get("networks", KEY).digest == tensors_digest(TENSORS)


# --- as the environment says ---------------------------------------------------------------------------------------


@pytest.fixture
def shared_home(url, tmp_path, monkeypatch):
    monkeypatch.setenv("EXITBENCH_HOME", url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return url


def test_the_environment_names_a_folder_or_a_url(shared_home, tmp_path, monkeypatch):
    store = default_store()
    assert isinstance(store, RemoteStore)
    assert store.root == default_root()
    assert store.root.is_relative_to(tmp_path / "cache")
    monkeypatch.setenv("EXITBENCH_HOME", f"{shared_home}-2")
    assert default_root() != store.root  # what is of one place isn't taken for the other's
    monkeypatch.setenv("EXITBENCH_HOME", str(tmp_path / "folder"))
    assert type(default_store()) is Store
    assert default_store(offline=True).offline
    assert default_root() == tmp_path / "folder"


def test_list_and_verify_say_what_is_here_and_what_is_shared(shared_home, theirs, exitbench):
    theirs.put("networks", KEY, TENSORS, METADATA)
    size = theirs.path("networks", KEY).stat().st_size
    at_url = f"1 artifacts, {size} bytes at {shared_home}, checked when they are brought here"
    code, out, _ = exitbench("store", "list")
    assert code == 0
    assert any(line.split()[:3] == ["networks", KEY[:16], str(size)] for line in out.splitlines())
    assert "not here yet" in out
    assert at_url in out
    default_store().get("networks", KEY)
    code, out, _ = exitbench("store", "list")
    assert "not here yet" not in out
    assert "small seed 3" in out
    code, out, _ = exitbench("store", "verify")
    assert code == 0
    assert out.splitlines() == ["1 artifacts whole, 0 files damaged or unknown", at_url]


def test_what_is_not_sent_yet_is_said(shared_home, monkeypatch, exitbench):
    store = default_store()
    monkeypatch.setattr(store._filesystem, "put_file", fails)
    store.put("networks", KEY, TENSORS, METADATA)
    code, out, _ = exitbench("store", "verify")
    assert code == 0
    assert "1 artifacts are not sent there yet" in out


@pytest.mark.parametrize(
    ("home", "words"),
    [
        ("nosuch://bucket", "not a usable URL"),
        ("nosuch://me:secret@bucket", "nosuch://…@bucket"),
    ],
)
def test_a_url_that_cannot_be_used_is_one_line(monkeypatch, exitbench, home, words):
    monkeypatch.setenv("EXITBENCH_HOME", home)
    code, out, err = exitbench("store", "list")
    assert code == 2
    assert out == ""
    (line,) = err.splitlines()
    assert "EXITBENCH_HOME" in line
    assert words in line
    assert "secret" not in line


def test_without_fsspec_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UsageError, match=r"pip install 'exitbench\[remote\]'"):
        RemoteStore(tmp_path, "memory://bucket", zoo=None)


def test_a_copy_that_is_removed_here_stays_for_others_and_comes_back(ours, theirs, url):
    ours.put("networks", KEY, TENSORS, {"workload": {"name": "small", "seed": 0}})
    before = there(url)
    remove(ours, removable(ours, ["small"]))
    assert not ours.path("networks", KEY).exists()
    assert there(url) == before
    assert theirs.get("networks", KEY) is not None
    assert ours.get("networks", KEY) is not None


def test_what_was_not_sent_yet_and_is_removed_is_not_sent_later(ours, url):
    ours.put("networks", KEY, TENSORS)
    ours._mark("networks", KEY)
    remove(ours, removable(ours, [KEY]))
    assert ours.unsent() == []
    assert not list((ours.root / ".unsent").iterdir())
