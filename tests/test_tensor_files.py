"""safetensors files of our own writing hold what the format's own library reads, in whatever pieces they were given."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bench_core.errors import StoreError
from bench_core.util.digests import tensor_digest
from bench_core.util.safetensors_files import read_safetensors, write_safetensors
from bench_core.util.sample_rows import SampleRows

TYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool),
)
OF_TRACES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64)
SHAPES = ((), (0,), (1,), (3, 2), (2, 0, 4), (2, 3, 4))


def same(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and tensor_digest(one) == tensor_digest(other)


def every_type_and_shape():
    return {
        f"{number} {shape}": torch.arange(math.prod(shape)).reshape(shape).to(dtype)
        for number, dtype in enumerate(TYPES)
        for shape in SHAPES
    }


def test_every_type_and_shape_is_read_by_the_formats_own_library(tmp_path):
    tensors, header = every_type_and_shape(), {"artifact": '{"a": "µ\\n"}', "empty": ""}
    written = write_safetensors(tmp_path / "t", tensors, header)
    found = load_file(tmp_path / "t")
    assert written.keys() == found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same(found[name], tensor), name
        assert same(written[name], tensor), name
    with safe_open(tmp_path / "t", framework="pt") as handle:
        assert handle.metadata() == header
    assert read_safetensors(tmp_path / "t")[1] == header


def test_it_lies_in_the_file_as_the_library_would_write_it(tmp_path):
    tensors = {"b": torch.arange(5), "a": torch.arange(3.0), "c": torch.tensor([True, False, True])}
    write_safetensors(tmp_path / "ours", tensors, {"x": "y"})
    save_file(tensors, tmp_path / "theirs", {"x": "y"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5), dtype=st.sampled_from(OF_TRACES))
def test_rows_are_written_as_the_tensor_that_they_make_up(tmp_path, data, sizes, dtype):
    total = sum(sizes)
    whole = torch.arange(total * 6).reshape(total, 3, 2).to(dtype)
    rows = SampleRows(whole.split(sizes))
    if data.draw(st.booleans()):
        index = torch.tensor(data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=9)))
        rows, whole = rows.select(index), torch.stack([whole[i] for i in index.tolist()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench_core.util.sample_rows._CACHED", data.draw(st.integers(1, 20)))
        patch.setattr(SampleRows, "whole", lambda _self: pytest.fail("all of it in memory"))
        write_safetensors(tmp_path / "t", {"rows": rows, "beside": torch.arange(3)}, {})
        assert tensor_digest(rows) == tensor_digest(whole)
    found = load_file(tmp_path / "t")
    assert same(found["rows"], whole)
    assert same(found["beside"], torch.arange(3))


def test_what_was_written_can_be_read_on_after_the_file_is_gone(tmp_path):
    written = write_safetensors(tmp_path / "t", {"a": torch.arange(1000)}, {})
    (tmp_path / "t").unlink()
    assert torch.equal(written["a"], torch.arange(1000))


def test_a_place_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be written") as refused:
        write_safetensors(tmp_path / "file" / "t", {}, {})
    assert "\n" not in str(refused.value)
