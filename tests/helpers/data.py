"""What the tests of the data sets' readers share."""

import pytest

from bench_core.errors import DataError


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    """Nothing but a test's own files is read. Test files import this fixture, which is enough to switch it on."""
    monkeypatch.delenv("EXITBENCH_DATA", raising=False)


def refused(read, *words):
    """Assert that ``read`` is refused in one line that holds the words."""
    with pytest.raises(DataError) as error:
        read()
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
