"""Damaged and hostile files: the documented errors, and nothing else. The great numbers are in tests/fuzz/files.py."""

import json
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench_core.errors import StoreError, SuiteError, TraceError
from bench_core.run.suite import load_suite
from bench_core.store.local import Store
from bench_core.trace.files import load_trace
from tests.fuzz import files as fuzz
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.processes import PATIENCE, environment, module_path
from tests.helpers.suites import TINY_PLUGIN

ROOT = TINY_PLUGIN.parent.parent.parent
RELAXED = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
METADATA = st.dictionaries(
    st.sampled_from(["schema", "variant", "provenance", "layers", "artifact", "workload"]) | st.text(max_size=5),
    st.sampled_from(["{}", "[]", "null", "NaN", '"\\ud800"', "[" * 3000, "1" * 5000, "exitbench.trace/1"]) | st.text(),
    max_size=4,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(
            ["F64", "F32", "F16", "BF16", "I64", "U64", "U8", "BOOL", "F8_E4M3", "C64", "F4", "X"]
        ),
        "shape": st.lists(st.sampled_from([0, 1, 2, 3, 4, 10**12, 2**63, 2**64 - 1, -1]), max_size=5),
        "data_offsets": st.lists(st.sampled_from([0, 8, 16, 24, 96, 10**12, 2**64 - 1, -1]), min_size=1, max_size=3),
    }
)
NAMES = st.sampled_from(["logits", "labels", "sample_ids", "macs", "macs_once", "layer_acs", "x\n"])


@RELAXED
@given(metadata=METADATA, tensors=st.dictionaries(NAMES, ENTRY, max_size=4), data=st.binary(max_size=200))
def test_a_header_of_anything_is_a_trace_or_refused(tmp_path, metadata, tensors, data):
    path = tmp_path / "t.safetensors"
    path.write_bytes(fuzz.join_safetensors({"__metadata__": metadata, **tensors}, data))
    try:
        load_trace(path)
    except TraceError as error:
        assert str(error).isprintable()


@RELAXED
@given(content=st.binary(max_size=300))
def test_bytes_of_anything_are_refused_by_every_reader(tmp_path, content):
    for name, read, error in (
        ("t.safetensors", load_trace, TraceError),
        ("t.toml", lambda path: load_suite(str(path)), SuiteError),
        ("t.tar", lambda path: fuzz.import_bundle(path, Store(tmp_path / "store", zoo=None)), StoreError),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(error) as refused:
            read(path)
        assert str(refused.value).isprintable()


@pytest.mark.parametrize("key", [r'"\u0000"', r'"\u001b[31mred"', r'"a\nb"'])
def test_a_key_that_would_drive_a_terminal_is_named_in_plain_text(tmp_path, key):
    path = tmp_path / "suite.toml"
    path.write_text(f'schema = "exitbench.suite/1"\nname = "x"\n[latency]\n{key} = 1\n')
    with pytest.raises(SuiteError) as refusal:
        load_suite(str(path))
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("opening", ["[", "{ a = ", '"""', "[["])
def test_a_suite_that_never_ends_is_refused(tmp_path, opening):
    path = tmp_path / "deep.toml"
    path.write_text("a = " + opening * 100_000)
    with pytest.raises(SuiteError, match=r"deep\.toml"):
        load_suite(str(path))


def in_a_child(source, folder):
    """A Python process of its own, finished; the folder is its argument."""
    return subprocess.run(
        [sys.executable, "-c", source, str(folder.resolve())],
        env={**environment(folder), "PYTHONPATH": module_path()},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


FUZZ = """
import json, sys
from pathlib import Path
import torch
from tests.fuzz import files as fuzz
torch.set_num_threads(1)
fuzz.limit_memory()
found = fuzz.fuzz(Path(sys.argv[1]), 900, 11, report=lambda line: print(line, file=sys.stderr))
print(json.dumps({name: dict(counts) for name, counts in found.items()}))
"""


def test_mutated_files_are_accepted_or_refused_and_do_nothing_else(tmp_path):
    """In a child with little memory: no other error, no hang, no write outside the store, no code executed."""
    done = in_a_child(FUZZ, tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 3
    for name, counts in found.items():
        assert "failed" not in counts, done.stderr
        assert counts["accepted"] > 0, name
        assert sum(counts.values()) == 300


def test_the_watch_sees_what_it_is_there_to_see(tmp_path):
    """Each thing that a case mustn't do is noticed; else the figures would mean nothing."""
    source = """
import os, pickle, sys, time
from pathlib import Path
from tests.fuzz import files as fuzz
place = Path(sys.argv[1])
inside, outside = place / "in", place / "out"
inside.mkdir()
outside.mkdir()
watch = fuzz.Watch(inside)
deeds = {
    "write": lambda path: (outside / "x").write_text(""),
    "rename": lambda path: (path.rename(outside / "y")),
    "folder": lambda path: (outside / "z").mkdir(),
    "link": lambda path: (outside / "l").symlink_to("/etc/passwd"),
    "execute": lambda path: exec("1 + 1"),
    "start": lambda path: os.system("true"),
    "unpickle": lambda path: pickle.loads(b"cos\\nsystem\\n."),
    "raise": lambda path: 1 / 0,
    "hang": lambda path: time.sleep(60),
    "claim": lambda path: bytearray(10**12),
    "nothing": lambda path: (inside / "x").write_text(""),
}
fuzz.SECONDS_PER_CASE = 0.2
fuzz.limit_memory()
for name, deed in deeds.items():
    target = fuzz.Target(name, [], ".x", None, deed, ())
    print(name, fuzz.try_case(target, b"", inside / "case", watch) == "accepted")
"""
    done = in_a_child(source, tmp_path)
    assert done.returncode == 0, done.stderr
    passed = [line.split()[0] for line in done.stdout.splitlines() if line.endswith("True")]
    assert passed == ["nothing"]
    assert len(done.stdout.splitlines()) == 11
