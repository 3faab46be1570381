"""The conformance kit under pytest: ``--pyargs bench_core.conformance --exit-strategy NAME`` runs a test per check."""

import pytest

from bench_core.conformance.checks import CHECKS
from bench_core.conformance.harness import Check
from bench_core.errors import ExitBenchError
from bench_core.exits.strategy import ExitStrategy
from bench_core.plugins import load_registry

__all__ = ["pytest_generate_tests", "test_conformance"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Generate a test per named strategy and check."""
    names = metafunc.config.getoption("--exit-strategy")
    if not names:
        raise pytest.UsageError("say which strategy: --exit-strategy NAME")
    registry = load_registry()
    try:
        strategies = [registry.find("strategies", name) for name in names]
    except ExitBenchError as error:
        raise pytest.UsageError(str(error)) from None
    metafunc.parametrize("check", CHECKS, ids=[check.name for check in CHECKS])
    metafunc.parametrize("strategy", strategies, ids=names)


def test_conformance(strategy: ExitStrategy, check: Check) -> None:
    """Run one check on one strategy."""
    check(strategy)
