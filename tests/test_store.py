"""The store: artifacts come back whole or not at all, and what is damaged is named and made again."""

import json
import math
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from bench_core.errors import StoreError
from bench_core.store.local import (
    DamagedArtifactError,
    Store,
    copy_artifact,
    default_root,
    read_artifact,
    remove_damaged,
)
from bench_core.util import files as files_module
from bench_core.util import safetensors_files as tensor_files
from bench_core.util.digests import canonical_json, json_digest, tensor_digest, tensors_digest
from bench_core.util.safetensors_files import write_safetensors
from tests.helpers import own_home  # noqa: F401  # switched on by being here

KEY = json_digest("an artifact")
TENSORS = {
    "weight": torch.linspace(-1, 1, 24).reshape(2, 3, 4),
    "steps": torch.tensor(7),
    "mask": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
}
METADATA = {"history": [{"epoch": 1, "loss": 0.25}], "name": "Grüße"}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", zoo=None)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def flip_a_bit(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_what_is_put_is_got_back(store):
    put = store.put("networks", KEY, TENSORS, METADATA, {"split": "test"})
    got = store.get("networks", KEY)
    assert got.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert got.tensors[name].dtype == tensor.dtype
        assert torch.equal(got.tensors[name], tensor), name
    assert {name: got.metadata[name] for name in METADATA} == METADATA
    assert got.header == {"split": "test"}
    assert got.digest == put.digest == tensors_digest(TENSORS)


def test_another_process_finds_it(store, tmp_path):
    store.put("networks", KEY, TENSORS)
    assert Store(tmp_path / "store", zoo=None).get("networks", KEY).digest == tensors_digest(TENSORS)


def test_what_was_never_put_is_none_and_makes_no_folder(store, capfd):
    assert store.get("networks", KEY) is None
    assert not store.root.exists()
    assert capfd.readouterr().err == ""


def test_kinds_are_apart(store):
    store.put("networks", KEY, TENSORS)
    assert store.get("traces", KEY) is None


def test_a_second_put_replaces_the_first(store):
    store.put("networks", KEY, TENSORS)
    store.put("networks", KEY, {"weight": torch.zeros(2)})
    assert torch.equal(store.get("networks", KEY).tensors["weight"], torch.zeros(2))
    assert len(files(store.root)) == 1


def test_tensors_that_are_no_block_of_memory_are_written_by_value(store):
    weight = torch.arange(12.0).reshape(3, 4)
    store.put("networks", KEY, {"turned": weight.T, "row": weight[1], "grown": weight[0].expand(2, 4)})
    found = store.get("networks", KEY).tensors
    assert torch.equal(found["turned"], weight.T)
    assert torch.equal(found["row"], weight[1])
    assert torch.equal(found["grown"], weight[0].expand(2, 4))


def test_removing_what_is_gone_is_no_error(store):
    store.put("networks", KEY, TENSORS)
    store.remove("networks", [KEY, json_digest("another")])
    assert store.get("networks", KEY) is None
    store.remove("networks", [KEY])


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def damage_empty(path):
    path.write_bytes(b"")


def damage_value(path):
    flip_a_bit(path, -1)


def damage_header(path):
    flip_a_bit(path, 20)


def damage_length(path):
    flip_a_bit(path, 0)


def damage_metadata(path):
    other = {"kind": "networks", "key": KEY, "content": "0" * 64}
    write_safetensors(path, TENSORS, {"artifact": json.dumps(other)})


def damage_no_metadata(path):
    write_safetensors(path, TENSORS, {})


def damage_no_json(path):
    write_safetensors(path, TENSORS, {"artifact": "{"})


def damage_json_list(path):
    write_safetensors(path, TENSORS, {"artifact": "[]"})


def damage_other_artifact(path):
    other = {"kind": "networks", "key": json_digest("other"), "content": tensors_digest(TENSORS)}
    write_safetensors(path, TENSORS, {"artifact": json.dumps(other)})


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_artifact_is_named_and_made_again(store, capfd, damage):
    store.put("networks", KEY, TENSORS)
    path = store.path("networks", KEY)
    damage(path)
    assert store.get("networks", KEY) is None
    said = capfd.readouterr().err
    assert str(path) in said
    assert said.count("\n") == 1
    store.put("networks", KEY, TENSORS)
    assert store.get("networks", KEY).digest == tensors_digest(TENSORS)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("altered", [(b"GOOD", b"GOOF"), (b"TRUE", b"TRUF")], ids=["header", "metadata"])
