"""Exit strategies: the policies they produce, and the calibration data they learn from.

Most methods are a score and one threshold: derive from ``ScoreStrategy`` and write ``score``. In the general case,
derive from ``ExitStrategy``, whose ``fit`` returns a family of ``ExitPolicy``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Self

import numpy as np
import torch

from bench_core.costs.operations import Overhead
from bench_core.errors import PluginError
from bench_core.exits.evidence import Evidence, Look, read_together
from bench_core.knobs import Configurable, Knob, KnobValue
from bench_core.trace.trace import Trace
from bench_core.util.arrays import Array

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
    """What a strategy needs in addition to traces."""

    INPUTS = "inputs"


class ExitPolicy(ABC):
    """A fitted decision rule with every knob fixed."""

    def overhead(self, classes: int) -> Overhead | None:
        """Return the policy's cost for K = ``classes``, or None if undeclared, which makes energies n/a."""
        del classes
        return None

    def start(self, evidence: Evidence) -> State:
        """Return the state of new samples, from evidence at t = 0. A policy network runs here, once."""
        del evidence
        return {}

    @abstractmethod
    def should_exit(self, evidence: Evidence, state: State) -> tuple[torch.Tensor, State]:
        """Return which samples stop now, bool [B], and the state of all B for the next step.

        Called for 1 <= t < T only.
        """


class NeverExit(ExitPolicy):
    """Static T: no sample stops early, and the decision costs nothing."""

    def overhead(self, classes: int) -> Overhead:
        """Return zero cost."""
        del classes
        return Overhead()

    def should_exit(self, evidence: Evidence, state: State) -> tuple[torch.Tensor, State]:
        """Stop no sample."""
        return torch.zeros(evidence.batch, dtype=torch.bool), state


class PolicyFamily(ABC):
    """The policies of a fitted strategy, one per value of its family knob."""

    @abstractmethod
    def policy(self, value: KnobValue) -> ExitPolicy:
        """Return the policy of one knob value."""


@dataclass(frozen=True)
class ListedPolicies(PolicyFamily):
    """A family that creates policies on demand from knob values.

    Attributes:
        values: the values to compare when an operating point is chosen.
        make: returns the policy of any value in the knob's range.
    """

    values: Sequence[KnobValue]
    make: Callable[[Any], ExitPolicy]

    def policy(self, value: KnobValue) -> ExitPolicy:
        """Return the policy of one knob value."""
        return self.make(value)


@dataclass(frozen=True)
class Calibration:
    """What ``fit`` may learn from. The test split is not accessible.

    Attributes:
        trace: the ``fit`` half of the calibration trace; all of it if the family's knob is given, since nothing remains
            to be chosen.
    """

    trace: Trace
    _inputs: Callable[[], torch.Tensor] | None = field(default=None, repr=False)
    _artifact: Callable[[Mapping[str, Any], Callable[[], State]], State] | None = field(default=None, repr=False)
    _observed: Mapping[Observation, torch.Tensor | Exception] = field(default_factory=dict, repr=False)

    def observed(self, observation: Observation) -> torch.Tensor:
        """Return an observation of every sample of the trace at t = 1 .. T, float64 [N, T].

        Observations listed in ``observes`` are computed for all strategies in one trace read, others on request. The
        observation's exceptions propagate.
        """
        found = self._observed.get(observation)
        if found is None:
            found = observe(self.trace, [observation])[observation]
        if isinstance(found, Exception):
            raise found
        return found.clone()

    @property
    def first_frames(self) -> torch.Tensor:
        """First network input of each sample, float32 [N, C, H, W]; needs ``Requirement.INPUTS``."""
        if self._inputs is None:
            raise PluginError("exit strategy", "looks at inputs without declaring Requirement.INPUTS in `requires`")
        return self._inputs()

    def artifact(self, made_from: Mapping[str, Any], build: Callable[[], State]) -> State:
        """Return tensors that are costly to make: looked up by what they depend on, otherwise built and stored.

        Args:
            made_from: JSON-able; everything ``build`` depends on apart from the calibration data, which is added.
            build: makes the tensors.
        """
        return build() if self._artifact is None else self._artifact(made_from, build)


