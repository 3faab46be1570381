"""What an exit strategy is: the policies it yields, and the calibration data it learns from.

Most methods are a score and one threshold: derive from ``ScoreStrategy`` and write ``score``. The general case is
``ExitStrategy``, whose ``fit`` gives a family of ``ExitPolicy``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Self

import numpy as np
import torch

from bench_core.costs.operations import Array, Overhead
from bench_core.errors import PluginError
from bench_core.exits.evidence import Evidence, Look, read_together
from bench_core.knobs import Configurable, Knob, KnobValue
from bench_core.trace.trace import Trace

__all__ = [
    "Calibration",
    "Evidence",
    "ExitPolicy",
    "ExitStrategy",
    "ListedPolicies",
    "NeverExit",
    "Observation",
    "PolicyFamily",
    "Requirement",
    "ScoreFamily",
    "ScorePolicy",
    "ScoreStrategy",
    "State",
    "checked_score",
    "observe",
]

State = dict[str, torch.Tensor]  # every tensor has leading dimension B

Observation = Callable[[Evidence, torch.Tensor], torch.Tensor]
"""(evidence at t = 1 .. T, labels int64 [B]) -> a number per sample, float64 [B]: what a fit wants to know."""


class Requirement(StrEnum):
    """What a strategy needs beside traces."""

    INPUTS = "inputs"


class ExitPolicy(ABC):
    """A fitted decision rule with every knob fixed."""

    def overhead(self, classes: int) -> Overhead | None:
        """What the policy costs for K = ``classes``; None where it isn't declared, which makes energies n/a."""
        del classes
        return None

    def start(self, evidence: Evidence) -> State:
        """The state of new samples, from evidence at t = 0. A policy network runs here, once."""
        del evidence
        return {}

    @abstractmethod
    def should_exit(self, evidence: Evidence, state: State) -> tuple[torch.Tensor, State]:
        """Which samples stop now (bool [B]), and the state of all B for the next step. Asked for 1 <= t < T only."""


class NeverExit(ExitPolicy):
    """Static T: no sample stops early, and nothing is computed to decide that."""

    def overhead(self, classes: int) -> Overhead:
        del classes
        return Overhead()

    def should_exit(self, evidence: Evidence, state: State) -> tuple[torch.Tensor, State]:
        return torch.zeros(evidence.batch, dtype=torch.bool), state


class PolicyFamily(ABC):
    """The policies a fitted strategy yields, one per value of its family knob."""

    @abstractmethod
    def policy(self, value: KnobValue) -> ExitPolicy:
        """The policy of one knob value."""


@dataclass(frozen=True)
class ListedPolicies(PolicyFamily):
    """A family made on demand from knob values.

    Attributes:
        values: the values that are compared when an operating point is chosen.
        make: gives the policy of any value in the knob's range.
    """

    values: Sequence[KnobValue]
    make: Callable[[Any], ExitPolicy]

    def policy(self, value: KnobValue) -> ExitPolicy:
        return self.make(value)


@dataclass(frozen=True)
class Calibration:
    """What ``fit`` may learn from. The test split is out of reach.

    Attributes:
        trace: the ``fit`` half of the calibration trace; the whole of it where nothing is left to choose, because the
            family's knob is given.
    """

    trace: Trace
    _inputs: Callable[[], torch.Tensor] | None = field(default=None, repr=False)
    _artifact: Callable[[Mapping[str, Any], Callable[[], State]], State] | None = field(default=None, repr=False)
    _observed: Mapping[Observation, torch.Tensor | Exception] = field(default_factory=dict, repr=False)

    def observed(self, observation: Observation) -> torch.Tensor:
        """What an observation says of every sample of the trace at t = 1 .. T, float64 [N, T].

        Those that a strategy names in ``observes`` are made for all strategies in one read of the trace, others now.
        What the observation raises comes through.
        """
        found = self._observed.get(observation)
        if found is None:
            found = observe(self.trace, [observation])[observation]
        if isinstance(found, Exception):
            raise found
        return found.clone()

    @property
    def first_frames(self) -> torch.Tensor:
        """What the network sees first of each sample, float32 [N, C, H, W]; needs ``Requirement.INPUTS``."""
        if self._inputs is None:
            raise PluginError("exit strategy", "looks at inputs without declaring Requirement.INPUTS in `requires`")
        return self._inputs()

    def artifact(self, made_from: Mapping[str, Any], build: Callable[[], State]) -> State:
        """Tensors that are costly to make: looked up by what they are made from, else built and kept.

        Args:
            made_from: JSON-able; whatever ``build`` depends on beside the calibration data, which is added.
            build: makes the tensors.
        """
        return build() if self._artifact is None else self._artifact(made_from, build)


