"""Traces in shards and selections: the same trace, however it is cut, and read without ever holding the whole."""

import gc
import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_plugins import dynamic_confidence
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bench_core import Calibration, load_registry
from bench_core.errors import StoreError, TraceError, UsageError
from bench_core.replay.controller import replay_policy, score_table
from bench_core.scoring import statistics as uncertainty
from bench_core.scoring.scores import Recorded, halve
from bench_core.trace.files import load_trace, save_trace, save_trace_shards
from bench_core.trace.shards import INDEX_SCHEMA
from bench_core.trace.trace import COUNTS, LAYER_COUNTS, Trace
from bench_core.util.digests import tensors_digest
from bench_core.util.sample_rows import SampleRows, samples_in_cache
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.traces import make_trace, tensors_of, traces

ROOT = Path(__file__).parent.parent
SCORES = ("seenn-i", "dt-snn", "dynamic-confidence", "topk-cutoff", "margin", "spikecp")
HEADER = {"workload": "w", "split": "test", "layers": json.dumps([{"name": "a", "size": 3}]), "variant": "{}"}


def full_trace(samples=23, timesteps=3, classes=4, seed=5):
    """A trace with every optional tensor."""
    plain = make_trace("normal", seed, samples, timesteps, classes)
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, timesteps)
    counts = {name: torch.randint(0, 99, shape, generator=generator) for name in COUNTS}
    detail = {name: torch.randint(0, 99, (*shape, 1), generator=generator) for name in LAYER_COUNTS}
    once = torch.randint(0, 99, (samples,), generator=generator)
    return Trace(plain.logits, plain.labels, plain.sample_ids, counts, once, HEADER, detail)


def refusal(path):
    """The one line that an index is refused with."""
    with pytest.raises(TraceError) as refused:
        load_trace(path)
    line = str(refused.value)
    assert "\n" not in line
    return line


@pytest.fixture
def index(tmp_path):
    """A trace of 23 samples in shards of 10, 10 and 3."""
    save_trace_shards(full_trace(), tmp_path / "x.json", 10)
    return tmp_path / "x.json"


def edit(index, change):
    """Rewrite an index after ``change`` was at its list of shards."""
    content = json.loads(index.read_text())
    change(content["shards"])
    index.write_text(json.dumps(content))


def put(index, number, tensors, header=HEADER):
    """Replace the content of a shard, and its digest in the index."""
    save_file({k: v.contiguous() for k, v in tensors.items()}, index.parent / f"x.{number:05}.safetensors", header)

    def change(shards):
        shards[number] |= {"digest": tensors_digest(tensors), "samples": len(tensors["labels"])}

    edit(index, change)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trace=traces(timesteps=5, classes=6), size=st.integers(1, 45), cuts=st.lists(st.integers(0, 40), max_size=4))
def test_shards_are_the_same_trace_whatever_their_size_and_however_it_came(tmp_path, trace, size, cuts):
    save_trace(trace, tmp_path / "whole.safetensors")
    ends = [0, *sorted(min(cut, len(trace)) for cut in cuts), len(trace)]
    pieces = [trace.select(torch.arange(*pair)) for pair in itertools.pairwise(ends) if pair[0] < pair[1]]
    save_trace_shards(iter(pieces), tmp_path / "t.json", size)
    whole, sharded = load_trace(tmp_path / "whole.safetensors"), load_trace(tmp_path / "t.json")
    listed = json.loads((tmp_path / "t.json").read_text())["shards"]
    assert [shard["samples"] for shard in listed] == [
        min(size, len(trace) - start) for start in range(0, len(trace), size)
    ]
    assert sharded.digest == whole.digest == tensors_digest(tensors_of(trace))
    assert torch.equal(sharded.predictions, whole.predictions)
    for name in SCORES if trace.timesteps > 1 else ():
        tables = [
            score_table(load_registry().strategies[name].fit(Calibration(t)).strategy, t) for t in (whole, sharded)
        ]
        assert torch.equal(*tables), name
    assert torch.equal(sharded.logits, whole.logits)


