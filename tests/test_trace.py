"""Trace files: what is written is read back; whatever isn't a trace is refused by file, tensor and first bad index."""

import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from bench_core.errors import StoreError, TraceError
from bench_core.trace.files import load_trace, save_trace
from bench_core.trace.trace import COUNTS, LAYER_COUNTS, SCHEMA, Trace
from bench_core.util.digests import tensors_digest
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.traces import tensors_of

N, T, K = 5, 3, 4
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (
    torch.uint8,
    torch.int8,
    torch.uint16,
    torch.int16,
    torch.uint32,
    torch.int32,
    torch.uint64,
    torch.int64,
)


def tensors(**changes):
    """The tensors of a valid trace file, some replaced; None leaves one out."""
    generator = torch.Generator().manual_seed(1)
    content = {
        "logits": torch.randn(N, T, K, generator=generator),
        "labels": torch.tensor([0, 3, 1, 2, 0]),
        **changes,
    }
    return {name: value for name, value in content.items() if value is not None}


def counted():
    """Every optional tensor."""
    counts = {name: torch.arange(N * T).reshape(N, T) + number for number, name in enumerate(COUNTS)}
    return {**counts, "sample_ids": torch.tensor([7, 3, 11, 5, 2]), "macs_once": torch.arange(N)}


LAYERS = [{"name": "a", "size": 3}, {"name": "b", "size": 5}]


def by_layer():
    """The optional detail, for two layers."""
    return {name: torch.arange(N * T * 2).reshape(N, T, 2) + number for number, name in enumerate(LAYER_COUNTS)}


def write(path, content, header=None):
    save_file({name: value.contiguous() for name, value in content.items()}, path, header)
    return path


def refusal(path):
    """The one line that a file is refused with."""
    with pytest.raises(TraceError) as refused:
        load_trace(path)
    line = str(refused.value)
    assert "\n" not in line
    assert str(path) in line
    return line


def test_a_saved_trace_is_read_back_bit_for_bit(tmp_path):
    content = {**tensors(), **counted()}
    counts = {name: content[name] for name in COUNTS}
    header = {"workload": "w", "split": "test", "variant": "{}", "provenance": '{"recording": "x"}', "schema": SCHEMA}
    trace = Trace(content["logits"], content["labels"], content["sample_ids"], counts, content["macs_once"], header)
    save_trace(trace, tmp_path / "t.safetensors")
    found = load_trace(tmp_path / "t.safetensors")
    assert tensors_of(found).keys() == content.keys()
    for name, values in tensors_of(found).items():
        assert values.dtype == content[name].dtype
        assert torch.equal(values, content[name]), name
    assert found.header == header
    assert found.digest == trace.digest == tensors_digest(content)
    assert (len(found), found.timesteps, found.classes) == (N, T, K)


def test_saving_leaves_nothing_but_the_file(tmp_path):
    save_trace(Trace(**tensors(), sample_ids=torch.arange(N)), tmp_path / "t.safetensors")
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["t.safetensors"]


def test_saving_into_a_place_that_is_no_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        save_trace(Trace(**tensors(), sample_ids=torch.arange(N)), tmp_path / "file" / "t.safetensors")


def test_logits_and_labels_alone_are_a_trace(tmp_path):
    trace = load_trace(write(tmp_path / "t.safetensors", tensors()))
    assert torch.equal(trace.sample_ids, torch.arange(N))
    assert trace.counts == {}
    assert trace.macs_once is None
    assert trace.header == {}


@pytest.mark.parametrize("name", [*COUNTS, "macs_once", "sample_ids"])
def test_each_optional_tensor_may_stand_alone(tmp_path, name):
    values = counted()[name]
    trace = load_trace(write(tmp_path / "t.safetensors", tensors(**{name: values})))
    assert torch.equal(tensors_of(trace)[name], values)
    assert set(trace.counts) == {name} & set(COUNTS)


def test_optional_detail_is_not_taken_for_a_mistake(tmp_path):
    content = tensors(**by_layer())
    trace = load_trace(write(tmp_path / "t.safetensors", content, {"layers": json.dumps(LAYERS)}))
    assert trace.layers == LAYERS
    assert {name: values.tolist() for name, values in trace.layer_counts.items()} == {
        name: values.tolist() for name, values in by_layer().items()
    }
    some = trace.select(torch.tensor([3, 1]))
    assert torch.equal(some.layer_counts["layer_acs"], by_layer()["layer_acs"][[3, 1]])
    save_trace(trace, tmp_path / "again.safetensors")
    again = load_trace(tmp_path / "again.safetensors")
    assert (again.digest, again.layers) == (trace.digest, LAYERS)
    assert again.digest != load_trace(write(tmp_path / "plain.safetensors", tensors())).digest


