"""Pairwise comparison of policies on the same test samples: intervals, paired tests, wins and losses."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from bench_core.scoring.operating_points import OperatingPoint
from bench_core.scoring.scores import PolicySamples, WorkloadScores, policy_samples
from bench_core.scoring.statistics import bootstrap_means, holm, interval, mcnemar, sign_flip_p, sign_flip_sums
from bench_core.trace.trace import Trace
from bench_core.util.arrays import Array
from bench_core.util.progress import progress

__all__ = ["Comparison", "Drawn", "Standing", "compare_workloads", "missed", "right_at_end"]

_AT_ONCE = 600  # policies whose resampled means are in memory at once, unless one workload has more


@dataclass(frozen=True)
class Standing:
    """Result of one row against the others of its workload and operating point.

    Attributes:
        accuracy: 95 % interval of the mean accuracy.
        exit_timestep: 95 % interval of the mean exit timestep.
        missed: iso-accuracy: test accuracy significantly below static T minus d. Risk: significantly more than d are
            harmed. Budget: significantly more timesteps than allowed.
        wins: number of rows that are significantly worse.
        losses: number of rows that are significantly better.
        ties: number of the remaining rows.
    """

    accuracy: tuple[float, float]
    exit_timestep: tuple[float, float]
    missed: bool
    wins: int
    losses: int
    ties: int

    @property
    def rank(self) -> int:
        """1 + the number of significantly better rows."""
        return 1 + self.losses


@dataclass(frozen=True)
class Comparison:
    """The rows of one workload at one operating point: standings by label, and a record of each pair."""

    standings: dict[str, Standing]
    pairs: list[dict[str, Any]]


def compare_workloads(
    workloads: Sequence[WorkloadScores], points: Sequence[OperatingPoint], *, resamples: int, seed: int
) -> dict[tuple[str, str], Comparison]:
    """Return all comparisons, by workload and operating point.

    Workloads with the same number of test samples share resamples, as far as they fit into memory together; no result
    depends on the grouping.
    """
    found = {}
    for batch in _batches(workloads):
        drawn = Drawn(list(_columns(batch)), resamples=resamples, seed=seed)
        for workload in batch:
            for index, point in enumerate(points):
                found[workload.name, str(point)] = _compare(workload, index, point, drawn)
    return found


def _batches(workloads: Sequence[WorkloadScores]) -> Iterator[list[WorkloadScores]]:
    batch: list[WorkloadScores] = []
    held = 0
    for workload in workloads:
        if workload.test is None:
            continue
        policies = sum(len(entry.scores.policies) for entry in workload.entries if entry.scores)
        if batch and held + policies > _AT_ONCE:
            yield batch
            batch, held = [], 0
        batch.append(workload)
        held += policies
    if batch:
        yield batch


def _columns(workloads: Iterable[WorkloadScores]) -> Iterator[tuple[Array, bool]]:
    """Yield every integer column to resample, and whether its signs are flipped too."""
    for workload in workloads:
        assert workload.test is not None
        yield right_at_end(workload.test), False
        for policy in (policy for entry in workload.entries if entry.scores for policy in entry.scores.policies):
            if policy.outcome is not None:
                samples = policy_samples(workload.test, policy.outcome)
                yield samples.right, False
                yield samples.exit_timesteps, True
                if policy.point.kind == "risk":
                    yield samples.harmed, False


class Drawn:
    """Bootstrap means and sign-flip sums of columns; each distinct column is resampled once."""

    def __init__(self, columns: Sequence[tuple[Array, bool]], *, resamples: int, seed: int) -> None:
        """Resample the columns; each comes with whether its signs are flipped too."""
        every, signed = _by_length(c for c, _ in columns), _by_length(c for c, flipped in columns if flipped)
        with progress("intervals and ranks", resamples * (len(every) + len(signed)), "draws") as advance:
            self._means = _by_digest(every, partial(bootstrap_means, resamples=resamples, seed=seed, advance=advance))
            self._flipped = _by_digest(signed, partial(sign_flip_sums, flips=resamples, seed=seed, advance=advance))

    def means(self, column: Array) -> Array:
        """Return the column's bootstrap means [R]."""
        return self._means[_digest(column)]

    def flipped(self, column: Array) -> Array:
        """Return the column's sums with flipped signs [F]."""
        return self._flipped[_digest(column)]


def _by_length(columns: Iterable[Array]) -> list[dict[bytes, Array]]:
    """Return the distinct columns by digest, grouped by length."""
    found: dict[int, dict[bytes, Array]] = {}
    for column in columns:
        found.setdefault(len(column), {}).setdefault(_digest(column), column)
    return list(found.values())


def _by_digest(columns: Iterable[dict[bytes, Array]], draw: Callable[[Array], Array]) -> dict[bytes, Array]:
    """Return ``draw`` of each column, applied to all columns of one length at once."""
    found: dict[bytes, Array] = {}
    for distinct in columns:
        found.update(zip(distinct, draw(np.stack(list(distinct.values()), axis=1)).T, strict=True))
    return found