def test_an_altered_string_is_noticed_too(store, capfd, altered):
    store.put("traces", KEY, TENSORS, {"fact": "TRUE"}, {"split": "GOOD"})
    path = store.path("traces", KEY)
    path.write_bytes(path.read_bytes().replace(*altered))
    assert store.get("traces", KEY) is None
    assert str(path) in capfd.readouterr().err


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_byte_goes_unnoticed_in_the_tensors(store, capfd, data):
    store.put("networks", KEY, TENSORS, METADATA)
    path = store.path("networks", KEY)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    found = store.get("networks", KEY)
    capfd.readouterr()
    if found is not None:
        assert tensors_digest(found.tensors) == tensors_digest(TENSORS)


def test_writing_leaves_no_temporary_file(store):
    store.put("networks", KEY, TENSORS)
    assert files(store.root) == [str(store.path("networks", KEY).relative_to(store.root))]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error")], ids=repr)
def test_a_write_that_fails_leaves_the_old_artifact_and_no_temporary_file(store, monkeypatch, error):
    store.put("networks", KEY, TENSORS)
    before = files(store.root)

    def full(_tensor):
        yield b"half"
        raise error

    monkeypatch.setattr(tensor_files, "tensor_bytes", full)
    with pytest.raises(StoreError, match=KEY) as refused:
        store.put("networks", KEY, {"weight": torch.zeros(1)})
    assert "free space or choose another" in str(refused.value)
    monkeypatch.undo()
    assert files(store.root) == before
    assert store.get("networks", KEY).digest == tensors_digest(TENSORS)


def test_what_put_returns_is_what_get_returns(store):
    put, got = store.put("networks", KEY, TENSORS, {"a": [1]}, {"b": "c"}), store.get("networks", KEY)
    assert (put.metadata, put.header) == (got.metadata, got.header)
    assert tensors_digest(put.tensors) == tensors_digest(got.tensors) == tensors_digest(TENSORS)


def test_whether_there_is_an_artifact_is_told_without_reading_it(store):
    assert not store.has("networks", KEY)
    store.put("networks", KEY, TENSORS)
    assert store.has("networks", KEY)
    store.path("networks", KEY).write_bytes(b"damaged")
    assert store.has("networks", KEY)


def test_a_stopped_write_leaves_no_temporary_file(store, monkeypatch):
    def stop(_tensor):
        yield b"half"
        raise KeyboardInterrupt

    monkeypatch.setattr(tensor_files, "tensor_bytes", stop)
    with pytest.raises(KeyboardInterrupt):
        store.put("networks", KEY, TENSORS)
    assert files(store.root) == []