class ExitStrategy(Configurable, ABC):
    """Base of every strategy that ``bench_exit_strategies`` returns: the general case.

    Must implement: ``name``, ``reference``, ``family_knob``, ``fit``.
    May set: ``knobs`` (further parameters), ``requires``, ``observes``, ``nested``.

    Attributes:
        family_knob: the one knob that the family runs over.
        requires: what is needed beside traces; where it can't be had, the rows say ``unavailable``.
        observes: what ``fit`` asks ``Calibration.observed`` for, so that all strategies share one read of the trace.
        nested: a claim, checked by the conformance kit: along the family no sample ever stops later.
    """

    family_knob: ClassVar[Knob]
    requires: ClassVar[frozenset[Requirement]] = frozenset()
    observes: ClassVar[tuple[Observation, ...]] = ()
    nested: ClassVar[bool] = False

    @abstractmethod
    def fit(self, calibration: Calibration) -> PolicyFamily:
        """Learn from calibration data, and give the family."""


class ScoreStrategy(ExitStrategy):
    """A score and one threshold: stop as soon as score > threshold.

    Must implement: ``name``, ``reference``, ``score``.
    May implement: ``learn`` (parameters from calibration data), ``threshold_of`` and ``knob_of`` (where the knob that
    people turn is not the threshold itself), ``overhead``.
    May set: ``family_knob`` (default ``threshold``, any number), ``knobs``, ``requires``, ``observes``.
    """

    family_knob: ClassVar[Knob] = Knob("threshold", help="stop when the score is above it")
    nested: ClassVar[bool] = True

    @abstractmethod
    def score(self, evidence: Evidence) -> torch.Tensor:
        """How ready each sample is to stop, float64 [B]; -inf never stops, NaN is an error.

        Row by row: a sample's score may not depend on the other samples of the batch.
        """

    def learn(self, calibration: Calibration) -> Self:
        """A copy with whatever is learnt from calibration data; by default nothing is."""
        del calibration
        return self

    def overhead(self, classes: int) -> Overhead | None:
        """What one evaluation of the score costs for K = ``classes``, the comparison included; None: undeclared."""
        del classes
        return None

    def threshold_of(self, knob: Array) -> Array:
        """Thresholds on the score for values of the family knob, float64 [P]."""
        return knob

    def knob_of(self, threshold: Array) -> Array:
        """Values of the family knob for thresholds on the score, float64 [P]."""
        return threshold

    def fit(self, calibration: Calibration) -> "ScoreFamily":
        return ScoreFamily(self.learn(calibration))


@dataclass(frozen=True)
class ScoreFamily(PolicyFamily):
    """The policies of a fitted score strategy, one per threshold."""

    strategy: ScoreStrategy

    def policy(self, value: KnobValue) -> "ScorePolicy":
        return ScorePolicy(self.strategy, float(self.strategy.threshold_of(np.array([value], dtype=np.float64))[0]))


@dataclass(frozen=True)
class ScorePolicy(ExitPolicy):
    """Stop when the score is strictly above the threshold."""

    strategy: ScoreStrategy
    threshold: float

    def overhead(self, classes: int) -> Overhead | None:
        return self.strategy.overhead(classes)

    def should_exit(self, evidence: Evidence, state: State) -> tuple[torch.Tensor, State]:
        return checked_score(self.strategy, evidence) > self.threshold, state


def checked_score(strategy: ScoreStrategy, evidence: Evidence) -> torch.Tensor:
    """The strategy's score, float64 [B]. Raises PluginError for a wrong shape or NaN."""
    score = _checked_numbers(strategy.name, "score", strategy.score(evidence), evidence)
    lowest = score if evidence.batch == 1 else score.amin()  # NaN where any of them is
    if math.isnan(lowest.item()):
        raise PluginError(strategy.name, f"score is NaN at timestep {evidence.t}")
    return score


def observe(trace: Trace, observations: Sequence[Observation]) -> dict[Observation, torch.Tensor | Exception]:
    """What each observation says of every sample at t = 1 .. T, float64 [N, T], or what it raised: one read for all."""

    def look(observation: Observation) -> Look:
        name = getattr(observation, "__name__", "observation")
        return Look(lambda evidence, labels: _checked_numbers(name, "it", observation(evidence, labels), evidence))

    found = read_together(trace, [look(observation) for observation in observations], trace.timesteps)
    return dict(zip(observations, found, strict=True))


def _checked_numbers(plugin: str, what: str, numbers: object, evidence: Evidence) -> torch.Tensor:
    """A number per sample, float64 [B]. Raises PluginError for anything else."""
    if not isinstance(numbers, torch.Tensor) or numbers.shape != (evidence.batch,):
        shape = getattr(numbers, "shape", type(numbers))
        raise PluginError(plugin, f"{what} must be a tensor [{evidence.batch}], not {shape}")
    return numbers if numbers.dtype == torch.float64 else numbers.to(torch.float64)
