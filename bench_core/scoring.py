"""From traces to scored policies: fit on one half of calibration, choose on the other, replay on test, once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bench_core.costs.models import CostModel
from bench_core.costs.operations import Array, OperationCounts
from bench_core.curves import FamilyOnTrace, candidates, thin
from bench_core.data import calibration_halves
from bench_core.exits import (
    Calibration,
    ExitPolicy,
    ExitStrategy,
    NeverExit,
    PolicyFamily,
    Requirement,
    ScoreFamily,
    State,
)
from bench_core.knobs import KnobValue
from bench_core.progress import note
from bench_core.replay import InputFrames, Outcome, replay_policy
from bench_core.selection import OperatingPoint, choose
from bench_core.trace import Trace

__all__ = [
    "Contest",
    "Recorded",
    "ScoredPolicy",
    "StrategyScores",
    "fit_family",
    "halve",
    "mean_energy",
    "operation_counts",
    "score_strategy",
]

Artifacts = Callable[[Mapping[str, Any], Callable[[], State]], State]
CURVE_POINTS = 100


@dataclass(frozen=True)
class Recorded:
    """A trace, and where they are to be had the network inputs of its samples."""

    trace: Trace
    inputs: InputFrames | None = None


@dataclass(frozen=True)
class Contest:
    """What all strategies are compared on: the two halves of calibration, the test split, a place for artifacts."""

    fit: Recorded
    select: Recorded
    test: Recorded
    artifacts: Artifacts | None = None


@dataclass(frozen=True)
class ScoredPolicy:
    """One strategy at one operating point.

    Attributes:
        status: ``ok``, ``fallback`` (static T stands in, because nothing kept the accuracy) or ``infeasible``.
        value: of the family knob; None where no policy of the family was chosen.
        policy, outcome: what was replayed on test and where it stopped the samples; None where infeasible.
        select_accuracy, select_timestep: of the chosen policy on the select half.
        counts: what each test sample spent until its exit; None where infeasible.
    """

    point: OperatingPoint
    status: str
    value: KnobValue | None = None
    policy: ExitPolicy | None = None
    outcome: Outcome | None = field(default=None, repr=False)
    select_accuracy: float | None = None
    select_timestep: float | None = None
    counts: OperationCounts | None = field(default=None, repr=False)


@dataclass(frozen=True)
class StrategyScores:
    """A strategy on a contest: its policies at the operating points, and its curve on test.

    Attributes:
        parameters: every knob but the family's, fitted values included.
        curve: (knob value, average exit timestep, accuracy) of at most 100 policies on the test split.
    """

    parameters: dict[str, KnobValue | None]
    policies: list[ScoredPolicy]
    curve: list[tuple[KnobValue, float, float]]


def halve(recorded: Recorded) -> tuple[Recorded, Recorded]:
    """The ``fit`` and ``select`` halves of a calibration trace."""
    fit, select = calibration_halves(recorded.trace.labels, recorded.trace.sample_ids)

    def half(index: torch.Tensor) -> Recorded:
        read = recorded.inputs
        inputs = None if read is None else lambda positions, frames: read(index[positions], frames)
        return Recorded(recorded.trace.select(index), inputs)

    return half(fit), half(select)


def fit_family(strategy: ExitStrategy, calibration: Recorded, artifacts: Artifacts | None = None) -> PolicyFamily:
    """Fit a strategy on calibration data. Whatever the strategy raises comes through."""
    read, trace = calibration.inputs, calibration.trace

    def first_frames() -> torch.Tensor:
        assert read is not None
        return read(torch.arange(len(trace)), 1)[:, 0]

    wanted = Requirement.INPUTS in strategy.requires and read is not None
    return strategy.fit(Calibration(trace, first_frames if wanted else None, artifacts))


def score_strategy(strategy: ExitStrategy, contest: Contest, points: Sequence[OperatingPoint]) -> StrategyScores:
    """Fit, choose a policy for each operating point, and replay the chosen ones on test."""
    family = fit_family(strategy, contest.fit, contest.artifacts)
    looks = Requirement.INPUTS in strategy.requires
    on_fit, on_select, on_test = (
        FamilyOnTrace(family, recorded.trace, recorded.inputs if looks else None)
        for recorded in (contest.fit, contest.select, contest.test)
    )
    values = candidates(on_fit)
    exit_sums, correct = on_select.curve(values)
    select = contest.select.trace
    static_correct = int(select.correct[:, -1].sum())
    policies: list[ScoredPolicy] = []
    for point in points:
        value: KnobValue | None
        policy: ExitPolicy
        chosen = choose(
            point,
            exit_sums,
            correct,
            static_correct=static_correct,
            samples=len(select),
            timesteps=select.timesteps,
        )
        if chosen is None and point.kind == "budget":
            policies.append(ScoredPolicy(point, "infeasible"))
            continue
        if chosen is not None:
            status, value = "ok", values[chosen]
            policy, outcome = family.policy(value), on_test.outcome(value)
            right, spent = int(correct[chosen]), int(exit_sums[chosen])
        else:
            status, value, policy = "fallback", None, NeverExit()
            outcome = replay_policy(policy, contest.test.trace)
            right, spent = static_correct, len(select) * select.timesteps
        counts = operation_counts(contest.test.trace, outcome, policy)
        figures = right / len(select), spent / len(select), counts
        policies.append(ScoredPolicy(point, status, value, policy, outcome, *figures))
    parameters = family.strategy.parameters if isinstance(family, ScoreFamily) else strategy.parameters
    return StrategyScores(dict(parameters), policies, _test_curve(on_test, values))


def _test_curve(on_test: FamilyOnTrace, values: Sequence[KnobValue]) -> list[tuple[KnobValue, float, float]]:
    sums, correct = on_test.curve(values)
    order = np.argsort(sums, kind="stable")
    kept = order[thin(sums[order], CURVE_POINTS)]
    samples = len(on_test.trace)
    return [(values[i], int(sums[i]) / samples, int(correct[i]) / samples) for i in kept]


def operation_counts(trace: Trace, outcome: Outcome, policy: ExitPolicy) -> OperationCounts:
    """What each sample spent until its exit, controller included."""
    exits = outcome.exit_timesteps.numpy()

    def spent(name: str) -> Array | None:
        if name not in trace.counts:
            return None
        running: Array = np.cumsum(trace.counts[name].numpy(), axis=1)
        until_exit: Array = running[np.arange(len(exits)), exits - 1]
        return until_exit

    macs = spent("macs")
    if macs is not None and trace.macs_once is not None:
        macs = macs + trace.macs_once.numpy()
    return OperationCounts(
        timesteps=exits,
        macs=macs,
        acs=spent("acs"),
        neuron_updates=spent("neuron_updates"),
        spikes=spent("spikes"),
        decisions=np.minimum(exits, trace.timesteps - 1),
        overhead=policy.overhead(trace.classes),
    )


def mean_energy(model: CostModel, counts: OperationCounts) -> float | None:
    """Mean joules per sample, or None where a count that the model needs was not recorded or the model fails."""
    if any(getattr(counts, name) is None for name in model.requires):
        return None
    try:
        return float(np.mean(model.energy(counts)))
    except Exception as error:  # a plugin may raise anything
        note(f"cost model {model.name}: failed: {type(error).__name__}: {error}")
        return None
