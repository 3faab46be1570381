"""One deliberately broken strategy for every check of the conformance kit: each breaks that rule and no other."""

import sys

import torch
from torch import nn

from bench_core import (
    ExitPolicy,
    ExitStrategy,
    Knob,
    ListedPolicies,
    Operations,
    Overhead,
    Requirement,
    ScoreStrategy,
    Trace,
)

__all__ = ["BROKEN", "MORE_BROKEN", "Sound", "WithNetwork"]


class Sound(ScoreStrategy):
    """Keeps every rule; the broken ones differ from it in one thing."""

    name = "sound"
    reference = "the tests"
    family_knob = Knob("threshold", low=0.0, high=1.0)

    def score(self, evidence):
        return evidence.total.softmax(1).amax(1)

    def overhead(self, classes):
        return Overhead(per_decision=Operations(additions=classes, comparisons=classes, exponentials=classes))


class Raises(Sound):
    """Forgets that a batch has two dimensions."""

    def score(self, evidence):
        return evidence.total.softmax(2).amax(1)


def recorded_rows(evidence):
    """The trace that is being replayed, found where it is no policy's business to look, and these samples' rows."""
    frame = sys._getframe()
    while not isinstance(frame.f_locals.get("trace"), Trace):
        frame = frame.f_back
    trace = frame.f_locals["trace"]
    place = {int(sample): row for row, sample in enumerate(trace.sample_ids)}
    return trace, torch.tensor([place[int(key)] for key in evidence._keys])


class KnowsTheFuture(Sound):
    """Is as sure at every t as the network will be at T."""

    def score(self, evidence):
        trace, rows = recorded_rows(evidence)
        return trace.logits[rows].to(torch.float64).sum(1).softmax(1).amax(1)


class KnowsTheLabels(Sound):
    """Is sure of the label's class only."""

    def score(self, evidence):
        trace, rows = recorded_rows(evidence)
        return evidence.total.softmax(1).gather(1, trace.labels[rows, None]).squeeze(1)


class LearnsByChance(Sound):
    """Starts from a random temperature and keeps it."""

    temperature = 1.0

    def learn(self, calibration):
        learnt = self._copy()
        learnt.temperature = 0.5 + 5.0 * float(torch.rand(()))
        return learnt

    def score(self, evidence):
        return (evidence.total / self.temperature).softmax(1).amax(1)


class Listed(ExitStrategy):
    """A family of a few policies."""

    name = "listed"
    reference = "the tests"
    family_knob = Knob("threshold", low=0.0, high=1.0)
    policy = None

    def fit(self, calibration):
        return ListedPolicies((0.3, 0.6, 0.9, 1.0), self.policy)


class Confident(ExitPolicy):
    """Stop when the largest softmax is above a threshold."""

    def __init__(self, threshold):
        self.threshold = threshold

    def overhead(self, classes):
        return Sound().overhead(classes)

    def score(self, evidence, state):
        score = evidence.total.softmax(1).amax(1)
        return torch.where(score.isnan(), -torch.inf, score)

    def should_exit(self, evidence, state):
        return self.score(evidence, state) > self.threshold, state


class Numbers(Confident):
    """Is stricter with every other sample, in the order of arrival."""

    arrived = 0

    def start(self, evidence):
        numbers = self.arrived + torch.arange(len(evidence.total))
        self.arrived += len(numbers)
        return {"number": numbers}

    def score(self, evidence, state):
        return super().score(evidence, state) - 0.2 * (state["number"] % 2)


class CountsArrivals(Listed):
    policy = Numbers


class Crowd(Confident):
    """Is stricter in a large batch."""

    def start(self, evidence):
        return {"batch": torch.full((len(evidence.total),), len(evidence.total))}

    def score(self, evidence, state):
        return super().score(evidence, state) - 0.01 * state["batch"]


class CountsTheBatch(Listed):
    policy = Crowd


