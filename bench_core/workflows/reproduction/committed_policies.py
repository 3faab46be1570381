"""The policies of a committed board, at the knobs in its rows, on any trace of the same workload."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench_core.exits.strategy import ExitStrategy, PolicyFamily, Requirement, ScoreFamily
from bench_core.isolation.failures import guarded
from bench_core.knobs import KnobValue
from bench_core.replay.controller import Outcome, score_tables, static_outcome
from bench_core.replay.family import FamilyOnTrace
from bench_core.run.plan import Competitor
from bench_core.scoring.scores import Artifacts, Recorded, fit_family
from bench_core.workflows.reproduction.contract import near_threshold

__all__ = ["CommittedPolicies", "ReplayedPolicies", "looks_at_inputs"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class CommittedPolicies:
    """The strategies of one workload, fitted as they were for its board.

    Attributes:
        strategies: by label.
        families: by label, the fitted family, or a message why there is none.
    """

    strategies: Mapping[str, ExitStrategy]
    families: Mapping[str, PolicyFamily | str]

    @classmethod
    def fitted(
        cls, competitors: Sequence[Competitor], fit: Recorded, artifacts: Artifacts | None
    ) -> "CommittedPolicies":
        """Fit every strategy.

        Args:
            competitors: the strategies of the board.
            fit: the ``fit`` half of its calibration trace.
            artifacts: where its policy networks are stored.
        """
        strategies = {one.label: one.strategy for one in competitors}
        families: dict[str, PolicyFamily | str] = {}
        for label, strategy in strategies.items():
            if looks_at_inputs(strategy) and fit.inputs is None:
                families[label] = "unavailable: needs inputs"
            else:
                families[label] = guarded(f"fit {label}", fit_family, strategy, fit, artifacts)
        return cls(strategies, families)

    def on(self, recorded: Recorded) -> "ReplayedPolicies":
        """Return the policies replayed on a trace."""
        inputs = {label: recorded.inputs for label, one in self.strategies.items() if looks_at_inputs(one)}
        families = dict(self.families)
        for label in inputs:
            if recorded.inputs is None:
                families[label] = "unavailable: needs inputs"
        scored = {label: one.strategy for label, one in families.items() if isinstance(one, ScoreFamily)}
        tables = score_tables(list(scored.values()), recorded.trace, [inputs.get(label) for label in scored])
        scores: dict[str, torch.Tensor] = {}
        for label, table in zip(scored, tables, strict=True):
            if isinstance(table, Exception):
                families[label] = f"failed: {type(table).__name__}: {table}"
            else:
                scores[label] = table
        found = {
            label: family
            if isinstance(family, str)
            else FamilyOnTrace(family, recorded.trace, inputs.get(label), scores.get(label))
            for label, family in families.items()
        }
        return ReplayedPolicies(self, recorded, found, scores)


@dataclass(frozen=True)
class ReplayedPolicies:
    """The policies of one workload's rows on one trace.

    Attributes:
        committed: the fitted strategies.
        recorded: the trace, with its inputs if available.
        families: by label, the family on that trace, or a message why there is none.
        scores: of every score strategy, float64 [N, T - 1].
    """

    committed: CommittedPolicies
    recorded: Recorded
    families: Mapping[str, FamilyOnTrace | str]
    scores: Mapping[str, torch.Tensor]

    def outcome(self, row: Row) -> Outcome | str:
        """Return where the policy of a row stops every sample, or a message why that is unknown.

        Args:
            row: of rows.csv with status ``ok`` or ``fallback: …``, or of curves.csv.
        """
        if _falls_back(row):
            return static_outcome(self.recorded.trace)
        label = str(row["strategy"])
        family = self.families.get(label, "failed: the suite has no such strategy")
        if isinstance(family, str):
            return family
        value = self._value(label, row["value"])
        found: Outcome | str = guarded(f"{label} at {value}", family.outcome, value)
        return found

    def undecided(self, row: Row) -> int:
        """Return how many samples are so close to a row's threshold that rounding may decide where they stop."""
        label = str(row["strategy"])
        family = self.committed.families.get(label)
        if _falls_back(row) or label not in self.scores or not isinstance(family, ScoreFamily):
            return 0
        return near_threshold(self.scores[label], family.policy(self._value(label, row["value"])).threshold)

    def _value(self, label: str, cell: Any) -> KnobValue:
        """Convert a cell of the column ``value`` to the type of the family's knob."""
        kind = self.committed.strategies[label].family_knob.kind
        if kind == "choice":
            return str(cell)
        return int(float(cell)) if kind == "int" else float(cell)


def looks_at_inputs(strategy: ExitStrategy) -> bool:
    """Return whether a strategy needs network inputs in addition to traces."""
    return Requirement.INPUTS in strategy.requires


def _falls_back(row: Row) -> bool:
    return str(row.get("status", "")).startswith("fallback")
