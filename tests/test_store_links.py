"""Links, FIFOs, sockets and devices below a store: nothing outside is touched, nothing hangs, each is one line."""

import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench_core.errors import ExitBenchError, StoreError, TraceError
from bench_core.store.inventory import choose, entries, prune, verify
from bench_core.store.local import Store, read_artifact
from bench_core.store.paths import KINDS, LOCKS, UNSENT
from bench_core.store.remote import RemoteStore
from bench_core.trace.bundles import export_bundle, import_bundle
from bench_core.trace.files import load_trace
from bench_core.trace.trace import SCHEMA
from bench_core.util.digests import json_digest
from tests.helpers.processes import completed, environment

KEY, NEW, OTHER = (json_digest(name) for name in ("held", "new", "another"))
TENSORS = {"logits": torch.arange(24.0).reshape(2, 3, 4), "labels": torch.tensor([1, 3])}
HEADER = {"schema": SCHEMA, "workload": "small", "split": "test", "variant": "{}"}


def fill(root):
    """A store with an artifact of every kind, and a lock that nobody holds."""
    store = Store(root, zoo=None)
    for kind in KINDS:
        store.put(kind, KEY, TENSORS, {"history": [], "trace": OTHER}, HEADER)
    (root / LOCKS).mkdir()
    (root / LOCKS / f"networks-{KEY}").touch()
    (root / UNSENT).mkdir()
    (root / UNSENT / f"networks-{KEY}").touch()
    return store


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Such a store to copy."""
    return fill(tmp_path_factory.mktemp("filled") / "home").root


@pytest.fixture
def home(filled, tmp_path):
    """Such a store to do harm to."""
    return Store(Path(shutil.copytree(filled, tmp_path / "home")), zoo=None)


@pytest.fixture(autouse=True)
def _unflushed(monkeypatch):
    """No test here cuts the power, and a busy disk takes its time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def outside(filled, tmp_path):
    """Somebody else's folder, in which everything is called as in a store."""
    folder = tmp_path / "outside"
    folder.mkdir()
    shutil.copytree(filled, folder / "store")
    for kind in KINDS:
        (folder / LOCKS / f"{kind}-{KEY}").parent.mkdir(exist_ok=True)
        (folder / LOCKS / f"{kind}-{KEY}").write_text("a stranger's")
        (folder / "store" / kind / KEY[:2] / ".writing-0123").mkdir()
        (folder / "store" / kind / KEY[:2] / ".writing-0123" / "half").write_text("a stranger's")
    damaged = folder / "damaged.safetensors"
    damaged.write_bytes(b"nothing")
    (folder / ".writing-0123").mkdir()
    (folder / ".writing-0123" / "half").write_text("a stranger's")
    (folder / "a file").write_text("a stranger's")
    return folder


def contents(folder):
    """Everything in a folder: type, identity, date of change and bytes."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (status.st_mode, status.st_ino, status.st_mtime_ns, content)
    return found


def link(place, target):
    """Put a link where something else was."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


def held(root, kind="networks"):
    return Store(root, zoo=None).path(kind, KEY)


ATTACKS = {
    "locks": lambda root, outside: link(root / LOCKS, outside / LOCKS),
    "locks, relative": lambda root, outside: link(root / LOCKS, Path(os.path.relpath(outside / LOCKS, root))),
    "locks, through another link": lambda root, outside: (
        link(root.parent / "between", outside / LOCKS),
        link(root / LOCKS, root.parent / "between"),
    ),
    "locks, missing there": lambda root, outside: link(root / LOCKS, outside / "missing"),
    "unsent": lambda root, outside: link(root / UNSENT, outside / LOCKS),
    "unsent, missing there": lambda root, outside: link(root / UNSENT, outside / "missing"),
    **{f"kind {kind}": lambda root, outside, kind=kind: link(root / kind, outside / "store" / kind) for kind in KINDS},
    "kind, missing there": lambda root, outside: link(root / "networks", outside / "missing"),
    "kind, a loop": lambda root, outside: link(root / "networks", root / "networks"),
    "two letters": lambda root, outside: link(held(root).parent, outside / "store" / "networks" / KEY[:2]),
    "two letters of what is new": lambda root, outside: link(
        Store(root, zoo=None).path("networks", NEW).parent, outside / "store" / "networks" / KEY[:2]
    ),
    "artifact": lambda root, outside: link(held(root), held(outside / "store")),
    "artifact, damaged there": lambda root, outside: link(held(root), outside / "damaged.safetensors"),
    "artifact, missing there": lambda root, outside: link(held(root), outside / "missing"),
    "artifact, a folder there": lambda root, outside: link(held(root), outside / "store"),
    "part of a trace": lambda root, outside: link(held(root, "trace-parts"), held(outside / "store", "trace-parts")),
    "lock": lambda root, outside: link(root / LOCKS / f"networks-{NEW}", outside / "a file"),
    "lock, missing there": lambda root, outside: link(root / LOCKS / f"networks-{NEW}", outside / "missing"),
    "lock, a folder there": lambda root, outside: link(root / LOCKS / f"networks-{KEY}", outside),
    "note": lambda root, outside: link(root / UNSENT / f"networks-{NEW}", outside / "a file"),
    "note, missing there": lambda root, outside: link(root / UNSENT / f"networks-{NEW}", outside / "missing"),
    "unfinished": lambda root, outside: link(root / ".writing-0123", outside / ".writing-0123"),
    "unfinished beside an artifact": lambda root, outside: link(held(root).parent / ".writing-0", outside),
    "in something unfinished": lambda root, outside: link(root / ".writing-0123" / "within", outside),
    "somewhere else": lambda root, outside: link(root / "backup", outside),
}


