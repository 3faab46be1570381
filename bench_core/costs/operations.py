"""Operation counts: operations of a network and its controller, per sample, up to the exit."""

from dataclasses import dataclass
from typing import Literal

from bench_core.util.arrays import Array

__all__ = ["FirstLayer", "OperationCounts", "Operations", "Overhead"]

FirstLayer = Literal["once", "every-step"]
"""When a first layer under constant input is charged: at t = 1 only, or at every timestep up to the exit."""


@dataclass(frozen=True)
class Operations:
    """Operations of a controller. Counts may be fractions if only an average is known.

    Attributes:
        macs: multiply-accumulates (a policy network's).
        additions, multiplications, comparisons: on scalars; a division counts as a multiplication.
        exponentials, logarithms: evaluations of exp and log.
    """

    macs: float = 0.0
    additions: float = 0.0
    multiplications: float = 0.0
    comparisons: float = 0.0
    exponentials: float = 0.0
    logarithms: float = 0.0


@dataclass(frozen=True)
class Overhead:
    """The operations of a policy in addition to the network's: once per sample, and for each decision."""

    once: Operations = Operations()
    per_decision: Operations = Operations()


@dataclass(frozen=True)
class OperationCounts:
    """Operations spent on each of N samples until it stopped. A count that was not recorded is None.

    Attributes:
        timesteps: t-hat, int64 [N].
        macs: multiply-accumulates of the network, its first layer's included (``FirstLayer``), int64 [N].
        acs: accumulates, one per spike and synapse it meets, int64 [N].
        neuron_updates: membrane updates, int64 [N].
        spikes: spikes emitted, int64 [N].
        decisions: number of decisions made by the controller, int64 [N].
        overhead: the controller's operations; None if the policy doesn't declare them.
    """

    timesteps: Array
    macs: Array | None
    acs: Array | None
    neuron_updates: Array | None
    spikes: Array | None
    decisions: Array
    overhead: Overhead | None
