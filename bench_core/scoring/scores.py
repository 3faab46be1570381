"""Scoring of strategies on traces: fit on one half of calibration, choose on the other, replay on test once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
import torch

from bench_core.costs.models import CostModel
from bench_core.costs.operations import FirstLayer, OperationCounts, Overhead
from bench_core.data import calibration_halves
from bench_core.errors import ForeignCodeError, PluginError
from bench_core.exits.strategy import (
    Calibration,
    ExitPolicy,
    ExitStrategy,
    ListedPolicies,
    NeverExit,
    Observation,
    PolicyFamily,
    Requirement,
    ScoreFamily,
    State,
    observe,
)
from bench_core.isolation.failures import guarded
from bench_core.isolation.foreign_code import is_ours
from bench_core.isolation.plugin_code import code_of_class, refuse_changed
from bench_core.knobs import KnobValue, plain_value
from bench_core.replay.controller import InputFrames, Outcome, replay_policy, score_table, score_tables, static_outcome
from bench_core.replay.family import FamilyOnTrace, candidates, thin
from bench_core.scoring.operating_points import OperatingPoint, choose
from bench_core.scoring.private_trace import PrivateTrace
from bench_core.trace.trace import Trace
from bench_core.util.arrays import Array

__all__ = [
    "Contest",
    "Entry",
    "PolicySamples",
    "Recorded",
    "ScoredPolicy",
    "StrategyScores",
    "WorkloadScores",
    "fit_family",
    "halve",
    "mean_costs",
    "operation_counts",
    "policy_samples",
    "score_alone",
    "score_strategy",
    "score_together",
]

Artifacts = Callable[[Mapping[str, Any], Callable[[], State]], State]
CURVE_POINTS = 100
_ASKED_AGAIN = 64  # samples


@dataclass(frozen=True)
class Recorded:
    """A trace and, if available, the network inputs of its samples."""

    trace: Trace
    inputs: InputFrames | None = None


@dataclass(frozen=True)
class Contest:
    """The data on which strategies are compared: both halves of calibration, the test split, and an artifact store."""

    fit: Recorded
    select: Recorded
    test: Recorded
    artifacts: Artifacts | None = None


@dataclass(frozen=True)
class ScoredPolicy:
    """One strategy at one operating point.

    Attributes:
        point: the operating point.
        status: ``ok``, ``fallback`` (static T is used, because no policy met the accuracy or none could be certified)
            or ``infeasible``.
        value: of the family knob; None if no policy of the family was chosen.
        make: returns the policy; None if infeasible.
        outcome: where it stopped the test samples; None if infeasible.
        select_accuracy: accuracy of the chosen policy on the select half.
        select_timestep: average exit timestep of the chosen policy on the select half.
        overhead: what the policy costs on top of the network; None if undeclared.
    """

    point: OperatingPoint
    status: str
    value: KnobValue | None = None
    make: Callable[[], ExitPolicy] | None = field(default=None, repr=False)
    outcome: Outcome | None = field(default=None, repr=False)
    select_accuracy: float | None = None
    select_timestep: float | None = None
    overhead: Overhead | None = None

    @cached_property
    def policy(self) -> ExitPolicy | None:
        """The policy replayed on test, created on first access; None if infeasible."""
        return None if self.make is None else self.make()


@dataclass(frozen=True)
class StrategyScores:
    """A strategy's policies at the operating points, and its curve on test.

    Attributes:
        parameters: every knob except the family's, including fitted values.
        policies: one per operating point.
        curve: (knob value, average exit timestep, accuracy) of at most 100 policies on the test split.
    """

    parameters: dict[str, KnobValue | None]
    policies: list[ScoredPolicy]
    curve: list[tuple[KnobValue, float, float]]


@dataclass(frozen=True)
class Entry:
    """One strategy on one workload: its scores, or why it has none."""

    label: str
    knob: str
    scores: StrategyScores | None
    problem: str = ""


@dataclass(frozen=True)
class WorkloadScores:
    """All entries of one workload; ``test`` is None if the workload itself failed."""

    name: str
    entries: Sequence[Entry]
    test: Trace | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class PolicySamples:
    """Per-sample results of a policy on test, int64 [N] each.

    Attributes:
        right: 1 if the prediction at the exit is the label.
        exit_timesteps: t-hat.
        harmed: 1 if stopping early turned a correct prediction into a wrong one.
        helped: 1 if stopping early turned a wrong prediction into a correct one.
    """

    right: Array
    exit_timesteps: Array
    harmed: Array
    helped: Array


def policy_samples(test: Trace, outcome: Outcome) -> PolicySamples:
    """Return a policy's per-sample results, given its outcome on the trace."""
    right = (outcome.predictions == test.labels).numpy().astype(np.int64)
    at_end = test.correct[:, -1].numpy().astype(np.int64)
    return PolicySamples(right, outcome.exit_timesteps.numpy(), at_end * (1 - right), right * (1 - at_end))


