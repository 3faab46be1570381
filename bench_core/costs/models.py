"""The cost model interface: operation counts to energy and latency, with units."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import numpy as np

from bench_core.costs.operations import OperationCounts
from bench_core.knobs import Configurable
from bench_core.util.arrays import Array

__all__ = ["CostModel"]


class CostModel(Configurable, ABC):
    """Base of every cost model that ``bench_cost_models`` returns.

    Attributes:
        version: changes whenever a figure would; rows of different versions are not comparable.
        requires: the attributes of ``OperationCounts`` it needs; if one is missing, energy is n/a.
        unit: of its energies: ``J``, or, if a model knows ratios only, ``E(1)``: the energy of a one-timestep
            inference. Energies in E(1) compare policies on one network, never networks.
        latency_unit: of its latencies: ``s``, or ``timestep``.
    """

    version: ClassVar[int] = 1
    requires: ClassVar[tuple[str, ...]] = ()
    unit: ClassVar[Literal["J", "E(1)"]] = "J"
    latency_unit: ClassVar[Literal["s", "timestep"]] = "timestep"

    @abstractmethod
    def energy(self, counts: OperationCounts) -> Array:
        """Return energy per sample in ``unit``, float64 [N], controller included; NaN if a price is missing."""

    def latency(self, counts: OperationCounts) -> Array:
        """Return modelled latency per sample in ``latency_unit``, float64 [N]; the exit timestep, unless overridden."""
        return counts.timesteps.astype(np.float64)

    def figure(self, knob: str) -> float:
        """Return the value of a float knob that has a default."""
        value = self.parameters[knob]
        assert isinstance(value, float)
        return value
