"""The pytest plugin, loaded wherever exitbench is installed: adds the option ``--exit-strategy``. Imports little."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

__all__ = ["pytest_addoption"]


def pytest_addoption(parser: "pytest.Parser") -> None:
    """Add the option for ``pytest --pyargs bench_core.conformance --exit-strategy NAME``."""
    parser.getgroup("exitbench").addoption(
        "--exit-strategy",
        action="append",
        default=[],
        metavar="NAME",
        help="installed exit strategy to run the conformance kit on; may be repeated",
    )