@pytest.mark.parametrize("moment", ["claim", "removal"])
def test_ctrl_c_while_a_folder_is_claimed_or_removed_leaves_none(store, monkeypatch, moment):
    where, name = (files_module, "_lock") if moment == "claim" else (files_module.shutil, "rmtree")
    usual, struck = getattr(where, name), []

    def struck_in_between(*args, **kwargs):
        if not struck:
            struck.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return usual(*args, **kwargs)

    monkeypatch.setattr(where, name, struck_in_between)
    with pytest.raises(KeyboardInterrupt):
        store.put("networks", KEY, TENSORS)
    assert struck
    assert not list(store.root.rglob(f"{files_module.UNFINISHED}*"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_write_beside_the_main_thread_leaves_signals_alone(store):
    thread = threading.Thread(target=store.put, args=("networks", KEY, TENSORS))
    thread.start()
    thread.join()
    assert store.has("networks", KEY)


def test_a_file_in_the_folders_place_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file") as refused:
        Store(tmp_path / "file", zoo=None).put("networks", KEY, TENSORS)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_folder_is_one_line(store):
    store.root.mkdir()
    store.root.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="can't be written"):
            store.put("networks", KEY, TENSORS)
    finally:
        store.root.chmod(0o700)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody may write to")
def test_a_folder_that_nobody_may_write_to_is_one_line():
    with pytest.raises(StoreError, match=r"/proc/.*can't be written"):
        Store(Path("/proc/exitbench"), zoo=None).put("networks", KEY, TENSORS)


def test_a_file_that_cannot_be_read_is_not_taken_for_damaged(store, monkeypatch):
    """Too many open files, or no permission, says nothing about the content: the artifact stays."""
    store.put("networks", KEY, TENSORS)

    def refuse(*_arguments, **_options):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(tensor_files, "safe_open", refuse)
    with pytest.raises(StoreError, match="can't be read") as refused:
        store.get("networks", KEY)
    assert not isinstance(refused.value, DamagedArtifactError)
    monkeypatch.undo()
    assert store.get("networks", KEY).digest == tensors_digest(TENSORS)


def test_a_damaged_artifact_that_was_replaced_meanwhile_stays(store):
    path = store.path("networks", KEY)
    store.put("networks", KEY, TENSORS)
    found = path.stat()
    store.put("networks", KEY, TENSORS)
    remove_damaged(path, found)
    assert path.exists()
    remove_damaged(path, path.stat())
    assert not path.exists()


def test_an_artifact_is_as_readable_as_other_files_of_its_owner(store, tmp_path):
    before = os.umask(0o027)
    try:
        store.put("networks", KEY, TENSORS)
    finally:
        os.umask(before)
    assert store.path("networks", KEY).stat().st_mode & 0o777 == 0o640


def test_what_is_there_is_not_made(store):
    store.put("networks", KEY, TENSORS)
    found = store.obtain("networks", KEY, lambda: pytest.fail("it is there"))
    assert found.digest == tensors_digest(TENSORS)
    again = store.obtain("networks", KEY, lambda: store.put("networks", KEY, {"a": torch.zeros(1)}), again=True)
    assert again.digest == store.get("networks", KEY).digest != found.digest


def test_several_who_want_the_same_make_it_once(tmp_path, capfd):
    """Each with a store of its own, as processes have."""
    made, found, entered = [], [], threading.Event()

    def want():
        store = Store(tmp_path / "store", zoo=None)

        def make():
            made.append(1)
            entered.set()
            threading.Event().wait(0.3)
            return store.put("networks", KEY, TENSORS)

        found.append(store.obtain("networks", KEY, make).digest)

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
    assert found == [tensors_digest(TENSORS)] * 4
    assert capfd.readouterr().err.count("another run is making networks") == 3
    assert files(tmp_path / "store") == [str(Store(Path(), zoo=None).path("networks", KEY))]  # no lock is left


def test_who_fails_to_make_it_lets_the_next_one_try(store):
    with pytest.raises(RuntimeError):
        store.obtain("networks", KEY, lambda: (_ for _ in ()).throw(RuntimeError("no")))
    assert store.obtain("networks", KEY, lambda: store.put("networks", KEY, TENSORS)).digest == tensors_digest(TENSORS)


def test_without_locks_both_make_it_and_nothing_is_spoilt(store, monkeypatch):
    """Some file systems have none."""

    def unsupported(*_arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files_module.fcntl, "flock", unsupported)
    store.obtain("networks", KEY, lambda: store.put("networks", KEY, TENSORS))
    young = store.path("networks", KEY).parent / ".writing-young"
    old = young.with_name(".writing-old")
    for folder in (young, old):
        folder.mkdir()
    os.utime(old, (0, 0))
    store.put("networks", KEY, TENSORS)
    assert young.exists()  # its writer may be alive
    assert not old.exists()


def test_an_offline_store_makes_and_writes_nothing(store, tmp_path):
    store.put("networks", KEY, TENSORS)
    offline = Store(store.root, zoo=None, offline=True)
    assert offline.obtain("networks", KEY, lambda: pytest.fail("offline")).digest == tensors_digest(TENSORS)
    offline.remove("networks", [KEY])
    before = files(store.root)
    with pytest.raises(StoreError, match="nothing is made offline: import a bundle"):
        offline.obtain("traces", KEY, lambda: pytest.fail("offline"))
    with pytest.raises(StoreError, match="nothing is written offline"):
        offline.put("traces", KEY, TENSORS)
    damage_truncate(store.path("networks", KEY))
    with pytest.raises(StoreError, match=r"damaged .*; nothing is made offline"):
        offline.get("networks", KEY)
    assert files(store.root) == before


@pytest.fixture
def zoo(tmp_path):
    """A folder of shipped artifacts that holds one."""
    made = Store(tmp_path / "maker", zoo=None).put("networks", KEY, TENSORS)
    copy_artifact(made, tmp_path / "zoo" / "networks" / "some-network.safetensors")
    return tmp_path / "zoo"


def test_the_zoo_is_consulted_where_the_store_has_nothing(tmp_path, zoo):
    store = Store(tmp_path / "store", zoo)
    assert store.get("networks", KEY).digest == tensors_digest(TENSORS)
    assert store.get("traces", KEY) is None
    assert store.get("networks", json_digest("other")) is None
    assert not store.root.exists()


def test_the_store_comes_before_the_zoo(tmp_path, zoo):
    store = Store(tmp_path / "store", zoo)
    ours = {"weight": torch.ones(1)}
    store.put("networks", KEY, ours)
    assert store.get("networks", KEY).digest == tensors_digest(ours)
    store.remove("networks", [KEY])
    assert store.get("networks", KEY).digest == tensors_digest(TENSORS)


def test_the_zoo_stands_in_for_a_damaged_artifact(tmp_path, zoo, capfd):
    store = Store(tmp_path / "store", zoo)
    store.put("networks", KEY, {"weight": torch.ones(1)})
    damage_truncate(store.path("networks", KEY))
    assert store.get("networks", KEY).digest == tensors_digest(TENSORS)
    assert str(store.path("networks", KEY)) in capfd.readouterr().err


def test_the_zoo_is_never_written_to(tmp_path, zoo):
    before = files(zoo)
    store = Store(tmp_path / "store", zoo)
    store.put("networks", KEY, {"weight": torch.ones(1)})
    store.remove("networks", [KEY])
    assert files(zoo) == before


@pytest.mark.parametrize(
    "damage", [damage_truncate, damage_value, damage_no_metadata], ids=lambda damage: damage.__name__
)
def test_a_damaged_file_of_the_zoo_is_named(tmp_path, zoo, capfd, damage):
    (path,) = zoo.rglob("*.safetensors")
    damage(path)
    try:
        found = Store(tmp_path / "store", zoo).get("networks", KEY)
    except StoreError as error:
        assert str(path) in str(error)
    else:
        assert found is None
        assert str(path) in capfd.readouterr().err


def test_a_zoo_that_is_not_there_is_empty(tmp_path):
    assert Store(tmp_path / "store", tmp_path / "absent").get("networks", KEY) is None


def test_a_copied_artifact_reads_like_the_original(store, tmp_path):
    artifact = store.put("networks", KEY, TENSORS, METADATA)
    copy_artifact(artifact, tmp_path / "copies" / "copy.safetensors")
    found = read_artifact(tmp_path / "copies" / "copy.safetensors", KEY)
    assert found.metadata == artifact.metadata
    assert tensors_digest(found.tensors) == artifact.digest
    with pytest.raises(StoreError, match=r"copy\.safetensors"):
        read_artifact(tmp_path / "copies" / "copy.safetensors", json_digest("other"))


def test_the_root_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("EXITBENCH_HOME", str(tmp_path / "elsewhere"))
    assert default_root() == tmp_path / "elsewhere"
    monkeypatch.delenv("EXITBENCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_root().name == "exitbench"


def test_a_store_may_be_moved(store, tmp_path):
    store.put("networks", KEY, TENSORS)
    shutil.move(store.root, tmp_path / "moved")
    assert Store(tmp_path / "moved", zoo=None).get("networks", KEY).digest == tensors_digest(TENSORS)


def test_digests_cover_type_shape_and_values():
    base = torch.arange(6, dtype=torch.int32)
    different = [base.reshape(2, 3), base.to(torch.int64), base.float(), base.flip(0), base[:5], torch.zeros(0)]
    assert len({tensor_digest(tensor) for tensor in [base, *different]}) == 1 + len(different)
    assert tensor_digest(base.reshape(2, 3).T.contiguous().T) == tensor_digest(base.reshape(2, 3))


def test_digests_do_not_depend_on_the_order_of_names():
    assert tensors_digest({"a": torch.zeros(1), "b": torch.ones(1)}) == tensors_digest(
        {"b": torch.ones(1), "a": torch.zeros(1)}
    )
    assert tensors_digest({"a": torch.zeros(1)}) != tensors_digest({"b": torch.zeros(1)})
    assert json_digest({"x": 1, "y": [2, 3]}) == json_digest({"y": [2, 3], "x": 1})


def test_a_digest_is_the_same_on_every_machine():
    assert json_digest({"name": "Grüße", "n": [1, 2.5, None, True]}) == (
        "5af1104854ba1595415a05606fb829ce8f63be58e1f04d6805987c84a75b7fa3"
    )
    assert tensor_digest(torch.tensor([1, 2, 3], dtype=torch.int16)) == (
        "926b31a7561d76625e310c426a04437d6c8bbb00079a4ce7487597329c7dfdb8"
    )


@pytest.mark.parametrize("value", [{1, 2}, object(), b"x", {"x": 1j}], ids=["set", "object", "bytes", "complex"])
def test_what_json_cannot_hold_has_no_digest(value):
    with pytest.raises(TypeError):
        canonical_json(value)


def test_what_holds_itself_has_no_digest():
    value = [float("inf")]
    value.append(value)
    with pytest.raises(TypeError):
        canonical_json(value)


@given(
    st.recursive(st.floats() | st.text() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_every_number_has_a_digest_that_tells_it_apart(value):
    assert canonical_json(value) == canonical_json(json.loads(json.dumps(value)))
    named = [canonical_json(number) for number in (math.inf, -math.inf, math.nan, 0.0, "inf")]
    assert len(set(named)) == 5