def test_every_optional_tensor_and_the_header_survive_shards(index):
    found, trace = load_trace(index), full_trace()
    assert found.digest == trace.digest
    assert {k: v for k, v in found.header.items() if k != "schema"} == HEADER
    for name, values in tensors_of(trace).items():
        assert torch.equal(tensors_of(found)[name], values), name


def test_shards_without_ids_count_on(tmp_path):
    trace = make_trace("normal", 1, 5, 2, 3)
    parts = [{"logits": trace.logits[a:b].clone(), "labels": trace.labels[a:b].clone()} for a, b in ((0, 3), (3, 5))]
    for number, part in enumerate(parts):
        save_file(part, tmp_path / f"{number}.safetensors")
    shards = [
        {"file": f"{n}.safetensors", "samples": len(part["labels"]), "digest": tensors_digest(part)}
        for n, part in enumerate(parts)
    ]
    (tmp_path / "i.json").write_text(json.dumps({"schema": INDEX_SCHEMA, "shards": shards}))
    assert load_trace(tmp_path / "i.json").sample_ids.tolist() == list(range(5))


ELSEWHERE = ["/etc/passwd", "../x.00000.safetensors", "a/../../b", "C:\\x", "C:x", "..\\x", "", "a\0b", 7, None]


@pytest.mark.parametrize("file", ELSEWHERE, ids=repr)
def test_a_shard_elsewhere_is_refused_unread(index, file):
    edit(index, lambda shards: shards[1].update(file=file))
    line = refusal(index)
    assert "shards[1]" in line
    assert "index's folder" in line


def test_a_link_out_of_the_folder_is_refused(index, tmp_path):
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    inside = tmp_path / "inside"
    inside.mkdir()
    for path in tmp_path.glob("x.*"):
        path.rename(inside / path.name)
    (inside / "x.00001.safetensors").rename(outside / "real")
    (inside / "x.00001.safetensors").symlink_to(outside / "real")
    line = refusal(inside / "x.json")
    assert "link" in line
    assert "x.00001.safetensors" in line


BAD_INDEX = {
    "not json": (b"{", "not JSON"),
    "deeply nested": (b"[" * 200_000, "not JSON"),
    "not text": (b"\xff\xfe\x00", "not JSON"),
    "a list": (b"[]", "schema"),
    "another schema": (b'{"schema": "exitbench.trace-index/2", "shards": []}', "trace-index/2"),
    "no shards": (json.dumps({"schema": INDEX_SCHEMA, "shards": []}).encode(), "at least one"),
    "shards of nothing": (json.dumps({"schema": INDEX_SCHEMA, "shards": [3]}).encode(), "shards[0]"),
}


@pytest.mark.parametrize(("content", "words"), BAD_INDEX.values(), ids=BAD_INDEX)
def test_what_is_no_index_is_refused(tmp_path, content, words):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    line = refusal(path)
    assert words in line
    assert str(path) in line


def test_a_missing_index_and_a_folder_are_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "absent.json")
    (tmp_path / "folder.json").mkdir()
    assert "folder.json" in refusal(tmp_path / "folder.json")


@pytest.mark.parametrize("samples", [0, -1, 2.0, True, "3", None, 10**12])
def test_a_wrong_number_of_samples_is_refused(index, samples):
    edit(index, lambda shards: shards[2].update(samples=samples))
    assert "samples" in refusal(index)


@pytest.mark.parametrize("digest", ["", "0" * 63, "G" * 64, 7, None, "0" * 64])
def test_a_wrong_digest_is_refused(index, digest):
    edit(index, lambda shards: shards[2].update(digest=digest))
    line = refusal(index)
    assert "digest" in line or "x.00002.safetensors: its content" in line


def test_a_shard_named_twice_is_refused(index):
    edit(index, lambda shards: shards.append(shards[0]))
    assert "shards[3] names x.00000.safetensors again" in refusal(index)