def halve(recorded: Recorded) -> tuple[Recorded, Recorded]:
    """Split a calibration trace into its ``fit`` and ``select`` halves."""
    fit, select = calibration_halves(recorded.trace.labels, recorded.trace.sample_ids)

    def half(index: torch.Tensor) -> Recorded:
        read = recorded.inputs
        inputs = None if read is None else lambda positions, frames: read(index[positions], frames)
        return Recorded(recorded.trace.select(index), inputs)

    return half(fit), half(select)


def fit_family(
    strategy: ExitStrategy,
    calibration: Recorded,
    artifacts: Artifacts | None = None,
    observed: Mapping[Observation, torch.Tensor | Exception] | None = None,
    *,
    private: bool = True,
) -> PolicyFamily:
    """Fit a strategy on its own copy of the calibration data. The strategy's exceptions propagate.

    Args:
        strategy: the strategy to fit.
        calibration: the calibration trace and its inputs.
        artifacts: returns stored tensors or builds them.
        observed: observations of the calibration trace made earlier.
        private: give the strategy a copy of the calibration trace, and check that it does not write to it.

    Raises:
        ForeignCodeError: the strategy writes to the calibration trace.
        PluginError: ``fit`` returns neither a ScoreFamily nor ListedPolicies.
    """
    read, trace = calibration.inputs, calibration.trace

    def first_frames() -> torch.Tensor:
        assert read is not None
        return read(torch.arange(len(trace)), 1)[:, 0]

    wanted = Requirement.INPUTS in strategy.requires and read is not None
    kept = None if artifacts is None else _told_by_code(strategy, artifacts)
    copy = PrivateTrace.copy_of(trace) if private else None
    family: object = strategy.fit(Calibration(copy or trace, first_frames if wanted else None, kept, observed or {}))
    if not isinstance(family, ScoreFamily | ListedPolicies):
        given = type(family).__name__
        raise PluginError(strategy.name, f"fit must give a ScoreFamily or ListedPolicies, not {given}")
    if copy is not None and (changed := copy.changed):
        raise ForeignCodeError(
            f"strategy {strategy.name}", f"writes into the calibration trace ({', '.join(changed)}); copy it first"
        )
    return family


def _told_by_code(strategy: ExitStrategy, artifacts: Artifacts) -> Artifacts:
    """Return ``artifacts``, keyed additionally by the code of the strategy's plugin as loaded."""
    code = code_of_class(type(strategy))
    if not code:
        return artifacts
    digests = {one.name: one.digest for one in code}

    def artifact(made_from: Mapping[str, Any], build: Callable[[], State]) -> State:
        def built() -> State:
            state = build()
            refuse_changed(code)
            return state

        return artifacts({**made_from, "code": digests}, built)

    return artifact


def score_strategy(strategy: ExitStrategy, contest: Contest, points: Sequence[OperatingPoint]) -> StrategyScores:
    """Fit, choose a policy for each operating point, and replay the chosen ones on test."""
    (scores,) = score_together([strategy], contest, points)
    return scores()


def score_together(
    strategies: Sequence[ExitStrategy], contest: Contest, points: Sequence[OperatingPoint]
) -> list[Callable[[], StrategyScores]]:
    """Fit and score all strategies, reading each trace once for all of them.

    Returns:
        For each strategy a function that returns its scores or raises what the strategy raised; a failure does not
        affect the others.
    """
    families = _fit_together(strategies, contest)
    tables = [_tables(strategies, families, side) for side in (contest.fit, contest.select, contest.test)]
    return [
        partial(_scores, strategy, family, contest, points, scored)
        for strategy, family, *scored in zip(strategies, families, *tables, strict=True)
    ]


