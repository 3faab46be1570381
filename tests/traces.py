"""Random traces for property tests: ties, saturated, constant, tiny and huge logits included."""

import random

import torch
from hypothesis import strategies as st

from bench_core import Calibration, Trace
from bench_core.trace.trace import tensors_beside_logits
from tests.reference import rules

__all__ = ["calibrations", "make_trace", "samples_of", "tensors_of", "trace_pairs", "traces"]

_DRAWS = {
    "normal": lambda rng: rng.gauss(0.0, 1.0),
    "strong": lambda rng: rng.gauss(0.0, 5.0),
    "few": lambda rng: float(rng.choice((-1, 0, 1))),
    "coarse": lambda rng: rng.randint(-6, 6) / 4,
    "saturated": lambda rng: rng.gauss(0.0, 1000.0),
    "huge": lambda rng: rng.gauss(0.0, 1e30),
    "tiny": lambda rng: rng.gauss(0.0, 1e-30),
}
KINDS = (*_DRAWS, "constant", "mixed")


def _sample(kind: str, rng: random.Random, timesteps: int, classes: int) -> rules.Sample:
    if kind == "mixed":
        return _sample(rng.choice(KINDS[:-1]), rng, timesteps, classes)
    if kind == "constant":
        return [[value] * classes for value in (rng.gauss(0.0, 3.0) for _ in range(timesteps))]
    return [[_DRAWS[kind](rng) for _ in range(classes)] for _ in range(timesteps)]


def tensors_of(trace: Trace) -> dict[str, torch.Tensor]:
    """All of a trace's tensors, in memory."""
    return {"logits": trace.logits, **tensors_beside_logits(trace)}


def make_trace(
    kind: str, seed: int, samples: int, timesteps: int, classes: int, dtype: torch.dtype = torch.float32
) -> Trace:
    """A trace whose labels are mostly what some timestep predicts, with scattered sample ids."""
    rng = random.Random(seed)
    logits = torch.tensor([_sample(kind, rng, timesteps, classes) for _ in range(samples)], dtype=torch.float64)
    logits = logits.to(dtype)
    labels = [
        rng.choice(rules.predictions(sample)) if rng.random() < 0.7 else rng.randrange(classes)
        for sample in logits.to(torch.float64).tolist()
    ]
    ids = rng.sample(range(2 ** rng.choice((7, 20, 62))), samples)
    return Trace(logits, torch.tensor(labels), torch.tensor(ids))


def samples_of(trace: Trace) -> list[rules.Sample]:
    """A trace's logits as nested lists of floats."""
    return trace.logits.to(torch.float64).tolist()


_SEEDS = st.integers(0, 2**32 - 1)
_DTYPES = st.sampled_from((torch.float32, torch.float64, torch.bfloat16))


def traces(
    *, samples: int = 40, timesteps: int = 12, classes: int = 20, least_timesteps: int = 1
) -> st.SearchStrategy[Trace]:
    """Traces with at most so many samples, timesteps and classes."""
    return st.builds(
        make_trace,
        kind=st.sampled_from(KINDS),
        seed=_SEEDS,
        samples=st.integers(1, samples),
        timesteps=st.integers(least_timesteps, timesteps),
        classes=st.integers(2, classes),
        dtype=_DTYPES,
    )


def trace_pairs(
    *, samples: int = 40, timesteps: int = 12, classes: int = 20, least_timesteps: int = 1
) -> st.SearchStrategy[tuple[Trace, Trace]]:
    """Two traces of one workload: the same kind, timesteps and classes, other samples."""

    @st.composite
    def pair(draw: st.DrawFn) -> tuple[Trace, Trace]:
        kind, dtype = draw(st.sampled_from(KINDS)), draw(_DTYPES)
        shape = draw(st.integers(least_timesteps, timesteps)), draw(st.integers(2, classes))
        first, second = (make_trace(kind, draw(_SEEDS), draw(st.integers(1, samples)), *shape, dtype) for _ in range(2))
        return first, second

    return pair()


def calibrations(trace: Trace) -> Calibration:
    """Calibration data that is just a trace."""
    return Calibration(trace)
