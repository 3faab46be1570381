"""The conformance kit: named checks that every exit strategy, shipped or not, must pass.

``exitbench plugin check`` runs them on an installed plugin, ``pytest --pyargs bench_core.conformance --exit-strategy
NAME`` runs the same under pytest, and a plugin's own tests can iterate over ``CHECKS``. Names are imported on first
use, because pytest loads this package in every project in whose environment exitbench is installed.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench_core.conformance.checks import CHECKS as CHECKS
    from bench_core.conformance.harness import Check as Check
    from bench_core.conformance.harness import ConformanceError as ConformanceError
    from bench_core.conformance.runner import Verdict as Verdict
    from bench_core.conformance.runner import examine as examine

_HOMES = {
    "CHECKS": "checks",
    "Check": "harness",
    "ConformanceError": "harness",
    "Verdict": "runner",
    "examine": "runner",
}

__all__ = [*_HOMES]  # noqa: PLE0604  # strings, all of them


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'bench_core.conformance' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bench_core.conformance.{_HOMES[name]}"), name)
