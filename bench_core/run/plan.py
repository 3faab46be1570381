"""Plan of a suite: its operating points, cost models, strategies and workloads, resolved from their names."""

from dataclasses import dataclass

from bench_core.costs.models import CostModel
from bench_core.costs.operations import FirstLayer
from bench_core.errors import UsageError
from bench_core.exits.strategy import ExitStrategy
from bench_core.isolation.foreign_code import STAGE_MINUTES, STRATEGY_MINUTES
from bench_core.plugins import Registry
from bench_core.run.artifacts import Workload
from bench_core.run.provenance import code_digest
from bench_core.run.suite import EVERY_STRATEGY, CostModelSpec, ShiftSpec, Suite
from bench_core.scoring.operating_points import OperatingPoint

__all__ = ["Competitor", "Limits", "Plan", "competitors", "plan"]


@dataclass(frozen=True)
class Competitor:
    """A strategy with its knobs set, and its label on the board."""

    label: str
    strategy: ExitStrategy


@dataclass(frozen=True)
class Limits:
    """Time limits in minutes: for a strategy on a workload, and for a stage that trains, converts or records."""

    strategy: float = STRATEGY_MINUTES
    stage: float = STAGE_MINUTES

    @classmethod
    def of(cls, minutes: float | None) -> "Limits":
        """Return the same limit for both, or the defaults."""
        return cls() if minutes is None else cls(minutes, minutes)


@dataclass(frozen=True)
class Plan:
    """A suite with all its names resolved."""

    points: list[OperatingPoint]
    cost_models: list[CostModel]
    first_layer: FirstLayer
    competitors: list[Competitor]
    workloads: list[Workload]
    shift: ShiftSpec | None
    limits: Limits = Limits()


def plan(suite: Suite, registry: Registry) -> Plan:
    """Resolve everything that a suite names; raise UsageError for an invalid name, knob or operating point."""
    found = Plan(
        [OperatingPoint.parse(text) for text in suite.operating_points],
        _cost_models(suite, registry),
        suite.first_layer,
        competitors(suite, registry),
        [Workload.resolve(spec, registry) for spec in suite.workloads],
        suite.shift,
        Limits.of(suite.limit_minutes),
    )
    loaded: list[type] = [type(one.strategy) for one in found.competitors]
    loaded += [type(one.converter) for one in found.workloads if one.converter is not None]
    for made in loaded:
        code_digest(made)  # now, because this is the code as loaded and run
    return found


def competitors(suite: Suite, registry: Registry) -> list[Competitor]:
    """Return the strategies of a suite in order, with ``*`` expanded to every registered one; raise UsageError."""
    found: dict[str, Competitor] = {}
    for spec in suite.strategies:
        names = list(registry.strategies) if spec.name == EVERY_STRATEGY else [spec.name]
        for name in names:
            strategy = registry.find("strategies", name)
            if strategy.family_knob.name in spec.parameters:
                raise UsageError(
                    f"{name}: {strategy.family_knob.name} is chosen by the operating points, not by the suite"
                )
            strategy = strategy.with_parameters(spec.parameters)
            found.setdefault(strategy.label, Competitor(strategy.label, strategy))
    return list(found.values())


def _cost_models(suite: Suite, registry: Registry) -> list[CostModel]:
    found: dict[str, CostModel] = {}
    for wanted in suite.cost_models:
        spec = CostModelSpec(name=wanted) if isinstance(wanted, str) else wanted
        model = registry.find("cost_models", spec.name)
        if spec.parameters:
            model = model.with_parameters(spec.parameters)
        found.setdefault(model.label, model)
    return list(found.values())
