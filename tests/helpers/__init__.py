"""What several test files share: a tiny plugin, suites made of it, and a home of its own for every test."""

import pytest


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """The store of this test alone. Test files import this fixture, which is enough to switch it on."""
    home = tmp_path / "home"
    monkeypatch.setenv("EXITBENCH_HOME", str(home))
    monkeypatch.delenv("EXITBENCH_STRICT_PLUGINS", raising=False)
    return home
