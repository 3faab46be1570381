"""In-memory computing after DT-SNN: energy affine in the exit timestep, latency proportional to it."""

from typing import ClassVar, Literal

import numpy as np

from bench_core.costs.models import CostModel
from bench_core.costs.operations import OperationCounts, Operations
from bench_core.knobs import Knob
from bench_core.util.arrays import Array

__all__ = ["Imc"]


class Imc(CostModel):
    """In-memory crossbars: E(t) / E(1) = 0.443 + 0.557 t, latency t timesteps.

    Source: Li et al., DAC 2023 (DT-SNN) report, for VGG-16 on CIFAR-10 on 64 x 64 crossbars of 4-bit RRAM cells, 4.9
    times the energy and 8 times the latency at T = 8 as at T = 1. The affine law through these two points is this
    project's; joules are not published, so the unit is the workload's own E(1). The network's operation counts play no
    part, nor does the number of evaluations of its first layer: the law holds for the chip as a whole.

    The controller is DT-SNN's sigma-E module, whose cost the paper calls negligible. No verified figure is known, so
    ``sigma_e`` is 0 unless set; it is charged for each decision that takes any operation. The module does not serve
    operations that a policy spends once per sample (a policy network), and ratios don't price them: such energies are
    NaN.
    """

    name: ClassVar[str] = "imc"
    reference: ClassVar[str] = "Li et al., DAC 2023"
    requires: ClassVar[tuple[str, ...]] = ("overhead",)
    unit: ClassVar[Literal["J", "E(1)"]] = "E(1)"
    knobs: ClassVar[tuple[Knob, ...]] = (
        Knob("per_sample", "float", 0.443, low=0.0, help="E(1) per sample, whatever its exit"),
        Knob("per_timestep", "float", 0.557, low=0.0, help="E(1) per timestep"),
        Knob("sigma_e", "float", 0.0, low=0.0, help="E(1) per decision"),
    )

    def energy(self, counts: OperationCounts) -> Array:
        """Return E(1) multiples per sample, float64 [N]; NaN if the policy spends operations once per sample."""
        assert counts.overhead is not None
        if counts.overhead.once != Operations():
            return np.full(len(counts.timesteps), np.nan)
        chip = self.figure("per_sample") + self.figure("per_timestep") * counts.timesteps
        asks = counts.overhead.per_decision != Operations()
        relative: Array = chip + self.figure("sigma_e") * counts.decisions * asks
        return relative
