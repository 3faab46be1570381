"""``import exitbench`` gives what ``bench_core`` gives; ``python -m tests.public_types`` asks mypy about the names."""

import importlib

import pytest

import bench_core
import exitbench


@pytest.mark.parametrize("name", bench_core.__all__)
def test_both_names_have_the_same_objects(name):
    assert getattr(exitbench, name) is getattr(bench_core, name)


def test_what_is_no_public_name_is_refused_alike():
    for module in (bench_core, exitbench):
        with pytest.raises(AttributeError, match="no_such_name"):
            getattr(module, "no_such_name")  # noqa: B009  # as people write it
        assert set(module.__all__) <= {*dir(exitbench)}
    assert importlib.import_module("exitbench").__all__ == bench_core.__all__
