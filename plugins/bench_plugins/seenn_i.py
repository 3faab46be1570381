"""SEENN-I: stop when the largest softmax probability is above a threshold.

Source: Li, Geller, Kim and Panda, "SEENN: Towards Temporal Spiking Early-Exit Neural Networks", NeurIPS 2023. The paper
defines the output as the mean over time; the authors' code takes the sum for directly trained networks and the sum
divided by 8 for converted ones. ``accumulate`` and ``alpha`` give all three.
"""

from typing import ClassVar

import torch

from bench_core import Evidence, ExitStrategy, Knob, Overhead, ScoreStrategy, hookimpl
from bench_plugins._readout import ACCUMULATE, ALPHA, readout, softmax_overhead


class SeennI(ScoreStrategy):
    """max softmax(R_t) > threshold, R_t = S_t / alpha or S_t / (t alpha)."""

    name: ClassVar[str] = "seenn-i"
    reference: ClassVar[str] = "Li et al., NeurIPS 2023"
    family_knob: ClassVar[Knob] = Knob("threshold", low=0.0, high=1.0, help="stop when max softmax is above it")
    knobs: ClassVar[tuple[Knob, ...]] = (ACCUMULATE, ALPHA)

    def score(self, evidence: Evidence) -> torch.Tensor:
        """Return max softmax(R_t), float64 [B]."""
        return readout(evidence, self.parameters["accumulate"], self.parameters["alpha"]).largest_probability

    def overhead(self, classes: int) -> Overhead:
        """Return the cost of a softmax, scaled if the knobs require it."""
        scaled = self.parameters["accumulate"] == "mean" or self.parameters["alpha"] != 1.0
        return softmax_overhead(classes, scaled=scaled)


@hookimpl
def bench_exit_strategies() -> list[ExitStrategy]:
    """Return SEENN-I."""
    return [SeennI()]
