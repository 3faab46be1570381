"""Running all checks on a strategy, and finding the strategies of a distribution, a plugin or a file."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench_core.conformance.checks import CHECKS
from bench_core.conformance.harness import ConformanceError, Subject
from bench_core.errors import ExitBenchError, UsageError, one_line
from bench_core.exits.strategy import ExitStrategy
from bench_core.isolation.foreign_code import foreign_code
from bench_core.isolation.tracebacks import described, full_traceback
from bench_core.knobs import nearest
from bench_core.plugins import PluginRecord, Registry

__all__ = ["Verdict", "examine", "plugin_file", "plugins_of", "strategies_of"]


@dataclass(frozen=True)
class Verdict:
    """The result of one check of one strategy.

    Attributes:
        strategy: its name.
        check: its name.
        problem: empty, or one line on how the rule is broken.
        was_run: False if an earlier failure left nothing to check.
        traceback: of an exception that the strategy raised, as Python prints it.
    """

    strategy: str
    check: str
    problem: str = ""
    was_run: bool = True
    traceback: str = ""

    @property
    def passed(self) -> bool:
        """Whether the check was run and found no problem."""
        return self.was_run and not self.problem

    def __str__(self) -> str:
        """Return the verdict as a line."""
        outcome = "passed" if self.passed else f"failed: {self.problem}" if self.was_run else "not run"
        return f"{self.strategy}  {self.check:<16}  {outcome}"


def examine(strategy: ExitStrategy) -> Iterator[Verdict]:
    """Run every check on a strategy, one after the other.

    The first, ``runs``, is a precondition of all others: if it fails, they are not run.
    """
    subject = Subject(strategy)
    runs = True
    for check in CHECKS:
        if not runs:
            yield Verdict(strategy.name, check.name, was_run=False)
            continue
        problem = trace = ""
        try:
            with foreign_code(f"strategy {strategy.name}"):
                check.test(subject)
        except (ConformanceError, ExitBenchError) as error:
            problem = one_line(_line(str(error)))
        except Exception as error:  # anything a strategy raises is a verdict on it
            problem, trace = f"raises {described(error)}", full_traceback(error)
        yield Verdict(strategy.name, check.name, problem, traceback=trace)
        runs = check is not CHECKS[0] or not problem


def plugins_of(wanted: str, registry: Registry) -> list[PluginRecord]:
    """Return the plugins of the distribution with this name, otherwise the plugin with this name.

    Dashes, dots and underscores are equivalent.

    Raises:
        UsageError: there is none; suggests the nearest name.
    """
    by_distribution = [p for p in registry.plugins if _plain(p.distribution) == _plain(wanted)]
    by_name = [p for p in registry.plugins if _plain(p.name) == _plain(wanted)]
    if found := by_distribution or by_name:
        return found
    known = {name for plugin in registry.plugins for name in (plugin.distribution, plugin.name)}
    raise UsageError(
        f"no distribution or plugin is called {wanted!r}{nearest(wanted, sorted(known))}; `exitbench list plugins` "
        "shows them, and a .py file can be checked too"
    )


def strategies_of(plugins: list[PluginRecord], registry: Registry) -> list[ExitStrategy]:
    """Return every strategy that these plugins registered."""
    owned = [name for name in registry.strategies if registry.owners["strategies", name] in plugins]
    return [registry.strategies[name] for name in owned]


def plugin_file(wanted: str) -> Path | None:
    """Return the file if ``wanted`` names a .py file, otherwise None; raise UsageError if it does not exist."""
    path = Path(wanted)
    if path.suffix != ".py":
        return None
    if not path.is_file():
        raise UsageError(f"{wanted}: no such file")
    return path


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _line(text: str) -> str:
    return " ".join(text.split())
