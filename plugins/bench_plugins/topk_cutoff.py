"""Top-K cutoff: stop when the gap between the two largest accumulated logits exceeds a threshold of its timestep.

Source: Wu, Jin, Yu, Yi and Huang, "Optimising Event-Driven Spiking Neural Network with Regularisation and Cutoff",
arXiv 2301.09522 (Frontiers in Neuroscience 19, 2025). At each t the confidence rate C(t, beta) is the share, among
calibration samples whose gap exceeds beta, of those that stay right from t on (OCT <= t); beta_t is the smallest beta
with C >= 1 - epsilon.

``search=exact`` considers zero and every distinct gap, and requires the rate for all larger beta too, so that no bin
passes by luck. ``search=bins`` is the authors' code: ``bins`` equal bins up to the largest gap of all; the first that
qualifies is taken, and the last always qualifies.

Calibration is on held-out data by default. The authors calibrate on training data with dropout 0.3 after every spiking
layer, which imitates the gap to unseen data: record such a trace and set ``calibrate_on=train-dropout``.

Both become one score: -epsilon*, with epsilon*(t, gap) the smallest epsilon at which that gap stops at t.
"""

import json
from typing import ClassVar, Self

import numpy as np
import torch

from bench_core import (
    Array,
    Calibration,
    Evidence,
    ExitStrategy,
    Knob,
    Observation,
    Operations,
    Overhead,
    ScoreStrategy,
    Trace,
    UsageError,
    hookimpl,
)


def gap_at(evidence: Evidence, labels: torch.Tensor | None = None) -> torch.Tensor:
    """Return top1(S_t) - top2(S_t), float64 [B]."""
    del labels
    return 0.0 - evidence.readout().runner_up


class TopKCutoff(ScoreStrategy):
    """top1(S_t) - top2(S_t) > beta_t(epsilon)."""

    name: ClassVar[str] = "topk-cutoff"
    reference: ClassVar[str] = "Wu et al., arXiv 2301.09522"
    family_knob: ClassVar[Knob] = Knob(
        "epsilon", low=0.0, high=1.0, open_high=True, help="share of exits at each t that may be wrong"
    )
    knobs: ClassVar[tuple[Knob, ...]] = (
        Knob("search", "choice", "exact", choices=("exact", "bins"), help="where thresholds are looked for"),
        Knob("bins", "int", 100, low=1, high=100_000, help="number of bins for search=bins"),
        Knob(
            "calibrate_on",
            "choice",
            "held-out",
            choices=("held-out", "train-dropout"),
            help="what the calibration trace holds",
        ),
    )
    observes: ClassVar[tuple[Observation, ...]] = (gap_at,)
    # per t < T: gaps [G], ascending, and the score of a gap that strictly exceeds 0 .. G of them [G + 1]
    _tables: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()

    def learn(self, calibration: Calibration) -> Self:
        """Return a copy with thresholds learnt at each t < T.

        Raises:
            UsageError: the trace does not fit ``calibrate_on``.
        """
        trace = calibration.trace
        if self.parameters["calibrate_on"] == "train-dropout" and not _is_training_with_dropout(trace):
            raise UsageError(
                f"{self.name}: calibrate_on=train-dropout needs a trace of the training split with dropout; "
                "`exitbench record WORKLOAD --split train --dropout 0.3` makes one"
            )
        gaps = calibration.observed(gap_at).numpy()
        settled = _settled(trace)
        find = self._exact if self.parameters["search"] == "exact" else self._binned
        learnt = self._copy()
        learnt._tables = tuple(_table(*find(gaps, settled, t)) for t in range(trace.timesteps - 1))
        return learnt

    def score(self, evidence: Evidence) -> torch.Tensor:
        """Return -epsilon*(t, gap), float64 [B]."""
        levels, scores = self._tables[evidence.t - 1]
        gap = gap_at(evidence)
        above = torch.searchsorted(levels, gap)  # how many levels the gap strictly exceeds
        return torch.where(gap.isnan(), torch.nan, scores[above])  # the search would treat NaN as a number

    def threshold_of(self, knob: Array) -> Array:
        """Return the thresholds on the score for values of epsilon."""
        return np.nextafter(-knob, -np.inf)  # epsilon* <= epsilon stops, but the comparison is strict

    def knob_of(self, threshold: Array) -> Array:
        """Return the values of epsilon for thresholds on the score."""
        return np.nextafter(-threshold, -np.inf) + 0.0

    def overhead(self, classes: int) -> Overhead:
        """Return the cost of finding the two largest logits and comparing their gap."""
        return Overhead(per_decision=Operations(additions=1, comparisons=2 * classes - 2))

    def _exact(self, gaps: Array, settled: Array, t: int) -> tuple[Array, Array]:
        order = np.argsort(gaps[:, t])
        gap, wrong = gaps[order, t], ~settled[order, t]
        ends = np.flatnonzero(gap[1:] > gap[:-1]) + 1  # above the largest gap there are no samples
        levels = gap[ends - 1]
        if gap[0] > 0.0:
            ends, levels = np.append(0, ends), np.append(0.0, levels)
        wrong_above = wrong.sum() - np.append(0, np.cumsum(wrong))[ends]
        rates = wrong_above / (len(gap) - ends)
        return levels, np.maximum.accumulate(rates[::-1])[::-1]

    def _binned(self, gaps: Array, settled: Array, t: int) -> tuple[Array, Array]:
        bins = self.parameters["bins"]
        assert isinstance(bins, int)
        levels = np.arange(bins) * gaps.max() / bins
        above = gaps[:, t][None, :] > levels[:, None]
        exits = above.sum(1)
        wrong = (above & ~settled[:, t][None, :]).sum(1)
        rates = np.where(exits > 0, wrong / np.maximum(exits, 1), np.inf)
        rates[-1] = 0.0
        return levels, np.minimum.accumulate(rates)


def _table(levels: Array, epsilons: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """Return levels, and the scores between them: -epsilon*; below the lowest level no epsilon suffices."""
    return torch.from_numpy(levels.copy()), torch.from_numpy(-np.append(np.inf, epsilons))


def _is_training_with_dropout(trace: Trace) -> bool:
    variant = json.loads(trace.header.get("variant", "null")) or {}
    return trace.header.get("split") == "train" and float(variant.get("dropout", 0.0)) > 0.0


def _settled(trace: Trace) -> Array:
    """Return whether a sample is right at t and at every later timestep (OCT <= t), bool [N, T]."""
    correct = trace.correct.numpy()
    settled: Array = np.logical_and.accumulate(correct[:, ::-1], axis=1)[:, ::-1]
    return settled


@hookimpl
def bench_exit_strategies() -> list[ExitStrategy]:
    """Return the Top-K cutoff."""
    return [TopKCutoff()]
