"""Null baselines: rules that any useful method must beat.

``fixed`` stops all samples at t. ``random`` mixes the two fixed timesteps around a mean at random. ``stability`` stops
when the prediction has not changed for k steps. ``margin`` stops on the gap of the two largest softmax probabilities.
"""

from typing import ClassVar

import numpy as np
import torch

from bench_core import (
    Calibration,
    Evidence,
    ExitPolicy,
    ExitStrategy,
    Knob,
    ListedPolicies,
    Operations,
    Overhead,
    PluginError,
    ScoreStrategy,
    State,
    UsageError,
    exponential,
    hookimpl,
)
from bench_plugins._readout import ACCUMULATE, readout, softmax_overhead


class PlannedExit(ExitPolicy):
    """Stop each sample at a timestep drawn before it starts: floor(mean) or the next, with the given mean."""

    def __init__(self, mean: float, seed: int) -> None:
        """Plan exits with this mean, using ``seed`` for the draw."""
        self._whole, self._share = int(np.floor(mean)), float(mean - np.floor(mean))
        self._seed = seed

    def overhead(self, classes: int) -> Overhead:
        """Return the cost of one comparison per decision."""
        del classes
        return Overhead(per_decision=Operations(comparisons=1))

    def start(self, evidence: Evidence) -> State:
        """Draw the exit timestep of each sample."""
        later = evidence.uniform(self._seed) < self._share
        return {"plan": self._whole + later.to(torch.int64)}

    def should_exit(self, evidence: Evidence, state: State) -> tuple[torch.Tensor, State]:
        """Stop the samples whose planned timestep is reached."""
        return state["plan"] <= evidence.t, state


class Fixed(ExitStrategy):
    """Stop every sample at t."""

    name: ClassVar[str] = "fixed"
    reference: ClassVar[str] = "baseline: static timesteps"
    family_knob: ClassVar[Knob] = Knob("t", "int", low=1, help="timestep at which every sample stops")
    nested: ClassVar[bool] = True

    def fit(self, calibration: Calibration) -> ListedPolicies:
        """Return a policy for each t = 1 .. T."""
        last = calibration.trace.timesteps

        def make(t: int) -> ExitPolicy:
            if t > last:
                raise UsageError(f"fixed: t = {t} is outside [1, {last}]")
            return PlannedExit(t, 0)

        return ListedPolicies(range(1, last + 1), make)


class RandomExit(ExitStrategy):
    """Stop every sample at one of the two timesteps around ``t_mean``, at random."""

    name: ClassVar[str] = "random"
    reference: ClassVar[str] = "baseline: random mixture of neighbouring timesteps"
    family_knob: ClassVar[Knob] = Knob("t_mean", low=1.0, help="mean exit timestep")
    knobs: ClassVar[tuple[Knob, ...]] = (Knob("seed", "int", 0, low=0, help="of the draw"),)

    def fit(self, calibration: Calibration) -> ListedPolicies:
        """Return policies for 41 evenly spaced means in [1, T]."""
        last, seed = calibration.trace.timesteps, self.parameters["seed"]
        assert isinstance(seed, int)

        def make(t_mean: float) -> ExitPolicy:
            if t_mean > last:
                raise UsageError(f"random: t_mean = {t_mean} is outside [1, {last}]")
            return PlannedExit(t_mean, seed)

        return ListedPolicies([float(x) for x in np.unique(np.linspace(1, last, 41))], make)


class StablePrediction(ExitPolicy):
    """Stop when argmax S has been the same for k timesteps in a row."""

    def __init__(self, k: int) -> None:
        """Require ``k`` equal predictions in a row."""
        self._k = k

    def overhead(self, classes: int) -> Overhead:
        """Return the cost of an argmax, a comparison and a counter per decision."""
        return Overhead(per_decision=Operations(additions=1, comparisons=classes + 1))

    def start(self, evidence: Evidence) -> State:
        """Start with no prediction."""
        batch = len(evidence.total)
        return {"run": torch.zeros(batch, dtype=torch.int64), "last": torch.full((batch,), -1)}

    def should_exit(self, evidence: Evidence, state: State) -> tuple[torch.Tensor, State]:
        """Count equal predictions, and stop samples at k; raise PluginError for logits that are not finite."""
        if not torch.isfinite(evidence.total).all():  # argmax would treat NaN as the largest
            raise PluginError("stability", f"logits are not finite at timestep {evidence.t}")
        prediction = evidence.total.argmax(1)
        run = torch.where(prediction == state["last"], state["run"] + 1, 1)
        return run >= self._k, {"run": run, "last": prediction}


class Stability(ExitStrategy):
    """Stop when the prediction has been stable for k timesteps."""

    name: ClassVar[str] = "stability"
    reference: ClassVar[str] = "baseline: prediction stability"
    family_knob: ClassVar[Knob] = Knob("k", "int", low=1, help="timesteps in a row with the same prediction")
    nested: ClassVar[bool] = True

    def fit(self, calibration: Calibration) -> ListedPolicies:
        """Return a policy for each k = 1 .. T."""
        return ListedPolicies(range(1, calibration.trace.timesteps + 1), StablePrediction)


class Margin(ScoreStrategy):
    """Stop when the difference of the two largest softmax probabilities exceeds the threshold."""

    name: ClassVar[str] = "margin"
    reference: ClassVar[str] = "baseline: top-two margin of the softmax"
    family_knob: ClassVar[Knob] = Knob("threshold", low=0.0, high=1.0, help="stop when the margin is above it")
    knobs: ClassVar[tuple[Knob, ...]] = (ACCUMULATE,)

    def score(self, evidence: Evidence) -> torch.Tensor:
        """Return the difference of the two largest softmax probabilities, float64 [B]."""
        softmax = readout(evidence, self.parameters["accumulate"])
        return (1.0 - torch.from_numpy(exponential(softmax.runner_up.numpy()))) * softmax.largest_probability

    def overhead(self, classes: int) -> Overhead:
        """Return the cost of a softmax and of finding its second largest value."""
        second = Operations(additions=1, comparisons=classes - 1, multiplications=1)
        return softmax_overhead(classes, scaled=self.parameters["accumulate"] == "mean", more=second)


@hookimpl
def bench_exit_strategies() -> list[ExitStrategy]:
    """Return the null baselines."""
    return [Fixed(), RandomExit(), Stability(), Margin()]
