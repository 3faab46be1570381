"""Cost models one sample at a time, in plain Python, from the tables of docs/costs.md."""

from dataclasses import dataclass


@dataclass
class Spent:
    """What one sample spent until its exit, and what the controller spends once and per decision."""

    timesteps: int
    macs: int
    acs: int
    neuron_updates: int
    spikes: int
    decisions: int
    once: dict[str, float]
    per_decision: dict[str, float]


def cmos45(spent: Spent, accumulate: float = 0.9, mac: float = 4.6, lookup: float = 4.6) -> float:
    """Joules of arithmetic."""
    price = {
        "macs": mac,
        "additions": accumulate,
        "comparisons": accumulate,
        "multiplications": mac - accumulate,
        "exponentials": lookup,
        "logarithms": lookup,
    }
    picojoules = 0.0
    picojoules += spent.macs * mac + spent.acs * accumulate
    picojoules += sum(price[name] * count for name, count in spent.once.items())
    for _ in range(spent.decisions):
        picojoules += sum(price[name] * count for name, count in spent.per_decision.items())
    return picojoules / 1e12


def imc(spent: Spent, sigma_e: float = 0.0) -> float | None:
    """Energy over that of one timestep; None where a policy network would have to be priced."""
    if any(spent.once.values()):
        return None
    energy = 0.443
    for _ in range(spent.timesteps):
        energy += 0.557
    if any(spent.per_decision.values()):
        for _ in range(spent.decisions):
            energy += sigma_e
    return energy


def access(kib: float) -> float:
    """pJ to read or write one value in so much SRAM."""
    if kib <= 32:
        return 10 + (kib - 8) * (20 - 10) / (32 - 8)
    return 20 + (kib - 32) * (100 - 20) / (1024 - 32)


def memory(
    spent: Spent,
    weights: float = 128.0,
    potentials: float = 32.0,
    spikes: float = 8.0,
    activations: float = 8.0,
    potential_accesses: float = 2.0,
) -> float:
    """Joules of arithmetic, neuron updates and memory traffic."""
    reads_of_weights = spent.acs + spent.macs + spent.once.get("macs", 0)
    reads_of_activations = spent.macs + spent.once.get("macs", 0)
    for _ in range(spent.decisions):
        reads_of_weights += spent.per_decision.get("macs", 0)
        reads_of_activations += spent.per_decision.get("macs", 0)
    picojoules = reads_of_weights * access(weights) + reads_of_activations * access(activations)
    picojoules += spent.acs * potential_accesses * access(potentials)
    picojoules += spent.neuron_updates * (0.9 + access(potentials) + access(potentials))
    picojoules += spent.spikes * (0.9 + access(spikes) + access(spikes))
    return cmos45(spent) + picojoules / 1e12
