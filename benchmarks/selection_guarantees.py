"""What operating points promise and what they keep: simulated draws, and the harm that a proof allows.

    python benchmarks/selection_guarantees.py [--draws 1000] [--samples 2500] [--table-only]

A large set of simulated samples is the whole population, so the harm and the accuracy of every policy are known. Each
draw takes calibration halves of ``--samples`` from it; a rule fixes its grid on one half and chooses on the other. A
draw breaks the promise of ``risk:d,a`` where the chosen policy harms more than d of the population, and that of
``iso-accuracy:d`` where it is less accurate there than static T minus d. Seeded: the same figures every time.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bench_core import ScoreStrategy, Trace, load_registry
from bench_core.exits.strategy import ScoreFamily
from bench_core.knobs import KnobValue
from bench_core.replay.family import FamilyOnTrace, candidates
from bench_core.scoring.operating_points import OperatingPoint, certifiable_harm, choose
from bench_core.util.arrays import Array

POPULATION, TIMESTEPS, CLASSES = 100_000, 8, 10
RULES = ("risk:1,0.05", "risk:1,0.2", "risk:2,0.05", "iso-accuracy:0", "iso-accuracy:0.5", "iso-accuracy:1")


@dataclass
class Kept:
    """How a rule fared.

    Attributes:
        broken: share of draws that broke the promise.
        excess: by how many points of the population they broke it, mean over those draws; 0 where there are none.
        harmed: mean share of the population that the chosen policies harm.
        average_exit_timestep: mean over draws, on the population.
        fallbacks: share of draws where static T stood in.
    """

    broken: float
    excess: float
    harmed: float
    average_exit_timestep: float
    fallbacks: float


def population(samples: int, seed: int) -> Trace:
    """Logits whose evidence for the label grows with t, at a rate that differs between samples; some mislead."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    logits = torch.randn(samples, TIMESTEPS, CLASSES, generator=generator)
    ease = 2.5 * torch.rand(samples, 1, generator=generator)
    logits[torch.arange(samples), :, labels] += ease * torch.linspace(0.4, 1.2, TIMESTEPS)
    return Trace(logits, labels, torch.arange(samples))


def simulate(
    strategy: ScoreStrategy,
    whole: Trace,
    points: Sequence[OperatingPoint],
    *,
    draws: int,
    samples: int,
    seed: int,
) -> list[Kept]:
    """Choose ``draws`` times by each of ``points`` from two halves of ``samples``, drawn with replacement."""
    truth = FamilyOnTrace(ScoreFamily(strategy), whole)
    generator = np.random.Generator(np.random.PCG64(seed))
    results: list[list[tuple[float, float, float]]] = [[] for _ in points]
    for _ in range(draws):
        fit, select = (
            FamilyOnTrace(ScoreFamily(strategy), whole.select(torch.from_numpy(drawn)))
            for drawn in generator.integers(0, len(whole), size=(2, samples))
        )
        values = candidates(fit)
        exit_sums, correct = select.curve(values)
        harmed, static_correct = select.harmed(values), int(select.trace.correct[:, -1].sum())
        for point, found in zip(points, results, strict=True):
            chosen = choose(
                point,
                exit_sums,
                correct,
                static_correct=static_correct,
                samples=samples,
                timesteps=whole.timesteps,
                harmed=harmed,
            )
            found.append((np.nan,) * 3 if chosen is None else _worth(truth, values[chosen], point))
    return [_kept(np.array(found), whole.timesteps) for found in results]


def _worth(truth: FamilyOnTrace, value: KnobValue, point: OperatingPoint) -> tuple[float, float, float]:
    """Points beyond the promise, share harmed and average exit timestep of a policy on the population."""
    samples = len(truth.trace)
    exit_sums, correct = truth.curve([value])
    harmed = int(truth.harmed([value])[0])
    lost = harmed if point.kind == "risk" else int(truth.trace.correct[:, -1].sum()) - int(correct[0])
    return 100 * lost / samples - point.value, harmed / samples, int(exit_sums[0]) / samples


def _kept(found: Array, timesteps: int) -> Kept:
    beyond, harmed, exits = found.T
    broken, fallback = beyond > 0, np.isnan(beyond)
    return Kept(
        broken=float(broken.mean()),
        excess=float(beyond[broken].mean()) if broken.any() else 0.0,
        harmed=float(np.where(fallback, 0.0, harmed).mean()),
        average_exit_timestep=float(np.where(fallback, timesteps, exits).mean()),
        fallbacks=float(fallback.mean()),
    )


def harm_table() -> str:
    """How many of n select samples may be harmed, in per cent of n, for the proofs that people ask for."""
    samples = (250, 500, 1000, 2500, 5000, 10_000)
    lines = [
        "| d points | level a | " + " | ".join(f"n = {n}" for n in samples) + " |",
        "|---|---|" + "---|" * len(samples),
    ]
    for points in (0.5, 1.0, 2.0, 5.0):
        for level in (0.05, 0.1):
            most = [certifiable_harm(n, points, level) for n in samples]
            cells = ["none" if x < 0 else f"{x} ({100 * x / n:.2f} %)" for x, n in zip(most, samples, strict=True)]
            lines.append(f"| {points:g} | {level:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=2500)
    parser.add_argument("--table-only", action="store_true")
    arguments = parser.parse_args()
    print("harmed samples of n that still prove that at most d points of all inputs are harmed, at level a:\n")
    print(harm_table())
    if arguments.table_only:
        return
    whole = population(POPULATION, seed=0)
    strategy = load_registry().strategies["seenn-i"]
    static = int(whole.correct[:, -1].sum()) / len(whole)
    points = [OperatingPoint.parse(rule) for rule in RULES]
    print(
        f"\n{arguments.draws} draws of two halves of {arguments.samples}; seenn-i, T = {TIMESTEPS}, "
        f"static accuracy {100 * static:.2f} %\n"
    )
    print("| rule | promise broken | then by points | harmed on average | avg exit t | static T |")
    print("|---|---|---|---|---|---|")
    kept = simulate(strategy, whole, points, draws=arguments.draws, samples=arguments.samples, seed=1)
    for rule, k in zip(RULES, kept, strict=True):
        print(
            f"| {rule} | {100 * k.broken:.1f} % | {k.excess:.2f} | {100 * k.harmed:.2f} % | "
            f"{k.average_exit_timestep:.3f} | {100 * k.fallbacks:.1f} % |"
        )


if __name__ == "__main__":
    main()
