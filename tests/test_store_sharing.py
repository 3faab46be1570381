"""Looking into a store, checking and tidying it, and bundles: what one person recorded another ranks methods on."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import torch

from bench_core.board.board import TABLES
from bench_core.errors import StoreError, UsageError
from bench_core.run.run import run_suite
from bench_core.store.inventory import choose, describe, entries, prune, verify
from bench_core.store.local import Store, default_root
from bench_core.trace import bundles
from bench_core.trace.bundles import export_bundle, import_bundle
from bench_core.trace.trace import SCHEMA
from bench_core.util.digests import json_digest
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.suites import CONVERTED, DIRECT, EVENTS, parsed_suite, tiny_registry

NETWORK, TRACE, POLICY, PART = (json_digest(name) for name in ("network", "trace", "policy", "part"))


def filled(root):
    """A store with a network, its trace, a policy, a training state and a part of a trace."""
    store = Store(root, zoo=None)
    workload = {"workload": {"name": "small", "seed": 3}, "history": [{"epoch": 1}]}
    store.put("networks", NETWORK, {"weight": torch.ones(2, 3)}, workload)
    trace = {"logits": torch.arange(24.0).reshape(2, 3, 4), "labels": torch.tensor([1, 3])}
    header = {"schema": SCHEMA, "workload": "small", "split": "test", "variant": "{}"}
    store.put("traces", TRACE, trace, header=header)
    made_from = {"strategy": "seenn-ii", "beta": 2.5, "parameters": {}}
    store.put("policies", POLICY, {"bias": torch.zeros(2)}, {"calibration": {"trace": TRACE}, "made_from": made_from})
    store.put("training", json_digest("other"), {"a": torch.zeros(1)}, {"history": [{}, {}]})
    store.put("trace-parts", PART, {"logits": torch.zeros(1)}, {"trace": json_digest("other trace")})
    return store


@pytest.fixture
def store():
    return filled(default_root())


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- looking ---------------------------------------------------------------------------------------------------------


def test_a_listing_says_what_each_artifact_is(store):
    found = {entry.kind: (entry.key, entry.what) for entry in entries(store)}
    assert found["networks"] == (NETWORK, "small seed 3")
    assert found["traces"] == (TRACE, "small test")
    assert found["policies"] == (POLICY, "seenn-ii beta=2.5")
    assert found["training"][1] == "after epoch 2"
    assert all(entry.size == entry.path.stat().st_size for entry in entries(store))


def test_an_artifact_is_described_by_its_header(store):
    (entry,) = choose(entries(store), [TRACE[:8]])
    facts = describe(entry)
    assert facts["tensors"]["logits"] == {"dtype": "F32", "shape": [2, 3, 4]}
    assert facts["header"]["split"] == "test"
    assert facts["metadata"]["key"] == TRACE
    assert json.loads(json.dumps(facts)) == facts


def test_a_workload_is_its_network_its_traces_and_their_policies(store):
    chosen = choose(entries(store), ["small"])
    assert {(entry.kind, entry.key) for entry in chosen} == {
        ("networks", NETWORK),
        ("traces", TRACE),
        ("policies", POLICY),
    }


@pytest.mark.parametrize("name", ["nobody", "", "0" * 64, NETWORK[:3]])
def test_a_name_that_fits_nothing_is_one_line(store, name):
    with pytest.raises(UsageError, match="neither a workload nor a key"):
        choose(entries(store), [name])


def test_a_key_that_fits_several_is_one_line(store):
    store.put("training", NETWORK, {"a": torch.zeros(1)}, {"history": []})
    with pytest.raises(UsageError, match="give more"):
        choose(entries(store), [NETWORK[:10]])
    assert choose(entries(store), [f"networks/{NETWORK[:10]}"])[0].kind == "networks"


def test_headers_do_nothing_to_a_terminal(store):
    store.put("traces", PART, {"a": torch.zeros(1)}, header={"workload": "\x1b[2J\n", "split": "test"})
    (entry,) = choose(entries(store), [f"traces/{PART}"])
    assert entry.what == "?[2J? test"


def test_a_damaged_header_is_listed_as_damaged(store, exitbench):
    store.path("traces", TRACE).write_bytes(b"nothing")
    code, out, _ = exitbench("store", "list")
    assert code == 0
    assert "damaged" in next(line for line in out.splitlines() if TRACE[:16] in line)
    code, _, err = exitbench("store", "show", TRACE)
    assert code == 2
    assert err.count("\n") == 1
    assert TRACE in err


def test_the_commands_print_what_the_functions_say(store, exitbench, monkeypatch, tmp_path):
    code, out, _ = exitbench("store", "list")
    assert code == 0
    assert all(key[:16] in out for key in (NETWORK, TRACE, POLICY))
    assert f"5 artifacts, {sum(entry.size for entry in entries(store))} bytes" in out
    code, out, _ = exitbench("store", "show", f"networks/{NETWORK[:6]}")
    assert code == 0
    assert json.loads(out)["metadata"]["workload"]["name"] == "small"
    assert exitbench("store", "verify")[:2] == (0, "5 artifacts whole, 0 files damaged or unknown\n")
    code, out, _ = exitbench("store", "export", "small", "--output", tmp_path / "small.tar")
    assert code == 0
    assert out.endswith("small.tar: 3 artifacts\n")
    monkeypatch.setenv("EXITBENCH_HOME", str(tmp_path / "colleague"))
    code, out, _ = exitbench("store", "import", tmp_path / "small.tar")
    assert code == 0
    assert "3 artifacts are new" in out


def test_an_empty_store_is_no_error(exitbench):
    assert "0 artifacts" in exitbench("store", "list")[1]
    assert exitbench("store", "verify")[0] == 0
    assert exitbench("store", "prune")[0] == 0
    assert not default_root().exists()


# --- checking and tidying --------------------------------------------------------------------------------------------


def test_verify_names_what_is_damaged_or_unknown(store, exitbench):
    path = store.path("traces", TRACE)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    strange = store.root / "notes.txt"
    strange.write_text("mine")
    moved = store.path("networks", PART)
    moved.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(store.path("networks", NETWORK), moved)
    whole, problems = verify(store)
    assert whole == 4
    altered, other, unknown = sorted(problems, key=lambda line: ("unknown" in line, "another" in line))
    assert str(path) in altered
    assert "expected" in altered
    assert str(moved) in other
    assert str(strange) in unknown
    code, out, _ = exitbench("store", "verify")
    assert code == 1
    assert "3 files damaged or unknown" in out


def test_prune_removes_what_no_longer_belongs_and_nothing_else(store, exitbench):
    store.put("training", NETWORK, {"a": torch.zeros(1)}, {"history": []})  # its network is there
    part = json_digest("another part")
    store.put("trace-parts", part, {"logits": torch.zeros(1)}, {"trace": TRACE})  # its trace is there
    damaged = store.path("policies", POLICY)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    unfinished = store.path("traces", TRACE).parent / ".writing-0123"
    unfinished.mkdir()
    (unfinished / "half").write_bytes(b"half")
    strange = store.root / "notes.txt"
    strange.write_text("mine")
    lock = store.root / ".locks" / f"networks-{NETWORK}"
    lock.parent.mkdir()
    lock.touch()
    superfluous = [store.path("training", NETWORK), store.path("trace-parts", part)]
    gone = {str(path) for path in (damaged, unfinished, lock, *superfluous)}
    before = files(store.root)
    assert {line.split(": ")[0] for line in prune(store, dry_run=True)} == gone
    assert files(store.root) == before
    code, out, _ = exitbench("store", "prune")
    assert code == 0
    assert out.endswith("5 removed\n")
    assert prune(store) == []
    assert not any(Path(path).exists() for path in gone)
    assert strange.exists()
    assert len(entries(store)) == 4


def test_prune_removes_what_was_written_long_ago_if_asked(store):
    path = store.path("traces", TRACE)
    os.utime(path, (0, path.stat().st_mtime - 10 * 86_400))
    assert prune(store, older_than=11) == []
    (line,) = prune(store, older_than=9.5)
    assert line == f"{path}: written 10 days ago"
    assert not path.exists()


# --- sharing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(store, tmp_path):
    export_bundle(choose(entries(store), ["small"]), tmp_path / "small.tar")
    return tmp_path / "small.tar"


@pytest.fixture
def colleague(tmp_path):
    return Store(tmp_path / "colleague", zoo=None)


def test_what_is_exported_is_imported_bit_for_bit(store, bundle, colleague):
    new = import_bundle(bundle, colleague)
    assert [member.kind for member in new] == ["networks", "policies", "traces"]
    for member in new:
        assert colleague.path(member.kind, member.key).read_bytes() == store.path(member.kind, member.key).read_bytes()
    assert len(files(colleague.root)) == 3
    assert import_bundle(bundle, colleague) == []


def test_the_same_artifacts_give_the_same_bytes(store, bundle, tmp_path):
    export_bundle(list(reversed(choose(entries(store), ["small"]))), tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == bundle.read_bytes()


def test_a_bundle_is_a_plain_tar(bundle):
    with tarfile.open(bundle) as opened:
        names = opened.getnames()
        manifest = json.load(opened.extractfile("manifest.json"))
    assert names == ["manifest.json", *(f"{a['kind']}/{a['key']}.safetensors" for a in manifest["artifacts"])]
    assert manifest["schema"] == bundles.SCHEMA


def test_a_damaged_artifact_is_not_exported(store, tmp_path):
    path = store.path("traces", TRACE)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=TRACE):
        export_bundle(choose(entries(store), ["small"]), tmp_path / "small.tar")
    assert not (tmp_path / "small.tar").exists()


def test_what_is_not_finished_is_not_exported(store, tmp_path):
    with pytest.raises(StoreError, match="trace-parts aren't exported"):
        export_bundle(choose(entries(store), [PART]), tmp_path / "part.tar")


def test_a_damaged_artifact_is_put_right_by_an_import(bundle, colleague):
    import_bundle(bundle, colleague)
    path = colleague.path("traces", TRACE)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert [member.key for member in import_bundle(bundle, colleague)] == [TRACE]
    assert path.read_bytes() == whole


def test_what_the_store_has_differently_is_refused_and_stays(bundle, colleague):
    colleague.put("networks", NETWORK, {"weight": torch.zeros(2, 3)}, {"workload": {"name": "mine", "seed": 0}})
    before = files(colleague.root)
    with pytest.raises(StoreError, match=r"another one under the same key.*EXITBENCH_HOME"):
        import_bundle(bundle, colleague)
    assert files(colleague.root) == before


@pytest.mark.parametrize("what", ["absent.tar", "."])
def test_what_is_no_file_is_one_line(tmp_path, colleague, what):
    with pytest.raises(StoreError, match="can't be imported"):
        import_bundle(tmp_path / what, colleague)


def test_a_new_method_is_ranked_on_imported_traces_without_training_or_recording(tmp_path, capfd):
    """The board of another store, from a bundle alone."""
    registry, suite = tiny_registry(), parsed_suite(workloads=[DIRECT, EVENTS, CONVERTED])
    recorded = Store(tmp_path / "recorded", zoo=None)
    run_suite(suite, registry=registry, output=tmp_path / "one", store=recorded)
    export_bundle(choose(entries(recorded), ["direct", "events", "converted"]), tmp_path / "all.tar")
    shutil.rmtree(recorded.root)
    imported = Store(tmp_path / "imported", zoo=None)
    assert len(import_bundle(tmp_path / "all.tar", imported)) == 9
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in imported.root.rglob("*.safetensors")}
    capfd.readouterr()
    run_suite(suite, registry=registry, output=tmp_path / "two", store=imported)
    said = capfd.readouterr().err
    assert "train " not in said
    assert "record " not in said
    after = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in imported.root.rglob("*.safetensors")}
    assert {p: after[p] for p in before} == before
    assert {p.parent.parent.name for p in after.keys() - before.keys()} == {"converted", "scores"}
    for name in TABLES:
        assert (tmp_path / "two" / f"{name}.csv").read_bytes() == (tmp_path / "one" / f"{name}.csv").read_bytes()
    more = parsed_suite(workloads=[DIRECT], strategies=[{"name": "dt-snn"}])
    offline = Store(imported.root, zoo=None, offline=True)
    board = run_suite(more, registry=registry, output=tmp_path / "three", store=offline)
    assert (board.rows["status"] == "ok").all()


# --- bundles from strangers ------------------------------------------------------------------------------------------


def members_of(bundle):
    with tarfile.open(bundle) as opened:
        return [(member, opened.extractfile(member).read()) for member in opened]


def write_members(path, members):
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as opened:
        for member, content in members:
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))


def hostile(change):
    """A bundle after ``change`` of its members, a list of (tar header, content)."""

    def make(bundle):
        members = members_of(bundle)
        change(members)
        write_members(bundle, members)

    return make


def rename(name):
    return hostile(lambda members: setattr(members[3][0], "name", name))


def retype(kind):
    def change(members):
        members[3][0].type = kind
        members[3][0].linkname = "/etc/passwd"

    return hostile(change)


def with_manifest(change):
    def changed(members):
        manifest = json.loads(members[0][1])
        change(manifest)
        members[0] = (members[0][0], json.dumps(manifest).encode())

    return hostile(changed)


def with_content(content):
    """Another file where the trace was, listed with its own digest."""

    def change(members):
        manifest = json.loads(members[0][1])
        manifest["artifacts"][2] |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        members[0] = (members[0][0], json.dumps(manifest).encode())
        members[3] = (members[3][0], content)

    return hostile(change)


def swapped(members):
    members[2], members[3] = members[3], members[2]


def claims(size_field):
    def make(bundle):
        content = bytearray(bundle.read_bytes())
        head = content[:512]
        head[124:136] = size_field
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        bundle.write_bytes(bytes(head) + bytes(content[512:]))

    return make


HOSTILE = {
    "absolute name": rename("/tmp/escaped.safetensors"),
    "name that climbs": rename("../../escaped.safetensors"),
    "name with a control character": rename("traces/\x1b[2J"),
    "symbolic link": retype(tarfile.SYMTYPE),
    "hard link": retype(tarfile.LNKTYPE),
    "device": retype(tarfile.CHRTYPE),
    "folder": retype(tarfile.DIRTYPE),
    "sparse file": retype(tarfile.GNUTYPE_SPARSE),
    "extended header": retype(tarfile.XHDTYPE),
    "other order": hostile(swapped),
    "member missing": hostile(lambda members: members.pop()),
    "member twice": hostile(lambda members: members.append(members[3])),
    "no manifest": hostile(lambda members: members.pop(0)),
    "another schema": with_manifest(lambda manifest: manifest.update(schema="exitbench.bundle/2")),
    "kind that climbs": with_manifest(lambda manifest: manifest["artifacts"][2].update(kind="traces/../..")),
    "kind that isn't shared": with_manifest(lambda manifest: manifest["artifacts"][2].update(kind="training")),
    "key that is no digest": with_manifest(lambda manifest: manifest["artifacts"][2].update(key="../" * 20 + "x")),
    "artifact named twice": with_manifest(lambda manifest: manifest["artifacts"].append(manifest["artifacts"][2])),
    "another size": with_manifest(lambda manifest: manifest["artifacts"][2].update(size=7)),
    "a size of another type": with_manifest(lambda manifest: manifest["artifacts"][2].update(size=True)),
    "claim of 10^18 bytes": with_manifest(lambda manifest: manifest["artifacts"][2].update(size=10**18)),
    "another digest": with_manifest(lambda manifest: manifest["artifacts"][2].update(sha256="0" * 64)),
    "unknown field": with_manifest(lambda manifest: manifest["artifacts"][2].update({"x" * 10_000: 1})),
    "manifest that is a list": hostile(lambda members: members.__setitem__(0, (members[0][0], b"[]"))),
    "manifest without end": hostile(lambda members: members.__setitem__(0, (members[0][0], b"[" * 100_000))),
    "pickle": with_content(b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94"),
    "no safetensors": with_content(b"PK\x03\x04" * 100),
    "header of 10^12 bytes": with_content((10**12).to_bytes(8, "little") + b"{}"),
    "octal claim of gigabytes": claims(b"77777777777\0"),
    "negative size": claims(b"\xff" * 12),
    "claim of 2^60 bytes": claims(b"\x80" + b"\0" * 3 + (2**60).to_bytes(8, "big")),
    "truncated": lambda bundle: bundle.write_bytes(bundle.read_bytes()[:3000]),
    "empty": lambda bundle: bundle.write_bytes(b""),
    "compressed": lambda bundle: bundle.write_bytes(b"\x1f\x8b" + bundle.read_bytes()),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_bundle_is_refused_in_one_line_and_leaves_nothing(bundle, colleague, tmp_path, change):
    change(bundle)
    before = files(tmp_path)
    with pytest.raises(StoreError) as refused:
        import_bundle(bundle, colleague)
    line = str(refused.value)
    assert line.startswith(f"bundle {bundle}: ")
    assert line.isprintable()
    assert len(line) < 1000
    assert files(tmp_path) == before


def test_what_a_killed_import_left_is_gone_after_the_next(bundle, colleague):
    left = colleague.root / ".writing-0123"
    left.mkdir(parents=True)
    (left / "0").write_bytes(b"half")
    import_bundle(bundle, colleague)
    assert not left.exists()


def test_nothing_is_visible_before_all_is_checked(bundle, colleague):
    """The last member is bad: the good ones before it are not imported either."""
    content = bytearray(bundle.read_bytes())
    content[content.rindex(b"\x00\x00\x80\x3f") + 3] ^= 1
    bundle.write_bytes(content)
    with pytest.raises(StoreError):
        import_bundle(bundle, colleague)
    assert files(colleague.root) == {}


# --- removing --------------------------------------------------------------------------------------------------------


def several(root):
    """The same store with scores, a converted network and another workload."""
    store = filled(root)
    scores = {"workload": "small", "strategy": "seenn-i"}
    store.put("scores", json_digest("scores"), {"exit_timesteps": torch.zeros(1)}, scores)
    store.put("converted", json_digest("converted"), {"a": torch.zeros(1)}, {"workload": "small"})
    store.put("training", json_digest("state"), {"a": torch.zeros(1)}, {"workload": "small", "history": [{}]})
    store.put("trace-parts", json_digest("piece"), {"a": torch.zeros(1)}, {"trace": TRACE})
    store.put("networks", json_digest("another"), {"a": torch.zeros(1)}, {"workload": {"name": "other", "seed": 0}})
    return store


def test_everything_of_a_workload_is_removed_and_nothing_else(exitbench):
    store = several(default_root())
    before = files(store.root)
    code, out, _ = exitbench("store", "remove", "small", "--dry-run")
    assert (code, files(store.root)) == (0, before)
    assert out.endswith(f"7 artifacts, {sum(map(len, before.values())) - rest(before)} bytes would be removed\n")
    code, listed, _ = exitbench("store", "remove", "small")
    assert code == 0
    assert listed == out.replace("would be removed", "removed")
    left = {(entry.kind, entry.key) for entry in entries(store)}
    others = [("networks", "another"), ("training", "other")]
    assert left == {*((kind, json_digest(name)) for kind, name in others), ("trace-parts", PART)}
    assert all(content == before[name] for name, content in files(store.root).items())


def rest(found):
    """Bytes of what stays."""
    keys = (json_digest("another"), json_digest("other"), PART)
    return sum(len(content) for name, content in found.items() if Path(name).stem in keys)


@pytest.mark.parametrize("name", [TRACE[:8], TRACE, f"traces/{TRACE[:8]}", f"traces/{TRACE}"])
def test_one_artifact_is_removed_by_how_its_key_begins(store, exitbench, name):
    before = files(store.root)
    code, out, _ = exitbench("store", "remove", name)
    gone = f"traces/{TRACE[:2]}/{TRACE}.safetensors"
    assert code == 0
    size = len(before[gone])
    assert out == f"traces/{TRACE[:16]}: {size} bytes, small test\n1 artifacts, {size} bytes removed\n"
    assert files(store.root) == {name: content for name, content in before.items() if name != gone}


def test_a_damaged_artifact_is_removed_by_its_key(store, exitbench):
    store.path("traces", TRACE).write_bytes(b"no artifact")
    assert exitbench("store", "remove", TRACE[:12])[0] == 0
    assert not store.path("traces", TRACE).exists()


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (
            ["smal"],
            "smal: neither a workload nor a key of this store (did you mean 'small'?); see `exitbench store list`",
        ),
        ([f"{TRACE[:8]}0123"], f"neither a workload nor a key of this store (did you mean '{TRACE[:12]}'?)"),
        (["small", "nothing"], "nothing: neither a workload nor a key"),
        ([TRACE[:7]], f"{TRACE[:7]}: too short; give a key's first 8 digits or more"),
        (["traces/"], "traces/: too short"),
        (["../traces"], "../traces: neither a workload nor a key"),
        (["a\x1b[2Jb"], "a?[2Jb: neither a workload nor a key"),
        (["fashion-direct"], "fashion-direct: comes with the package; this store has nothing of it to remove"),
    ],
)
def test_what_fits_nothing_or_too_much_removes_nothing(store, exitbench, names, reason):
    before = files(store.root)
    code, out, err = exitbench("store", "remove", *names)
    assert (code, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1
    assert files(store.root) == before


def test_two_kinds_under_one_key_are_told_apart(store, exitbench):
    store.put("training", NETWORK, {"a": torch.zeros(1)}, {"history": [{}]})
    code, _, err = exitbench("store", "remove", NETWORK)
    assert code == 2
    assert f"several artifacts begin like this (networks/{NETWORK[:16]}, training/{NETWORK[:16]})" in err
    assert exitbench("store", "remove", f"training/{NETWORK[:8]}")[0] == 0
    assert store.path("networks", NETWORK).exists()


def test_nothing_is_removed_through_a_linked_folder(store, tmp_path, exitbench):
    elsewhere = store.path("traces", TRACE).parent.rename(tmp_path / "elsewhere")
    store.path("traces", TRACE).parent.symlink_to(elsewhere)
    with pytest.raises(StoreError, match="is a link, and a store follows none"):
        store.remove_here("traces", TRACE)
    assert exitbench("store", "remove", TRACE)[0] == 2
    assert len(files(elsewhere)) == 1
