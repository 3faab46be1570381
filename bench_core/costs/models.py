"""Cost models: operation counts to energy and, where a model has one, latency."""

from abc import ABC, abstractmethod
from typing import ClassVar

from bench_core.costs.operations import Array, OperationCounts, Operations
from bench_core.knobs import Configurable, Knob

__all__ = ["Cmos45", "CostModel"]


class CostModel(Configurable, ABC):
    """Base of every cost model that ``bench_cost_models`` returns.

    Attributes:
        version: changes whenever a figure would; rows of different versions are not comparable.
        requires: the attributes of ``OperationCounts`` it needs; where one is missing, energy is n/a.
    """

    version: ClassVar[int] = 1
    requires: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def energy(self, counts: OperationCounts) -> Array:
        """Joules per sample, float64 [N]; the controller's share included."""

    def latency(self, counts: OperationCounts) -> Array | None:
        """Modelled seconds per sample, float64 [N], or None where the model says nothing about time."""
        del counts
        return None


class Cmos45(CostModel):
    """Arithmetic in 45 nm CMOS: 0.9 pJ an accumulate, 4.6 pJ a multiply-accumulate, the community's convention.

    Source of the figures: Horowitz, ISSCC 2014 (32-bit float: addition 0.9 pJ, multiplication 3.7 pJ). Memory traffic
    and membrane updates are not charged. The controller: additions and comparisons 0.9 pJ, multiplications 3.7 pJ,
    multiply-accumulates 4.6 pJ; an exponential or logarithm is charged as one table look-up with linear
    interpolation, that is one multiply-accumulate (this project's convention; ``transcendental`` changes it).
    """

    name: ClassVar[str] = "cmos45"
    reference: ClassVar[str] = "Horowitz, ISSCC 2014"
    requires: ClassVar[tuple[str, ...]] = ("macs", "acs", "overhead")
    knobs: ClassVar[tuple[Knob, ...]] = (
        Knob("accumulate", "float", 0.9, low=0.0, help="pJ per accumulate, addition or comparison"),
        Knob("multiply_accumulate", "float", 4.6, low=0.0, help="pJ per multiply-accumulate"),
        Knob("transcendental", "float", 4.6, low=0.0, help="pJ per exponential or logarithm"),
    )

    def energy(self, counts: OperationCounts) -> Array:
        assert counts.macs is not None and counts.acs is not None and counts.overhead is not None
        network = counts.macs * self._picojoules("multiply_accumulate") + counts.acs * self._picojoules("accumulate")
        once = self._controller(counts.overhead.once)
        per_decision = self._controller(counts.overhead.per_decision)
        joules: Array = (network + once + counts.decisions * per_decision) * 1e-12
        return joules

    def _controller(self, operations: Operations) -> float:
        accumulate, mac = self._picojoules("accumulate"), self._picojoules("multiply_accumulate")
        return (
            operations.macs * mac
            + (operations.additions + operations.comparisons) * accumulate
            + operations.multiplications * (mac - accumulate)
            + (operations.exponentials + operations.logarithms) * self._picojoules("transcendental")
        )

    def _picojoules(self, knob: str) -> float:
        value = self.parameters[knob]
        assert isinstance(value, float)
        return value