def score_alone(strategy: ExitStrategy, contest: Contest, points: Sequence[OperatingPoint]) -> StrategyScores:
    """Score a strategy that is not known to follow the rules.

    Raises:
        ForeignCodeError: its results differ when it is called again on the same samples.
    """
    (family,) = _fit_together([strategy], contest)
    if isinstance(family, Exception):
        raise family
    tables = [_tables([strategy], [family], side)[0] for side in (contest.fit, contest.select, contest.test)]
    scores = _scores(strategy, family, contest, points, tables)
    few = torch.arange(min(_ASKED_AGAIN, len(contest.select.trace)))
    trace, inputs = contest.select.trace.select(few), _inputs_for(strategy, contest.select)
    first, second = (_said_of(family, trace, inputs) for _ in range(2))
    if not torch.equal(first, second):
        raise ForeignCodeError(
            f"strategy {strategy.name}",
            "its decisions differ in a second call on the same samples; evidence.uniform(salt) repeats its numbers",
        )
    return scores


def _said_of(family: PolicyFamily, trace: Trace, inputs: InputFrames | None) -> torch.Tensor:
    """Return the scores of all samples, or where a few policies of the family stop them."""
    if isinstance(family, ScoreFamily):
        return score_table(family.strategy, trace, inputs)
    assert isinstance(family, ListedPolicies)
    values = [family.values[place] for place in {0, len(family.values) // 2, len(family.values) - 1}]
    return torch.stack([replay_policy(family.policy(value), trace, inputs).exit_timesteps for value in values])


def _fit_together(strategies: Sequence[ExitStrategy], contest: Contest) -> list[PolicyFamily | Exception]:
    """Return what each strategy learns from the ``fit`` half, or the exception it raised."""
    observations = dict.fromkeys(observation for strategy in strategies for observation in _wanted(strategy))
    observed = observe(contest.fit.trace, list(observations))

    def fitted(strategy: ExitStrategy) -> PolicyFamily | Exception:
        try:
            return fit_family(strategy, contest.fit, contest.artifacts, observed)
        except Exception as error:  # a plugin may raise anything
            return error

    return [fitted(strategy) for strategy in strategies]


def _wanted(strategy: ExitStrategy) -> tuple[Observation, ...]:
    """Return the observations to make before fitting a strategy; none if ``observes`` is not a tuple of functions."""
    named = strategy.observes
    return named if isinstance(named, tuple) and all(map(callable, named)) else ()


def _tables(
    strategies: Sequence[ExitStrategy], families: Sequence[PolicyFamily | Exception], side: Recorded
) -> list[torch.Tensor | Exception | None]:
    """Return every strategy's score table on one trace, or the exception it raised; None if it has no scores."""
    scored = [place for place, family in enumerate(families) if isinstance(family, ScoreFamily)]
    found: list[torch.Tensor | Exception | None] = [None] * len(families)
    inner = [family.strategy for family in families if isinstance(family, ScoreFamily)]
    inputs = [_inputs_for(strategies[place], side) for place in scored]
    for place, table in zip(scored, score_tables(inner, side.trace, inputs), strict=True):
        found[place] = table
    return found


def _inputs_for(strategy: ExitStrategy, recorded: Recorded) -> InputFrames | None:
    return recorded.inputs if Requirement.INPUTS in strategy.requires else None


def _scores(
    strategy: ExitStrategy,
    family: PolicyFamily | Exception,
    contest: Contest,
    points: Sequence[OperatingPoint],
    tables: Sequence[torch.Tensor | Exception | None],
) -> StrategyScores:
    """Choose a policy of a fitted family for each operating point, and replay the chosen ones on test."""
    if isinstance(family, Exception):
        raise family
    on_fit, on_select, on_test = (
        _on_trace(strategy, family, side, table)
        for side, table in zip((contest.fit, contest.select, contest.test), tables, strict=True)
    )
    values = candidates(on_fit)
    if not values:
        raise PluginError(strategy.name, "its family has no policy")
    exit_sums, correct = on_select.curve(values)
    harmed = on_select.harmed(values)
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
            harmed=harmed,
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
            outcome = static_outcome(contest.test.trace)
            right, spent = static_correct, len(select) * select.timesteps
        figures = right / len(select), spent / len(select), _overhead(strategy, policy, select.classes)
        policies.append(ScoredPolicy(point, status, value, _always(policy), outcome, *figures))
    parameters = family.strategy.parameters if isinstance(family, ScoreFamily) else strategy.parameters
    known = {str(name): None if value is None else plain_value(value) for name, value in parameters.items()}
    return StrategyScores(known, policies, _test_curve(on_test, values))


def _always(policy: ExitPolicy) -> Callable[[], ExitPolicy]:
    return lambda: policy


def _overhead(strategy: ExitStrategy, policy: ExitPolicy, classes: int) -> Overhead | None:
    declared: object = policy.overhead(classes)
    if declared is not None and not isinstance(declared, Overhead):
        raise PluginError(strategy.name, f"overhead must be an Overhead or None, not {declared!r:.60}")
    return declared


def _on_trace(
    strategy: ExitStrategy, family: PolicyFamily, side: Recorded, table: torch.Tensor | Exception | None
) -> FamilyOnTrace:
    if isinstance(table, Exception):
        raise table
    return FamilyOnTrace(family, side.trace, _inputs_for(strategy, side), table)


def _test_curve(on_test: FamilyOnTrace, values: Sequence[KnobValue]) -> list[tuple[KnobValue, float, float]]:
    sums, correct = on_test.curve(values)
    order = np.argsort(sums, kind="stable")
    kept = order[thin(sums[order], CURVE_POINTS)]
    samples = len(on_test.trace)
    return [(values[i], int(sums[i]) / samples, int(correct[i]) / samples) for i in kept]


def operation_counts(
    trace: Trace, outcome: Outcome, overhead: Overhead | None, first_layer: FirstLayer = "once"
) -> OperationCounts:
    """Return what each sample spent until its exit, and the controller's ``overhead``."""
    exits = outcome.exit_timesteps.numpy()

    def spent(name: str) -> Array | None:
        if name not in trace.counts:
            return None
        running: Array = np.cumsum(trace.counts[name].numpy(), axis=1)
        until_exit: Array = running[np.arange(len(exits)), exits - 1]
        return until_exit

    macs = spent("macs")
    if macs is not None and trace.macs_once is not None:
        once = trace.macs_once.numpy()
        macs = macs + (once * exits if first_layer == "every-step" else once)
    return OperationCounts(
        timesteps=exits,
        macs=macs,
        acs=spent("acs"),
        neuron_updates=spent("neuron_updates"),
        spikes=spent("spikes"),
        decisions=np.minimum(exits, trace.timesteps - 1),
        overhead=overhead,
    )


def mean_costs(
    model: CostModel, counts: OperationCounts, failed: dict[str, str] | None = None
) -> tuple[float, float] | None:
    """Return the mean energy, and the mean over samples of energy x latency (EDP), in the model's units.

    Args:
        model: the cost model.
        counts: what each sample spent.
        failed: receives, by label, why a model failed; a model listed there is not called again.

    Returns:
        Both means, or None if a required count was not recorded, the model has no price for something, or it fails.
    """
    failed = {} if failed is None else failed
    if model.label in failed:
        return None
    if is_ours(model):
        return _mean_costs(model, counts)
    who = f"cost model {model.label}"
    found = guarded(who, _mean_costs, model, counts)
    if isinstance(found, str):
        failed[model.label] = f"{who}: {found}"
        return None
    return cast(tuple[float, float] | None, found)


def _mean_costs(model: CostModel, counts: OperationCounts) -> tuple[float, float] | None:
    if any(getattr(counts, name) is None for name in model.requires):
        return None
    private = _copy(counts)
    energies, latencies = (np.asarray(give(private)) for give in (model.energy, model.latency))
    expected = counts.timesteps.shape
    if not _same(private, counts):
        raise ForeignCodeError(f"cost model {model.label}", "writes into the operation counts; copy them first")
    if energies.shape != expected or latencies.shape != expected:
        raise PluginError(model.label, f"energy and latency must be {list(expected)}, one number a sample")
    means = float(np.mean(energies)), float(np.mean(energies * latencies))
    return means if np.isfinite(means).all() else None


def _copy(counts: OperationCounts) -> OperationCounts:
    """Return the counts with copied arrays."""
    arrays: dict[str, Any] = {name: value for name, value in vars(counts).items() if isinstance(value, np.ndarray)}
    return replace(counts, **{name: values.copy() for name, values in arrays.items()})


def _same(one: OperationCounts, other: OperationCounts) -> bool:
    return all(
        np.array_equal(value, vars(other)[name]) if isinstance(value, np.ndarray) else value == vars(other)[name]
        for name, value in vars(one).items()
    )
