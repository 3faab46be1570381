"""DT-SNN: stop when the normalised entropy of the softmax is below a threshold.

Source: Li, Moitra, Geller and Panda, "Input-Aware Dynamic Timestep Spiking Neural Networks for Efficient In-Memory
Computing", DAC 2023. The paper takes the softmax of the mean over time, the code it shares with SEENN that of the sum;
thresholds for one do not apply to the other.
"""

from typing import ClassVar

import numpy as np
import torch

from bench_core import Array, Evidence, ExitStrategy, Knob, Operations, Overhead, ScoreStrategy, hookimpl, logarithm
from bench_plugins._readout import ACCUMULATE, readout, softmax_overhead


class DtSnn(ScoreStrategy):
    """E_t = -(1 / log K) sum_c p_t[c] log p_t[c] < threshold; the score is -E_t."""

    name: ClassVar[str] = "dt-snn"
    reference: ClassVar[str] = "Li et al., DAC 2023"
    family_knob: ClassVar[Knob] = Knob("threshold", low=0.0, high=1.0, help="stop when normalised entropy is below it")
    knobs: ClassVar[tuple[Knob, ...]] = (ACCUMULATE,)

    def score(self, evidence: Evidence) -> torch.Tensor:
        """Return -E_t, float64 [B]."""
        largest = -float(logarithm(np.array([1.0 / evidence.classes]))[0])  # so uniform evidence gives exactly 1
        return readout(evidence, self.parameters["accumulate"]).mean_log_probability / largest

    def threshold_of(self, knob: Array) -> Array:
        """Return minus the entropy thresholds."""
        return -knob

    def knob_of(self, threshold: Array) -> Array:
        """Return the entropy thresholds for thresholds on the score."""
        return -threshold

    def overhead(self, classes: int) -> Overhead:
        """Return the cost of a softmax and its entropy."""
        entropy = Operations(additions=classes - 1, multiplications=2 * classes, logarithms=classes)
        return softmax_overhead(classes, scaled=self.parameters["accumulate"] == "mean", more=entropy)


@hookimpl
def bench_exit_strategies() -> list[ExitStrategy]:
    """Return DT-SNN."""
    return [DtSnn()]