def test_a_missing_shard_is_named_with_what_to_do(index):
    (index.parent / "x.00001.safetensors").unlink()
    line = refusal(index)
    assert "x.00001.safetensors" in line
    assert "put all shards beside it" in line


def test_a_flipped_bit_in_a_shard_is_found(index):
    path = index.parent / "x.00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert "x.00001.safetensors: its content" in refusal(index)


def test_shards_that_do_not_go_together_are_refused(index):
    tensors = load_file(index.parent / "x.00001.safetensors")
    changes = {
        "2 timesteps": {k: v[:, :2] if v.dim() > 1 else v for k, v in tensors.items()},
        "3 classes": {**tensors, "logits": tensors["logits"][..., :3], "labels": tensors["labels"].clamp(max=2)},
        "float64": {**tensors, "logits": tensors["logits"].double()},
        "macs_once": {k: v for k, v in tensors.items() if k != "macs_once"},
        "sample_ids": {k: v for k, v in tensors.items() if k != "sample_ids"},
    }
    for word, content in changes.items():
        put(index, 1, content)
        line = refusal(index)
        assert word in line
        assert "x.00001.safetensors" in line
    put(index, 1, tensors, {**HEADER, "workload": "another"})
    assert "'workload'" in refusal(index)
    put(index, 1, tensors)
    assert load_trace(index).digest == full_trace().digest


def test_an_id_in_two_shards_is_refused_with_both(index):
    tensors = load_file(index.parent / "x.00002.safetensors")
    tensors["sample_ids"][1] = full_trace().sample_ids[4]
    put(index, 2, tensors)
    line = refusal(index)
    for word in ("x.00002.safetensors", "sample_ids[1]", "x.00000.safetensors", "unique"):
        assert word in line


def test_saving_shards_refuses_what_will_not_do(tmp_path):
    trace = full_trace()
    with pytest.raises(UsageError, match=r"t\.json"):
        save_trace_shards(trace, tmp_path / "t.safetensors", 5)
    with pytest.raises(UsageError, match="at least 1"):
        save_trace_shards(trace, tmp_path / "t.json", 0)
    with pytest.raises(UsageError, match="no trace"):
        save_trace_shards([], tmp_path / "t.json", 5)
    with pytest.raises(TraceError, match=r"part 1.*timesteps"):
        save_trace_shards([trace, full_trace(timesteps=2)], tmp_path / "t.json", 5)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        save_trace_shards(trace, tmp_path / "file" / "t.json", 5)
    assert not (tmp_path / "t.json").exists()


def test_shards_are_cut_anew_without_holding_more_than_one(tmp_path):
    trace = full_trace(40)
    save_trace_shards(trace, tmp_path / "a.json", 7)
    save_trace_shards(load_trace(tmp_path / "a.json"), tmp_path / "b.json", 16)
    assert load_trace(tmp_path / "b.json").digest == trace.digest


def test_shards_and_selections_are_saved_without_ever_being_held(tmp_path, monkeypatch):
    trace = full_trace(40)
    save_trace_shards(trace, tmp_path / "a.json", 7)
    some = torch.tensor([31, 2, 30, 3])
    sharded = load_trace(tmp_path / "a.json")
    with monkeypatch.context() as patch:
        patch.setattr(SampleRows, "whole", lambda _self: pytest.fail("all of it in memory"))
        save_trace(sharded, tmp_path / "whole.safetensors")
        save_trace(sharded.select(some).without_counts(), tmp_path / "some.safetensors")
    assert load_trace(tmp_path / "whole.safetensors").digest == trace.digest
    found, wanted = load_trace(tmp_path / "some.safetensors"), trace.select(some)
    assert found.counts == found.layer_counts == {}
    assert found.macs_once is None
    assert torch.equal(found.logits, wanted.logits)
    assert torch.equal(found.sample_ids, wanted.sample_ids)