BAD_DETAIL = {
    "no header": ({}, None, ["header 'layers'"]),
    "a header that is no list": ({}, {"a": 1}, ["header 'layers'"]),
    "a layer without a size": ({}, [*LAYERS[:1], {"name": "b"}], ["'layers'[1]", "size"]),
    "a layer without a name": ({}, [{"size": 3}, *LAYERS[1:]], ["'layers'[0]", "name"]),
    "fewer layers": ({}, LAYERS[:1], ["layer_acs", "[5, 3, 1]", "header"]),
    "another type": ({"layer_spikes": torch.zeros(N, T, 2)}, LAYERS, ["layer_spikes", "int64"]),
    "a negative count": ({"layer_spikes": -torch.ones(N, T, 2, dtype=torch.int64)}, LAYERS, ["layer_spikes[0, 0, 0]"]),
    "fewer timesteps": ({"layer_acs": torch.zeros(N, T - 1, 2, dtype=torch.int64)}, LAYERS, ["layer_acs", "[5, 3, 2]"]),
}


@pytest.mark.parametrize(("changes", "layers", "words"), BAD_DETAIL.values(), ids=BAD_DETAIL)
def test_bad_detail_is_refused(tmp_path, changes, layers, words):
    header = {} if layers is None else {"layers": json.dumps(layers)}
    line = refusal(write(tmp_path / "bad.safetensors", tensors(**{**by_layer(), **changes}), header))
    for word in words:
        assert word in line


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_floating_point_type_is_accepted(tmp_path, dtype):
    logits = tensors()["logits"].to(dtype)
    trace = load_trace(write(tmp_path / "t.safetensors", tensors(logits=logits)))
    assert trace.logits.dtype == dtype
    assert torch.equal(trace.predictions, logits.double().cumsum(1).argmax(2))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_labels_and_ids_may_be_of_any_integer_type(tmp_path, dtype):
    content = tensors(sample_ids=counted()["sample_ids"].to(dtype))
    content["labels"] = content["labels"].to(dtype)
    trace = load_trace(write(tmp_path / "t.safetensors", content))
    assert trace.labels.dtype == trace.sample_ids.dtype == torch.int64
    assert trace.labels.tolist() == tensors()["labels"].tolist()
    assert trace.sample_ids.tolist() == counted()["sample_ids"].tolist()


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_a_label_outside_is_found_in_any_integer_type(tmp_path, dtype):
    labels = torch.tensor([0, 3, 1, 4, 9]).to(dtype)
    assert "labels[3] = 4" in refusal(write(tmp_path / "t.safetensors", tensors(labels=labels)))


def test_predictions_are_of_the_sum_so_far_ties_to_the_lowest_class(tmp_path):
    logits = torch.tensor([[[0.0, 1.0, 1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 2.5]]])
    trace = load_trace(write(tmp_path / "t.safetensors", {"logits": logits, "labels": torch.tensor([1])}))
    assert trace.predictions.tolist() == [[1, 0, 2]]
    assert trace.correct.tolist() == [[True, False, False]]


def test_selecting_samples_takes_every_tensor_along(tmp_path):
    content = {**tensors(), **counted()}
    trace = load_trace(write(tmp_path / "t.safetensors", content, {"workload": "w"}))
    index = torch.tensor([4, 1])
    part = trace.select(index)
    assert part.header == {"workload": "w"}
    for name, values in tensors_of(part).items():
        assert torch.equal(values, content[name][index]), name


def test_the_digest_changes_with_any_tensor():
    base = {**tensors(), **counted()}
    seen = {tensors_digest(base)}
    for name, values in base.items():
        other = values.clone()
        other.view(-1)[0] += 1
        seen.add(tensors_digest({**base, name: other}))
    assert len(seen) == 1 + len(base)


def changed(name, index, value):
    """The tensors of a valid trace with one value replaced."""
    content = {**tensors(), **counted()}
    content[name] = content[name].clone()
    content[name][index] = value
    return content


