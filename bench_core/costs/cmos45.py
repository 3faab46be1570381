"""Arithmetic in 45 nm CMOS: a price per accumulate and multiply-accumulate, nothing else."""

from typing import ClassVar

from bench_core.costs.models import CostModel
from bench_core.costs.operations import OperationCounts, Operations
from bench_core.knobs import Knob
from bench_core.util.arrays import Array

__all__ = ["Cmos45", "SeennCode", "arithmetic_knobs"]


def arithmetic_knobs(accumulate: float, multiply_accumulate: float) -> tuple[Knob, ...]:
    """Return the prices of arithmetic, in pJ; a look-up with interpolation costs the same as a multiply-accumulate."""
    return (
        Knob("accumulate", "float", accumulate, low=0.0, help="pJ per accumulate, addition or comparison"),
        Knob("multiply_accumulate", "float", multiply_accumulate, low=0.0, help="pJ per multiply-accumulate"),
        Knob("transcendental", "float", multiply_accumulate, low=0.0, help="pJ per exponential or logarithm"),
    )


class Cmos45(CostModel):
    """Arithmetic in 45 nm CMOS: 0.9 pJ per accumulate, 4.6 pJ per multiply-accumulate, the community's convention.

    Source of the figures: Horowitz, ISSCC 2014 (32-bit float: addition 0.9 pJ, multiplication 3.7 pJ). Memory traffic
    and membrane updates are not charged. The controller: additions and comparisons 0.9 pJ, multiplications 3.7 pJ,
    multiply-accumulates 4.6 pJ; an exponential or logarithm is charged as one table look-up with linear interpolation,
    that is one multiply-accumulate (this project's convention; ``transcendental`` changes it).
    """

    name: ClassVar[str] = "cmos45"
    reference: ClassVar[str] = "Horowitz, ISSCC 2014"
    requires: ClassVar[tuple[str, ...]] = ("macs", "acs", "overhead")
    knobs: ClassVar[tuple[Knob, ...]] = arithmetic_knobs(0.9, 4.6)

    def energy(self, counts: OperationCounts) -> Array:
        """Return joules per sample, float64 [N], controller included."""
        assert counts.macs is not None and counts.acs is not None and counts.overhead is not None
        network = counts.macs * self.figure("multiply_accumulate") + counts.acs * self.figure("accumulate")
        once = self._controller(counts.overhead.once)
        per_decision = self._controller(counts.overhead.per_decision)
        joules: Array = (network + once + counts.decisions * per_decision) * 1e-12
        return joules

    def _controller(self, operations: Operations) -> float:
        accumulate, mac = self.figure("accumulate"), self.figure("multiply_accumulate")
        return (
            operations.macs * mac
            + (operations.additions + operations.comparisons) * accumulate
            + operations.multiplications * (mac - accumulate)
            + (operations.exponentials + operations.logarithms) * self.figure("transcendental")
        )


class SeennCode(Cmos45):
    """``cmos45`` with the figure of SEENN's code: 0.9 + 4.6 = 5.5 pJ per multiply-accumulate.

    The multiply-accumulates of a network under direct coding are its first layer's, and those of a policy network have
    the same price. A multiplication alone costs 4.6 pJ, as in SEENN's appendix B.
    """

    name: ClassVar[str] = "seenn-code"
    reference: ClassVar[str] = "Li et al., NeurIPS 2023 (the authors' code)"
    knobs: ClassVar[tuple[Knob, ...]] = arithmetic_knobs(0.9, 5.5)