def test_recording_saving_and_exporting_hold_about_a_part(tmp_path):
    """76 MiB of logits in four parts, in processes of their own."""
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "benchmarks" / "recording_memory.py", "--folder", tmp_path),
            *("--samples", "10000", "--timesteps", "2"),
        ],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = dict(re.findall(r"^(\w+) +(\d+) MiB more", done.stdout, flags=re.MULTILINE))
    assert found.keys() == {"record", "assemble", "save", "export"}, done.stderr
    assert all(int(mib) < 60 for mib in found.values()), found


def test_replay_of_shards_is_replay_of_the_whole(tmp_path):
    traces_of = {"cal": make_trace("strong", 1, 60, 4, 5), "test": make_trace("strong", 2, 50, 4, 5)}
    for name, trace in traces_of.items():
        save_trace(trace, tmp_path / f"{name}.safetensors")
        save_trace_shards(trace, tmp_path / f"{name}.json", 13)
    outputs = []
    for ending in ("safetensors", "json"):
        figures, samples = tmp_path / f"out-{ending}", tmp_path / f"per-sample-{ending}"
        subprocess.run(
            [
                *(sys.executable, "-m", "bench_core", "replay", "--strategy", "seenn-i"),
                *("--calibration", tmp_path / f"cal.{ending}", "--test", tmp_path / f"test.{ending}"),
                *("--json", figures, "--per-sample", samples),
            ],
            check=True,
            capture_output=True,
            env={**os.environ, "EXITBENCH_HOME": str(tmp_path / "home")},
        )
        outputs.append((figures.read_bytes(), samples.read_bytes()))
    assert outputs[0] == outputs[1]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_rows_are_what_indexing_the_whole_gives(data, sizes):
    total = sum(sizes)
    whole = torch.arange(total * 6, dtype=torch.float32).reshape(total, 2, 3)
    rows, expected = SampleRows(whole.split(sizes)), whole
    for _ in range(data.draw(st.integers(0, 2))):
        index = torch.tensor(
            data.draw(st.lists(st.integers(-len(expected), len(expected) - 1), max_size=9, min_size=1))
        )
        rows, expected = rows.select(index), expected[index]
    start, stop = data.draw(st.integers(0, total + 2)), data.draw(st.integers(0, total + 2))
    assert torch.equal(rows.read(start, stop), expected[start:stop])
    size = data.draw(st.integers(1, 7))
    for begins, piece in rows.pieces(size):
        assert torch.equal(piece, expected[begins : begins + size])
    assert torch.equal(whole.flatten(), torch.arange(total * 6, dtype=torch.float32))  # nothing was put in its place
    assert rows.shape == expected.shape
    assert torch.equal(rows.whole(), expected)
    assert torch.equal(rows.read(start, stop), expected[start:stop])


def test_halves_read_from_the_trace_and_copy_nothing(tmp_path):
    save_trace(make_trace("normal", 3, 40, 3, 4), tmp_path / "t.safetensors")
    trace = load_trace(tmp_path / "t.safetensors")
    fit, select = halve(Recorded(trace))
    mapped = trace.logits.untyped_storage().data_ptr()
    for half in (fit.trace, select.trace):
        assert [part.untyped_storage().data_ptr() for part in half.rows._parts] == [mapped]
        policy = load_registry().strategies["seenn-i"].fit(Calibration(half)).policy(0.5)
        copied = Trace(half.logits.clone(), half.labels, half.sample_ids)
        assert torch.equal(replay_policy(policy, half).exit_timesteps, replay_policy(policy, copied).exit_timesteps)


def test_the_logits_of_a_selection_are_a_copy():
    trace = make_trace("normal", 3, 12, 3, 4)
    before = trace.logits.clone()
    for index in (torch.arange(2, 6), torch.tensor([5, 1, 3])):
        selected = trace.select(index)
        assert torch.equal(selected.logits, before[index])
        selected.logits.fill_(7.0)
    assert torch.equal(trace.logits, before)


