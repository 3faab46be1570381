"""Some damaged files for every loader; ``python -m tests.fuzz`` gives each of them 20,000."""

import signal

import pytest

from tests.fuzz.driver import fuzz
from tests.fuzz.loaders import LOADERS

CASES = {"archives": 200, "artifacts": 60, "board": 39, "bundles": 100, "indices": 150, "published": 100}


# A library that reads recordings leaves files open that it refuses.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", LOADERS)
def test_a_damaged_file_is_accepted_or_refused_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setenv("EXITBENCH_HOME", str(tmp_path / "home"))
    said = []
    counts = fuzz(name, tmp_path, CASES.get(name, 400), 7, report=said.append)
    assert counts["failed"] == 0, said
    assert counts["accepted"] > 0
    assert signal.getitimer(signal.ITIMER_REAL) == signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