class ExitStrategy(Configurable, ABC):
    """Base class of the strategies that ``bench_exit_strategies`` returns: the general case.

    Must implement: ``name``, ``reference``, ``family_knob``, ``fit``.
    May set: ``knobs`` (further parameters), ``requires``, ``observes``, ``nested``.

    Attributes:
        family_knob: the one knob that varies along the family.
        requires: what is needed in addition to traces; if it is unavailable, so are the strategy's rows.
        observes: what ``fit`` requests from ``Calibration.observed``, so that all strategies share one trace read.
        nested: claims that along the family no sample ever stops later; checked by the conformance kit.
    """

    family_knob: ClassVar[Knob]
    requires: ClassVar[frozenset[Requirement]] = frozenset()
    observes: ClassVar[tuple[Observation, ...]] = ()
    nested: ClassVar[bool] = False

    @abstractmethod
    def fit(self, calibration: Calibration) -> PolicyFamily:
        """Learn from calibration data and return the family."""


class ScoreStrategy(ExitStrategy):
    """A score and one threshold: stop as soon as score > threshold.

    Must implement: ``name``, ``reference``, ``score``.
    May implement: ``learn`` (parameters from calibration data), ``threshold_of`` and ``knob_of`` (if the knob that
    users set is not the threshold itself), ``overhead``.
    May set: ``family_knob`` (default ``threshold``, any number), ``knobs``, ``requires``, ``observes``.
    """

    family_knob: ClassVar[Knob] = Knob("threshold", help="stop when the score is above it")
    nested: ClassVar[bool] = True

    @abstractmethod
    def score(self, evidence: Evidence) -> torch.Tensor:
        """Return how ready each sample is to stop, float64 [B]; -inf never stops, NaN is an error.

        Computed row by row: a sample's score must not depend on the other samples of the batch.
        """

    def learn(self, calibration: Calibration) -> Self:
        """Return a copy with parameters learnt from calibration data; by default learns nothing and returns itself."""
        del calibration
        return self

    def overhead(self, classes: int) -> Overhead | None:
        """Return the cost of one score evaluation and comparison for K = ``classes``, or None if undeclared."""
        del classes
        return None

    def threshold_of(self, knob: Array) -> Array:
        """Return the score thresholds for values of the family knob, float64 [P]."""
        return knob

    def knob_of(self, threshold: Array) -> Array:
        """Return the family knob's values for score thresholds, float64 [P]."""
        return threshold

    def fit(self, calibration: Calibration) -> "ScoreFamily":
        """Learn from calibration data and return the family of thresholds."""
        return ScoreFamily(self.learn(calibration))


@dataclass(frozen=True)
class ScoreFamily(PolicyFamily):
    """The policies of a fitted score strategy, one per threshold."""

    strategy: ScoreStrategy

    def policy(self, value: KnobValue) -> "ScorePolicy":
        """Return the policy of one knob value."""
        return ScorePolicy(self.strategy, float(self.strategy.threshold_of(np.array([value], dtype=np.float64))[0]))


@dataclass(frozen=True)
class ScorePolicy(ExitPolicy):
    """Stop when the score is strictly above the threshold."""

    strategy: ScoreStrategy
    threshold: float

    def overhead(self, classes: int) -> Overhead | None:
        """Return the strategy's overhead."""
        return self.strategy.overhead(classes)

    def should_exit(self, evidence: Evidence, state: State) -> tuple[torch.Tensor, State]:
        """Stop the samples whose score exceeds the threshold."""
        return checked_score(self.strategy, evidence) > self.threshold, state


def checked_score(strategy: ScoreStrategy, evidence: Evidence) -> torch.Tensor:
    """Return the strategy's score, float64 [B]; raise PluginError for a wrong shape or NaN."""
    score = _checked_numbers(strategy.name, "score", strategy.score(evidence), evidence)
    lowest = score if evidence.batch == 1 else score.amin()  # NaN if any score is
    if math.isnan(lowest.item()):
        raise PluginError(strategy.name, f"score is NaN at timestep {evidence.t}")
    return score


def observe(trace: Trace, observations: Sequence[Observation]) -> dict[Observation, torch.Tensor | Exception]:
    """Return each observation of every sample at t = 1 .. T, float64 [N, T], or its exception, from one trace read."""

    def look(observation: Observation) -> Look:
        name = getattr(observation, "__name__", "observation")
        return Look(lambda evidence, labels: _checked_numbers(name, "it", observation(evidence, labels), evidence))

    found = read_together(trace, [look(observation) for observation in observations], trace.timesteps)
    return dict(zip(observations, found, strict=True))


def _checked_numbers(plugin: str, what: str, numbers: object, evidence: Evidence) -> torch.Tensor:
    """Return ``numbers`` as float64 [B]; raise PluginError for anything else."""
    if not isinstance(numbers, torch.Tensor) or numbers.shape != (evidence.batch,):
        shape = getattr(numbers, "shape", type(numbers))
        raise PluginError(plugin, f"{what} must be a tensor [{evidence.batch}], not {shape}")
    return numbers if numbers.dtype == torch.float64 else numbers.to(torch.float64)