def everything_a_store_does(store, bundle):
    """Call all that reads, writes and deletes; what is refused has to be one line."""
    said = []

    def attempt(call, *arguments, **options):
        try:
            call(*arguments, **options)
        except ExitBenchError as error:
            said.append(str(error))

    def make():
        return store.put("networks", NEW, TENSORS)

    for kind in KINDS:
        attempt(store.get, kind, KEY)
        attempt(store.has, kind, KEY)
        attempt(store.local, kind, KEY)
    attempt(import_bundle, bundle, store)
    attempt(store.obtain, "networks", NEW, make)
    attempt(store.obtain, "networks", NEW, make, again=True)
    attempt(store.put, "networks", KEY, TENSORS)
    attempt(verify, store)
    attempt(lambda: choose(entries(store), [f"networks/{NEW}"]))
    attempt(store.unsent)
    attempt(prune, store, dry_run=True)
    attempt(prune, store)
    attempt(prune, store, older_than=0.0)
    for kind in KINDS:
        attempt(store.remove, kind, [KEY, NEW])
    attempt(prune, store)
    assert all(line.isprintable() for line in said)
    return said


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Artifacts of another store, in one file."""
    place = tmp_path_factory.mktemp("bundle")
    source = Store(place / "source", zoo=None)
    source.put("traces", KEY, TENSORS, header=HEADER)
    source.put("networks", NEW, TENSORS, {"workload": {"name": "small", "seed": 0}})
    export_bundle(entries(source), place / "some.tar")
    return place / "some.tar"


@pytest.mark.parametrize("shared", [False, True], ids=["folder", "shared"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_that_a_link_leads_to_is_touched(tmp_path, home, outside, bundle, attack, shared):
    root = home.root
    ATTACKS[attack](root, outside)
    before = contents(outside)
    store = RemoteStore(root, f"file://{tmp_path}/shared", zoo=None) if shared else Store(root, zoo=None)
    everything_a_store_does(store, bundle)
    assert contents(outside) == before


@pytest.mark.parametrize("attack", ["locks", "kind traces", "two letters", "artifact", "lock", "unfinished"])
def test_the_commands_leave_it_alone_and_say_so(home, outside, bundle, exitbench, monkeypatch, attack):
    root = home.root
    ATTACKS[attack](root, outside)
    before = contents(outside)
    monkeypatch.setenv("EXITBENCH_HOME", str(root))
    answers = [
        exitbench("store", *arguments)
        for arguments in (["list"], ["verify"], ["import", bundle], ["prune", "--older-than", "0"], ["prune"])
    ]
    assert contents(outside) == before
    assert "Traceback" not in "".join(answer.err for answer in answers)
    assert answers[1].code == 1
    assert "a link" in answers[1].out or "unknown" in answers[1].out
    if attack != "unfinished":  # no command looks for anything there
        assert all("is a link; left alone" in answer.err for answer in (answers[0], answers[3]))


@pytest.mark.parametrize("name", ["traces", LOCKS])
def test_what_a_linked_folder_hides_is_one_line_that_names_it(home, outside, name):
    link(home.root / name, outside)
    with pytest.raises(StoreError) as refused:
        home.obtain("traces", NEW, lambda: pytest.fail("there is no place to put it"))
    assert str(refused.value).startswith(f"{home.root / name}: is a link")


def test_a_linked_artifact_is_one_line_that_names_it(home, outside):
    link(held(home.root), held(outside / "store"))
    with pytest.raises(StoreError, match=rf"{KEY}\.safetensors: is a link"):
        home.get("networks", KEY)
    assert not home.has("networks", KEY)


def test_the_store_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    store = fill(tmp_path / "home")
    assert store.get("networks", KEY) is not None
    assert [line.split(": ")[0] for line in prune(store)] == [
        str(store.root / LOCKS / f"networks-{KEY}"),
        str(store.path("training", KEY)),
    ]
    assert (tmp_path / "home").is_symlink()
    assert len(entries(store)) == len(KINDS) - 1


def test_only_locks_are_removed_from_the_folder_of_locks(home):
    store = home
    locks = store.root / LOCKS
    strange = ["notes.txt", f"nothing-{KEY}", "networks-abc", f"networks-{KEY}.bak", f".networks-{KEY}", KEY]
    for name in strange:
        (locks / name).write_text("mine")
    folder = locks / f"traces-{KEY}"
    folder.mkdir()
    (folder / "precious").write_text("mine")
    os.mkfifo(locks / f"scores-{KEY}")
    gone = [line.split(": ")[0] for line in prune(store) if f"/{LOCKS}/" in line]
    assert gone == [str(locks / f"networks-{KEY}")]
    assert sorted(path.name for path in locks.iterdir()) == sorted([*strange, folder.name, f"scores-{KEY}"])
    assert (folder / "precious").read_text() == "mine"
    problems = "\n".join(verify(store)[1])
    assert all(f"{locks / name}: unknown" in problems for name in strange)


def test_what_others_left_unfinished_in_their_own_folders_stays(home):
    theirs = home.root / "backup" / "networks" / ".writing-0123"
    theirs.mkdir(parents=True)
    (theirs / "half").write_text("mine")
    prune(home)
    assert (theirs / "half").read_text() == "mine"


# --- FIFOs, sockets, devices ------------------------------------------------------------------------------------------

USES = """
import os, sys, torch
from pathlib import Path
from bench_core.errors import ExitBenchError
from bench_core.store.inventory import entries, prune, verify
from bench_core.store.local import Store
store = Store(Path(sys.argv[1]), zoo=None)
for name in sys.argv[2:]:
    kind, _, key = name.rpartition("-")
    make = lambda: store.put(kind, key, {"a": torch.zeros(1)})
    for call in (lambda: store.get(kind, key), lambda: store.obtain(kind, key, make)):
        try:
            call()
        except ExitBenchError as error:
            print(error)
