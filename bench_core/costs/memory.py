"""Arithmetic and memory traffic: weights, potentials, spikes and activations read and written, after Lemaire et al."""

from typing import ClassVar

import numpy as np

from bench_core.costs.cmos45 import Cmos45, arithmetic_knobs
from bench_core.costs.operations import OperationCounts
from bench_core.knobs import Knob
from bench_core.util.arrays import Array

__all__ = ["Memory"]

_SRAM = (("sram_8", 8.0, 10.0), ("sram_32", 32.0, 20.0), ("sram_1024", 1024.0, 100.0))  # knob, KiB, pJ per access


class Memory(Cmos45):
    """All charges of ``cmos45``, plus neuron updates and every access to memory, in 45 nm.

    | event | arithmetic | memory | source |
    |---|---|---|---|
    | accumulate | accumulate | weight read; potential read and written | Lemaire Eq. 1, 2, 7, 8, 14, 15 |
    | multiply-accumulate | multiply-accumulate | weight read; input activation read | Lemaire Eq. 3, 6 |
    | neuron update | accumulate | potential read and written | Lemaire Eq. 1, 2, 14, 15 |
    | spike | accumulate (the reset) | written once, read once | Lemaire Eq. 1, 5, 13 |
    | controller | as ``cmos45`` | a policy network's multiply-accumulates as above; scalars none | convention |

    | figure | value | source |
    |---|---|---|
    | access to 8 KiB, 32 KiB, 1 MiB of SRAM | 10, 20, 100 pJ | Horowitz, ISSCC 2014 (64-bit, cache) |
    | sizes between these | linear interpolation | convention |
    | one access per value, regardless of its width | | convention, as in the Lemaire group's code |
    | accesses to a potential per accumulate | 2 | Lemaire; 0: accumulators are registers through a timestep |
    | memory of weights, potentials, spikes, activations | 128, 32, 8, 8 KiB | convention |
    | accumulate, multiply-accumulate | 0.9, 4.6 pJ | Horowitz, 32-bit float as ``cmos45``; Lemaire takes integers |

    Equation numbers are those in the Lemaire group's own program. The sizes are the same for every network, because the
    counts don't include a layer's sizes; Lemaire uses each layer's own. Not charged: the leak's multiplication,
    addresses of events, reads of biases, reads of input events, DRAM.
    """

    name: ClassVar[str] = "memory"
    reference: ClassVar[str] = "after Lemaire et al., ICONIP 2022; Horowitz, ISSCC 2014"
    requires: ClassVar[tuple[str, ...]] = ("macs", "acs", "neuron_updates", "spikes", "overhead")
    knobs: ClassVar[tuple[Knob, ...]] = (
        *arithmetic_knobs(0.9, 4.6),
        *(Knob(name, "float", price, low=0.0, help=f"pJ per access to {size:g} KiB") for name, size, price in _SRAM),
        Knob("potential_accesses", "float", 2.0, low=0.0, help="accesses to a potential per accumulate"),
        Knob("weights", "float", 128.0, low=8.0, high=1024.0, help="KiB of memory that holds weights"),
        Knob("potentials", "float", 32.0, low=8.0, high=1024.0, help="KiB of memory that holds potentials"),
        Knob("spikes", "float", 8.0, low=8.0, high=1024.0, help="KiB of memory that holds spikes"),
        Knob("activations", "float", 8.0, low=8.0, high=1024.0, help="KiB of memory that holds input activations"),
    )

    def energy(self, counts: OperationCounts) -> Array:
        """Return joules per sample, float64 [N], controller included."""
        assert counts.macs is not None and counts.acs is not None and counts.overhead is not None
        assert counts.neuron_updates is not None and counts.spikes is not None
        weight, potential, spike, activation = (
            self._access(content) for content in ("weights", "potentials", "spikes", "activations")
        )
        policy_macs = counts.overhead.once.macs + counts.decisions * counts.overhead.per_decision.macs
        picojoules = (
            counts.acs * (weight + self.figure("potential_accesses") * potential)
            + (counts.macs + policy_macs) * (weight + activation)
            + counts.neuron_updates * (self.figure("accumulate") + 2 * potential)
            + counts.spikes * (self.figure("accumulate") + 2 * spike)
        )
        joules: Array = super().energy(counts) + picojoules * 1e-12
        return joules

    def _access(self, content: str) -> float:
        """Return the pJ per access to the memory that holds weights, potentials, spikes or activations."""
        sizes = [size for _, size, _ in _SRAM]
        return float(np.interp(self.figure(content), sizes, [self.figure(name) for name, _, _ in _SRAM]))
