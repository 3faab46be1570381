"""What an exit strategy is: the evidence it may see, the policies it yields, the calibration data it learns from.

Most methods are a score and one threshold: derive from ``ScoreStrategy`` and write ``score``. The general case is
``ExitStrategy``, whose ``fit`` gives a family of ``ExitPolicy``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Self

import numpy as np
import torch

from bench_core.costs.operations import Array, Overhead
from bench_core.errors import PluginError
from bench_core.hashing import uniform
from bench_core.knobs import Configurable, Knob, KnobValue
from bench_core.trace import Trace

__all__ = [
    "Calibration",
    "Evidence",
    "ExitPolicy",
    "ExitStrategy",
    "ListedPolicies",
    "NeverExit",
    "PolicyFamily",
    "Requirement",
    "ScoreFamily",
    "ScorePolicy",
    "ScoreStrategy",
    "State",
    "checked_score",
]

State = dict[str, torch.Tensor]  # every tensor has leading dimension B


class Requirement(StrEnum):
    """What a strategy needs beside traces."""

    INPUTS = "inputs"


@dataclass(frozen=True)
class Evidence:
    """What a decision may see at timestep t, for a batch of B unfinished samples. No labels, no ids, nothing after t.

    Attributes:
        t: the timestep just computed, 1-based; 0 before the first (``ExitPolicy.start``).
        T: timesteps at which the network stops in any case.
        step_logits: o_t, float64 [B, K]; zeros at t = 0.
        total: S_t = o_1 + … + o_t, float64 [B, K]; zeros at t = 0.
    """

    t: int
    T: int
    step_logits: torch.Tensor
    total: torch.Tensor
    _keys: torch.Tensor = field(repr=False)
    _inputs: Callable[[], torch.Tensor] | None = field(default=None, repr=False)

    @property
    def mean(self) -> torch.Tensor:
        """m_t = S_t / t, float64 [B, K]."""
        return self.total / max(self.t, 1)

    @property
    def inputs(self) -> torch.Tensor:
        """The network input presented so far, float32 [B, F, C, H, W], for strategies that require ``inputs``.

        F is 1 under constant input; for event frames it is t, and at t = 0 the first frame stands alone. Raises
        PluginError where the strategy doesn't declare that it looks at inputs.
        """
        if self._inputs is None:
            raise PluginError("exit strategy", "looks at inputs without declaring Requirement.INPUTS in `requires`")
        return self._inputs()

    def uniform(self, salt: int) -> torch.Tensor:
        """A number in [0, 1) per sample, float64 [B], the same in any order, batch and engine."""
        return uniform(self._keys, salt)


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
        return torch.zeros(len(evidence.total), dtype=torch.bool), state


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
    May set: ``knobs`` (further parameters), ``requires``, ``nested``.

    Attributes:
        family_knob: the one knob that the family runs over.
        requires: what is needed beside traces; where it can't be had, the rows say ``unavailable``.
        nested: a claim, checked by the conformance kit: along the family no sample ever stops later.
    """

    family_knob: ClassVar[Knob]
    requires: ClassVar[frozenset[Requirement]] = frozenset()
    nested: ClassVar[bool] = False

    @abstractmethod
    def fit(self, calibration: Calibration) -> PolicyFamily:
        """Learn from calibration data, and give the family."""


class ScoreStrategy(ExitStrategy):
    """A score and one threshold: stop as soon as score > threshold.

    Must implement: ``name``, ``reference``, ``score``.
    May implement: ``learn`` (parameters from calibration data), ``threshold_of`` and ``knob_of`` (where the knob that
    people turn is not the threshold itself), ``overhead``.
    May set: ``family_knob`` (default ``threshold``, any number), ``knobs``, ``requires``.
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
    score = strategy.score(evidence)
    batch = len(evidence.total)
    if not isinstance(score, torch.Tensor) or tuple(score.shape) != (batch,):
        raise PluginError(
            strategy.name, f"score must be a tensor [{batch}], not {getattr(score, 'shape', type(score))}"
        )
    score = score.to(torch.float64)
    if torch.isnan(score).any():
        raise PluginError(strategy.name, f"score is NaN at timestep {evidence.t}")
    return score