class Memory(Confident):
    """Smooths its score over time, and keeps the last one where no sample can take it along."""

    def start(self, evidence):
        self.last = torch.zeros(len(evidence.total), dtype=torch.float64)
        return {}

    def score(self, evidence, state):
        score = super().score(evidence, state)
        self.last = (score + self.last[: len(score)]) / 2
        return self.last


class RemembersByRow(Listed):
    policy = Memory


class StopsBeforeTheEnd(Sound):
    """Forces the exit by itself, a timestep too early."""

    def score(self, evidence):
        score = super().score(evidence)
        return torch.full_like(score, torch.inf) if evidence.t == evidence.T - 1 else score

    def fit(self, calibration):
        return ListedPolicies((0.3, 0.6, 0.9), super().fit(calibration).policy)


class NeedsTwoTimesteps(Sound):
    """Looks at how much the logits change from the first timestep to the second."""

    change = 1.0

    def learn(self, calibration):
        logits = calibration.trace.logits.to(torch.float64)
        learnt = self._copy()
        learnt.change = float((logits[:, 1] - logits[:, 0]).abs().mean())
        return learnt

    def score(self, evidence):
        return (evidence.total / (1.0 + self.change)).softmax(1).amax(1)


class Draw(Confident):
    """Stop after a random number of timesteps, another draw for each threshold."""

    def start(self, evidence):
        patience = self.threshold * evidence.T
        return {"plan": 1 + (evidence.uniform(int(10 * self.threshold)) * patience + 0.5).floor().to(torch.int64)}

    def should_exit(self, evidence, state):
        return state["plan"] <= evidence.t, state


class ClaimsToBeNested(Listed):
    nested = True
    policy = Draw


class DividesByTheSpread(Sound):
    """The gap of the two largest logits in shares of the gap between the largest and the smallest."""

    def score(self, evidence):
        ordered = evidence.total.sort(1, descending=True).values
        return (ordered[:, 0] - ordered[:, 1]) / (ordered[:, 0] - ordered[:, -1])


class HidesNaN(Sound):
    """Takes what is no number for certainty."""

    def score(self, evidence):
        return super().score(evidence).nan_to_num(1.0)


class NeedsTwoSamples(Sound):
    """Looks at the widest gap between two samples, which one sample doesn't have."""

    scale = 1.0

    def learn(self, calibration):
        learnt = self._copy()
        last = calibration.trace.logits[:, -1].to(torch.float64)
        learnt.scale = last.amax(1).sort().values.diff().max()
        return learnt

    def score(self, evidence):
        return (evidence.total / (1.0 + self.scale)).softmax(1).amax(1)


class ShiftsInPlace(Sound):
    """Subtracts the largest logit where it stands."""

    def score(self, evidence):
        powers = evidence.total.sub_(evidence.total.amax(1, keepdim=True)).exp()
        return 1.0 / powers.sum(1)


class TakesQuantiles(Sound):
    """``torch.quantile`` knows float32 and float64 only."""

    scale = 1.0

    def learn(self, calibration):
        learnt = self._copy()
        learnt.scale = float(torch.quantile(calibration.trace.logits[:, 0].amax(1), 0.5).abs())
        return learnt

    def score(self, evidence):
        return (evidence.total / (1.0 + self.scale)).softmax(1).amax(1)


class ForgetsWhatItBuilt(Sound):
    """Keeps what it learns on the side, so that an artifact from the store brings nothing back."""

    scale = 1.0

    def learn(self, calibration):
        learnt = self._copy()

        def build():
            learnt.scale = float(calibration.trace.logits.to(torch.float64).abs().mean())
            return {"scale": torch.tensor(learnt.scale)}

        calibration.artifact({"strategy": self.name}, build)
        return learnt

    def score(self, evidence):
        return (evidence.total / (1.0 + self.scale)).softmax(1).amax(1)


class CostsNothingKnown(Sound):
    """Declares no overhead."""

    def overhead(self, classes):
        return None