def _digest(column: Array) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(column).data).digest()


def _compare(workload: WorkloadScores, index: int, point: OperatingPoint, drawn: Drawn) -> Comparison:
    assert workload.test is not None
    scored = {entry.label: entry.scores.policies[index] for entry in workload.entries if entry.scores}
    ran = {
        label: policy_samples(workload.test, policy.outcome)
        for label, policy in scored.items()
        if policy.outcome is not None
    }
    labels, samples = list(ran), list(ran.values())
    accuracy = [np.ascontiguousarray(drawn.means(one.right)) for one in samples]
    exits = [np.ascontiguousarray(drawn.means(one.exit_timesteps)) for one in samples]
    off_target = [missed(point, workload.test, one, drawn) for one in samples]
    signs = [drawn.flipped(one.exit_timesteps) for one in samples]
    beats = np.zeros((len(labels), len(labels)), dtype=bool)
    pairs = []
    for i, j in combinations(range(len(labels)), 2):
        in_accuracy, in_exits = interval(accuracy[i] - accuracy[j]), interval(exits[i] - exits[j])
        beats[i, j], beats[j, i] = _winner(point, (off_target[i], off_target[j]), in_accuracy, in_exits)
        figures = _pair(samples[i], samples[j], in_accuracy, in_exits, signs[i] - signs[j])
        pairs.append({"strategy": labels[i], "rival": labels[j]} | figures)
    _test_family(pairs)
    standings = {}
    for i, label in enumerate(labels):
        wins, losses = int(beats[i].sum()), int(beats[:, i].sum())
        ties = len(labels) - 1 - wins - losses
        standings[label] = Standing(interval(accuracy[i]), interval(exits[i]), off_target[i], wins, losses, ties)
    return Comparison(standings, pairs)


def missed(point: OperatingPoint, test: Trace, samples: PolicySamples, drawn: Drawn) -> bool:
    """Return whether a row significantly misses its target on test."""
    if point.kind == "budget":
        return interval(drawn.means(samples.exit_timesteps))[0] > point.value * test.timesteps
    if point.kind == "risk":
        return interval(drawn.means(samples.harmed))[0] > point.value / 100
    target = drawn.means(right_at_end(test)) - point.value / 100
    return interval(drawn.means(samples.right) - target)[1] < 0


def right_at_end(test: Trace) -> Array:
    """Return 1 if static T is correct, per sample, int64 [N]."""
    return test.correct[:, -1].numpy().astype(np.int64)


def _winner(
    point: OperatingPoint,
    off_target: tuple[bool, bool],
    in_accuracy: tuple[float, float],
    in_exits: tuple[float, float],
) -> tuple[bool, bool]:
    """Return whether the first beats the second and vice versa; intervals are first minus second.

    Budget: by accuracy. Otherwise a row that met its target beats one that missed it; if both met or both missed it,
    the one that stops earlier wins.
    """
    if point.kind == "budget":
        return in_accuracy[0] > 0, in_accuracy[1] < 0
    if off_target[0] != off_target[1]:
        return off_target[1], off_target[0]
    return in_exits[1] < 0, in_exits[0] > 0


def _pair(
    first: PolicySamples,
    second: PolicySamples,
    in_accuracy: tuple[float, float],
    in_exits: tuple[float, float],
    flipped: Array,
) -> dict[str, Any]:
    """Return differences (first minus second) with intervals, and the inputs of the tests."""
    count = len(first.right)
    timesteps = int(first.exit_timesteps.sum()) - int(second.exit_timesteps.sum())
    return {
        "accuracy_points": 100 * (int(first.right.sum()) - int(second.right.sum())) / count,
        "accuracy_points_low": 100 * in_accuracy[0],
        "accuracy_points_high": 100 * in_accuracy[1],
        "only_strategy_right": int((first.right > second.right).sum()),
        "only_rival_right": int((first.right < second.right).sum()),
        "timesteps": timesteps / count,
        "timesteps_low": in_exits[0],
        "timesteps_high": in_exits[1],
        "timesteps_p": sign_flip_p(timesteps, flipped),
    }


def _test_family(pairs: list[dict[str, Any]]) -> None:
    """Fill in McNemar's p-values, and both tests adjusted for the family of all pairs."""
    if not pairs:
        return
    only = [np.array([pair[name] for pair in pairs]) for name in ("only_strategy_right", "only_rival_right")]
    by_name = {"accuracy_p": mcnemar(*only), "timesteps_p": np.array([pair["timesteps_p"] for pair in pairs])}
    for name, p in by_name.items():
        for pair, plain, adjusted in zip(pairs, p.tolist(), holm(p).tolist(), strict=True):
            pair |= {name: plain, f"{name}_holm": adjusted}
