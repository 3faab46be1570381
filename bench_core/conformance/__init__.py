"""The conformance kit: named checks that any exit strategy, shipped or not, has to pass.

``exitbench plugin check`` runs them on an installed plugin, ``pytest --pyargs bench_core.conformance --exit-strategy
NAME`` the same under pytest, and an author's own test file goes over ``CHECKS``. The names are imported when first
used, because pytest loads this package in every project where exitbench is installed.
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
    if name not in _HOMES:
        raise AttributeError(f"module 'bench_core.conformance' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bench_core.conformance.{_HOMES[name]}"), name)