BROKEN = {
    "runs": Raises,
    "causality": KnowsTheFuture,
    "no-labels": KnowsTheLabels,
    "determinism": LearnsByChance,
    "permutation": CountsArrivals,
    "batch-size": CountsTheBatch,
    "compaction": RemembersByRow,
    "forced-exit": StopsBeforeTheEnd,
    "single-timestep": NeedsTwoTimesteps,
    "nestedness": ClaimsToBeNested,
    "ties": DividesByTheSpread,
    "non-finite": HidesNaN,
    "one-sample": NeedsTwoSamples,
    "no-mutation": ShiftsInPlace,
    "dtype-and-device": TakesQuantiles,
    "store-round-trip": ForgetsWhatItBuilt,
    "overhead": CostsNothingKnown,
}


# --- other ways to break a rule --------------------------------------------------------------------------------------


class KnowsFutureFrames(Sound):
    """Looks at the last event frame from the first timestep on."""

    requires = frozenset({Requirement.INPUTS})

    def score(self, evidence):
        frame = sys._getframe()
        while "recording" not in frame.f_locals:
            frame = frame.f_back
        recording = frame.f_locals["recording"]
        place = {int(sample): row for row, sample in enumerate(recording.trace.sample_ids)}
        rows = torch.tensor([place[int(key)] for key in evidence._keys])
        return super().score(evidence) * recording.frames[rows, -1].flatten(1).mean(1)


class CentresTheCalibration(Sound):
    """Subtracts the mean from the calibration logits where they stand."""

    def learn(self, calibration):
        calibration.trace.logits.sub_(calibration.trace.logits.mean())
        return self


class ScalesFrames(Sound):
    """Normalises what it is shown where it stands."""

    requires = frozenset({Requirement.INPUTS})

    def score(self, evidence):
        return super().score(evidence) * evidence.inputs.div_(10.0).flatten(1).mean(1)


class OneState(Confident):
    """Keeps one number for all samples in its state."""

    def start(self, evidence):
        return {"last": torch.zeros(1)}


class SharesAState(Listed):
    policy = OneState


class NoFamily(Sound):
    """Gives a policy where a family is asked for."""

    def fit(self, calibration):
        return Confident(0.5)


class EmptyFamily(Listed):
    """Gives a family of nothing."""

    def fit(self, calibration):
        return ListedPolicies((), Confident)


class Answers(Confident):
    """Gives numbers where a decision is asked for."""

    def should_exit(self, evidence, state):
        return self.score(evidence, state), state


class GivesNumbers(Listed):
    policy = Answers


class PaysForStopping(Sound):
    """Declares that a decision gives energy back."""

    def overhead(self, classes):
        return Overhead(per_decision=Operations(additions=-1.0))


MORE_BROKEN = (
    ("causality", KnowsFutureFrames),
    ("no-mutation", CentresTheCalibration),
    ("no-mutation", ScalesFrames),
    ("compaction", SharesAState),
    ("runs", NoFamily),
    ("runs", EmptyFamily),
    ("runs", GivesNumbers),
    ("overhead", PaysForStopping),
)


class Planner(nn.Module):
    """Two outputs that differ by ``margin``; which is larger depends on whether the batch is a large one."""

    def __init__(self, margin):
        super().__init__()
        self.margin = margin

    def forward(self, inputs):
        larger = int(len(inputs) >= 20)
        outputs = torch.zeros(len(inputs), 2, dtype=torch.float64)
        outputs[:, larger] = self.margin
        return outputs


class Planned(Confident):
    """Stop at the timestep that a network prefers: the second or the last but one."""

    def __init__(self, margin):
        super().__init__(1.0)
        self.network = Planner(margin)

    def start(self, evidence):
        return {"plan": torch.tensor([2, evidence.T])[self.network(evidence.total).argmax(1)]}

    def should_exit(self, evidence, state):
        return state["plan"] <= evidence.t, state


class WithNetwork(ExitStrategy):
    """A network in a policy whose answer depends on the batch, by more or less than rounding may."""

    name = "with-network"
    reference = "the tests"
    family_knob = Knob("step", low=0.0)

    def __init__(self, margin):
        super().__init__()
        self.margin = margin

    def fit(self, calibration):
        return ListedPolicies((0.0, 1.0), lambda _: Planned(self.margin))