def test_a_selection_by_mask_is_one_by_index():
    trace = full_trace()
    mask = trace.labels == trace.labels[0]
    assert trace.select(mask).digest == trace.select(torch.nonzero(mask).flatten()).digest


def test_a_chunk_is_at_least_one_sample():
    assert samples_in_cache(10**12) == 1
    assert samples_in_cache(10**12, least=16) == 16


@pytest.mark.numerics
@pytest.mark.parametrize("held", [0, 10**9])
def test_alpha_of_a_large_trace_is_that_of_all_its_samples(monkeypatch, held):
    trace = make_trace("strong", 8, 400, 3, 5)
    plain = dynamic_confidence.DynamicConfidence().learn(Calibration(trace)).parameters["alpha"]
    monkeypatch.setattr(dynamic_confidence, "HELD", held)
    monkeypatch.setattr(dynamic_confidence, "LARGE", 0)
    for parts in (dynamic_confidence.PARTS, (40, 7), (2,), (400,), ()):
        monkeypatch.setattr(dynamic_confidence, "PARTS", parts)
        found = dynamic_confidence.DynamicConfidence().learn(Calibration(trace)).parameters["alpha"]
        assert math.isclose(found, plain, rel_tol=1e-9)
    monkeypatch.setattr(dynamic_confidence, "MOST_STEPS", 0)  # the parts lead nowhere
    found = dynamic_confidence.DynamicConfidence().learn(Calibration(trace)).parameters["alpha"]
    assert math.isclose(found, plain, rel_tol=1e-9)


@pytest.mark.numerics
@settings(max_examples=40, deadline=None)
@given(trace=traces(samples=40, timesteps=4, classes=8), parts=st.sampled_from([(9, 3), (2,)]))
def test_alpha_from_parts_is_alpha_from_all(trace, parts):
    plain = dynamic_confidence.DynamicConfidence().learn(Calibration(trace)).parameters["alpha"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_confidence, "LARGE", 0)
        patch.setattr(dynamic_confidence, "HELD", 0)
        patch.setattr(dynamic_confidence, "PARTS", parts)
        found = dynamic_confidence.DynamicConfidence().learn(Calibration(trace)).parameters["alpha"]
    slope = dynamic_confidence._slope(trace)
    nearby = [slope(math.log(found) + step) for step in (-1e-9, 1e-9)]
    flat = max(map(abs, nearby)) <= 1e-12 * max(1.0, float(trace.logits.abs().max()))  # any alpha will do there
    assert math.isclose(found, plain, rel_tol=1e-9) or nearby[0] >= 0 >= nearby[1] or flat


@pytest.mark.numerics
@pytest.mark.parametrize("samples", [7, 41, 2000])
def test_resamples_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch, samples):
    values = np.random.default_rng(0).integers(0, 9, (samples, 3))

    def drawn():
        means = uncertainty.bootstrap_means(values, resamples=600, seed=3)
        sums = uncertainty.sign_flip_sums(values, flips=600, seed=3)
        return hashlib.sha256(means.tobytes() + sums.tobytes()).hexdigest()

    at_once = drawn()
    for numbers in (1, 3 * samples, 50 * samples):
        monkeypatch.setattr(uncertainty, "_NUMBERS", numbers)
        assert drawn() == at_once


def test_what_alpha_was_fitted_on_is_let_go_at_once(monkeypatch):
    trace, held = make_trace("strong", 8, 400, 3, 5), []
    plain = dynamic_confidence._chunks

    def watched(trace):
        chunks = plain(trace)
        held.append(weakref.ref(chunks))
        return chunks

    monkeypatch.setattr(dynamic_confidence, "_chunks", watched)
    gc.disable()
    try:
        dynamic_confidence.DynamicConfidence().learn(Calibration(trace))
        assert [chunks() for chunks in held] == [None]
    finally:
        gc.enable()
