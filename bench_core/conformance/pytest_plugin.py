"""What pytest loads wherever exitbench is installed: the option that names strategies for the kit. Imports little."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

__all__ = ["pytest_addoption"]


def pytest_addoption(parser: "pytest.Parser") -> None:
    """``pytest --pyargs bench_core.conformance --exit-strategy NAME``."""
    parser.getgroup("exitbench").addoption(
        "--exit-strategy",
        action="append",
        default=[],
        metavar="NAME",
        help="installed exit strategy to run the conformance kit on; may be repeated",
    )