REFUSED = {
    "logits missing": (tensors(logits=None, other=torch.zeros(1)), ["'logits' is missing", "[N, T, K]"]),
    "labels missing": (tensors(labels=None), ["'labels' is missing"]),
    "logits of whole numbers": (tensors(logits=torch.zeros(N, T, K, dtype=torch.int64)), ["logits is int64 [5, 3, 4]"]),
    "logits of two dimensions": (tensors(logits=torch.zeros(N, K)), ["logits is float32 [5, 4]", "[N, T, K]"]),
    "logits of four dimensions": (tensors(logits=torch.zeros(N, T, K, 1)), ["logits is float32 [5, 3, 4, 1]"]),
    "no samples": (tensors(logits=torch.zeros(0, T, K), labels=torch.zeros(0, dtype=torch.int64)), ["[0, 3, 4]"]),
    "no timesteps": (tensors(logits=torch.zeros(N, 0, K)), ["logits is float32 [5, 0, 4]", "timestep"]),
    "one class": (tensors(logits=torch.zeros(N, T, 1)), ["logits", "1 class", "at least 2"]),
    "no class": (tensors(logits=torch.zeros(N, T, 0)), ["logits", "0 class", "at least 2"]),
    "NaN": (changed("logits", (2, 1, 3), math.nan), ["logits[2, 1, 3] = nan"]),
    "infinite": (changed("logits", (4, 2, 0), math.inf), ["logits[4, 2, 0] = inf"]),
    "minus infinite": (changed("logits", (0, 0, 0), -math.inf), ["logits[0, 0, 0] = -inf"]),
    "label too high": (changed("labels", 2, 4), ["labels[2] = 4", "4 classes"]),
    "label below zero": (changed("labels", 4, -1), ["labels[4] = -1", "4 classes"]),
    "fractional labels": (tensors(labels=torch.zeros(N)), ["labels is float32 [5]", "whole numbers"]),
    "yes-or-no labels": (tensors(labels=torch.zeros(N, dtype=torch.bool)), ["labels is bool [5]", "whole numbers"]),
    "too few labels": (tensors(labels=torch.zeros(N - 1, dtype=torch.int64)), ["labels is int64 [4]", "[5]"]),
    "labels of two dimensions": (tensors(labels=torch.zeros(N, 1, dtype=torch.int64)), ["labels is int64 [5, 1]"]),
    "id twice": (changed("sample_ids", 3, 7), ["sample_ids[3] = 7", "unique"]),
    "fractional ids": (tensors(sample_ids=torch.arange(N) / 2), ["sample_ids is float32 [5]"]),
    "too many ids": (tensors(sample_ids=torch.arange(N + 1)), ["sample_ids is int64 [6]", "[5]"]),
    "count of another type": (tensors(acs=torch.zeros(N, T, dtype=torch.int32)), ["acs is int32 [5, 3]", "int64"]),
    "count of another shape": (tensors(spikes=torch.zeros(N, dtype=torch.int64)), ["spikes is int64 [5]", "[5, 3]"]),
    "count with another T": (tensors(macs=torch.zeros(N, 4, dtype=torch.int64)), ["macs is int64 [5, 4]", "[5, 3]"]),
    "count below zero": (changed("neuron_updates", (1, 2), -1), ["neuron_updates[1, 2]", "negative"]),
    "once of another shape": (tensors(macs_once=torch.zeros(N, T, dtype=torch.int64)), ["macs_once is int64 [5, 3]"]),
    "once below zero": (changed("macs_once", 3, -5), ["macs_once[3]", "negative"]),
}


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refusal_names_file_tensor_and_first_bad_index(tmp_path, content, words):
    line = refusal(write(tmp_path / "bad.safetensors", content))
    for word in words:
        assert word in line


def test_the_first_of_several_bad_values_is_named(tmp_path):
    content = {**tensors(), **counted()}
    content["logits"][3:] = math.nan
    content["labels"][1:] = 9
    assert "logits[3, 0, 0]" in refusal(write(tmp_path / "a.safetensors", content))
    content["logits"] = tensors()["logits"]
    assert "labels[1] = 9" in refusal(write(tmp_path / "b.safetensors", content))
    content["labels"] = tensors()["labels"]
    content["sample_ids"] = torch.tensor([8, 6, 6, 8, 8])
    assert "sample_ids[2] = 6" in refusal(write(tmp_path / "c.safetensors", content))


def test_a_bad_value_in_a_later_chunk_has_its_own_index(tmp_path, monkeypatch):
    monkeypatch.setattr("bench_core.util.sample_rows._CACHED", 2 * T * K)
    line = refusal(write(tmp_path / "bad.safetensors", changed("logits", (4, 1, 2), math.inf)))
    assert "logits[4, 1, 2] = inf" in line


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"schema": "exitbench.trace/2"}, ["schema", "exitbench.trace/2", SCHEMA]),
        ({"variant": "{"}, ["'variant'", "JSON"]),
        ({"provenance": "no"}, ["'provenance'", "JSON"]),
        ({"layers": ""}, ["'layers'", "JSON"]),
        ({"provenance": "[" * 100_000}, ["'provenance'", "JSON"]),
    ],
    ids=["schema", "variant", "provenance", "layers", "deeply nested"],
)
def test_a_bad_header_is_refused(tmp_path, header, words):
    line = refusal(write(tmp_path / "bad.safetensors", tensors(), header))
    for word in words:
        assert word in line


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 64, b"logits,labels\n1,2\n"], ids=repr)
def test_a_file_of_another_format_is_refused(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    assert "safetensors" in refusal(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "absent.safetensors")
    assert "safetensors" in refusal(tmp_path)


def test_a_truncated_file_is_refused(tmp_path):
    path = write(tmp_path / "t.safetensors", {**tensors(), **counted()})
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        refusal(path)


VALID = {**tensors(), **counted()}
HEADER = {"workload": "w", "split": "test", "schema": SCHEMA, "variant": "{}", "provenance": "{}", "layers": "[]"}


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_bytes_are_a_trace_or_a_trace_error_and_nothing_else(tmp_path, data):
    path = write(tmp_path / "mutated.safetensors", VALID, HEADER)
    content = bytearray(path.read_bytes())
    header_end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        end = data.draw(st.sampled_from([9, header_end, len(content)]))
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        trace = load_trace(path)
    except TraceError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    else:
        assert torch.isfinite(trace.logits).all()
        assert ((trace.labels >= 0) & (trace.labels < trace.classes)).all()
        assert len(trace.sample_ids.unique()) == len(trace)
        assert trace.predictions.shape == (len(trace), trace.timesteps)
        assert trace.digest