entries(store)
print(*verify(store)[1], *prune(store), *prune(store, older_than=0.0), sep="\\n")
"""


def make_socket(path):
    here = Path.cwd()
    os.chdir(path.parent)  # an address may have 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name[:50])
        Path(path.name[:50]).rename(path.name)
    finally:
        os.chdir(here)


def make_device(path):
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero, which never ends
    except OSError:
        pytest.skip("only the superuser makes devices")


SPECIAL = {"a FIFO": os.mkfifo, "a socket": make_socket, "a folder": Path.mkdir, "a device": make_device}


def test_what_is_no_file_is_one_line_and_no_hang(home):
    """In a process of its own, which might hang."""
    places = {}
    for kind, what in zip(KINDS, SPECIAL, strict=False):
        held(home.root, kind).unlink()
        places[held(home.root, kind)] = (what, f"{kind}-{KEY}", 2)  # refused to who gets it and to who makes it
        places[home.root / LOCKS / f"{kind}-{NEW}"] = (what, f"{kind}-{NEW}", 1)
    for path, (what, _, _) in places.items():
        SPECIAL[what](path)
    names = [name for _, name, _ in places.values()]
    done = completed([sys.executable, "-c", USES, str(home.root), *names], home=home.root, cwd=home.root)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    for path, (what, _, refusals) in places.items():
        assert sum(line.startswith(f"{path}: is {what} where") for line in said) == refusals
        assert what == "a folder" or sum(line.startswith(f"{path}: is {what}; left alone") for line in said) == 1
        assert path.exists()
        assert not path.is_file()


@pytest.mark.parametrize("what", ["a FIFO", "a socket", "a device"])
def test_a_bundle_and_a_trace_that_are_no_files_are_one_line(tmp_path, what):
    path = tmp_path / "given"
    SPECIAL[what](path)
    with pytest.raises(StoreError, match="no regular file") as refused:
        import_bundle(path, Store(tmp_path / "home", zoo=None))
    assert str(refused.value).isprintable()
    for name in ("given.safetensors", "given.json"):
        (tmp_path / name).symlink_to(path)
        with pytest.raises(TraceError, match="no regular file"):
            load_trace(tmp_path / name)
    with pytest.raises(StoreError, match="no regular file"):
        read_artifact(path)


# --- two who bring and put at once ------------------------------------------------------------------------------------

LOOKS = """
import os, sys
from pathlib import Path
from bench_core.store.remote import RemoteStore
os.fsync = lambda handle: None
store = RemoteStore(Path(sys.argv[1]), sys.argv[2], zoo=None)
parent = os.getppid()
print("ready", flush=True)
while os.getppid() == parent:
    for start in ("aa", "bb"):
        assert store.get("networks", start + "0" * 62) is None
"""


def test_a_put_does_not_fail_while_others_look_for_what_is_not_there(tmp_path):
    """Into folders that are empty each time: who finds nothing there must not remove them under another's hands."""
    root, url = tmp_path / "home", f"file://{tmp_path}/shared"
    command = [sys.executable, "-c", LOOKS, str(root), url]
    lookers = [
        subprocess.Popen(command, env=environment(root), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        assert [looker.stdout.readline() for looker in lookers] == ["ready\n"] * 2
        store = RemoteStore(root, url, zoo=None)
        for number in range(60):
            key = ("aa", "bb")[number % 2] + f"{number + 1:062x}"
            store.put("networks", key, {"a": torch.zeros(1)})
            store.remove("networks", [key])
        assert [looker.poll() for looker in lookers] == [None, None], lookers[0].stderr.read()
    finally:
        for looker in lookers:
            looker.kill()
            looker.communicate()
