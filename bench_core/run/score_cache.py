"""Scores as stored artifacts: the policies a strategy chose on a workload, and the exit of every test sample.

Their key covers everything they depend on: traces, strategy, knobs, operating points, the code of the strategy and of
this package, versions, machine type and threads. A strategy whose code or state cannot be determined is scored every
time.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from bench_core.costs.operations import Operations, Overhead
from bench_core.errors import PluginError, StoreError, UsageError
from bench_core.exits.strategy import ExitPolicy, ExitStrategy, NeverExit, PolicyFamily
from bench_core.isolation.plugin_code import code_of_class, refuse_changed
from bench_core.replay.controller import outcome_at
from bench_core.run.artifacts import Workload, recording_key
from bench_core.run.provenance import code_digest
from bench_core.scoring.operating_points import OperatingPoint
from bench_core.scoring.scores import Contest, ScoredPolicy, StrategyScores, fit_family
from bench_core.store.local import Artifact, Store
from bench_core.util.digests import canonical_json, json_digest
from bench_core.util.environment import environment
from bench_core.util.progress import note

__all__ = ["SCORED_SPLITS", "KeptScores", "can_be_kept", "scored_recordings", "scores_key"]

SCORED_SPLITS = ("calibration", "test")
VERSION = 1
KIND = "scores"
_HEADER = "scores"


def scored_recordings(workload: Workload, weights: Artifact) -> list[str]:
    """Return the keys of the traces that scores are computed from."""
    return [recording_key(workload, weights, split) for split in SCORED_SPLITS]


def scores_key(
    workload: Workload, weights: Artifact, strategy: ExitStrategy, points: Sequence[OperatingPoint]
) -> str | None:
    """Return the digest of everything that a strategy's scores on a workload depend on, or None if undeterminable.

    It is undeterminable if the strategy's class cannot be found by its name, or its state is not JSON-able.
    """
    if not can_be_kept(strategy):
        return None
    return json_digest(
        {
            "stage": "score",
            "version": VERSION,
            "code": code_digest(type(strategy)),
            "environment": environment(),
            "strategy": strategy.name,
            "state": vars(strategy),
            "operating_points": [str(point) for point in points],
            "recordings": scored_recordings(workload, weights),
        }
    )


def can_be_kept(strategy: ExitStrategy) -> bool:
    """Return whether code and JSON state describe a strategy completely."""
    try:
        canonical_json(vars(strategy))
    except (TypeError, ValueError, RecursionError):
        return False
    return code_digest(type(strategy)) is not None


@dataclass
class KeptScores:
    """The stored scores of strategies on one workload.

    Attributes:
        workload: the workload.
        weights: its trained weights.
        digests: of the weights and the traces.
        contest: the recorded workload.
        points: operating points, in order.
        store: where scores are stored.
        again: ignore stored scores and compute them again.
    """

    workload: Workload
    weights: Artifact
    digests: Mapping[str, str]
    contest: Contest
    points: Sequence[OperatingPoint]
    store: Store
    again: bool = False
    _writes: bool = field(default=True, init=False)

    def get(self, strategy: ExitStrategy) -> StrategyScores | None:
        """Return the stored scores, or None if there are none for these traces. Policies are fitted on first access."""
        key = None if self.again else self._key(strategy)
        found = None if key is None else self.store.get(KIND, key)
        if found is None:
            return None
        try:
            return self._read(found, strategy)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            note(f"store: {self.store.path(KIND, str(key))}: no scores ({error!s:.200}); they are made again")
            return None

    def put(self, strategy: ExitStrategy, scores: StrategyScores) -> str | None:
        """Store scores; return their key, or None if they cannot be found again or written.

        A failure to write is reported once.
        """
        key = self._key(strategy) if self._writes and not self.store.offline else None
        if key is None:
            return None
        exits = [policy.outcome.exit_timesteps for policy in scores.policies if policy.outcome is not None]
        narrow = torch.uint8 if self.contest.test.trace.timesteps < 256 else torch.int32
        tensors = {"exit_timesteps": torch.stack(exits).to(narrow)} if exits else {}
        record = {
            "digests": dict(self.digests),
            "parameters": scores.parameters,
            "policies": [_record(policy) for policy in scores.policies],
            "curve": scores.curve,
        }
        try:
            text = json.dumps(record, default=np.generic.item)
        except (TypeError, ValueError, RecursionError):
            return None  # knob values that are not JSON
        try:
            refuse_changed(code_of_class(type(strategy)))
            self.workload.made_with.refuse_changes()
        except (PluginError, UsageError) as error:
            note(f"{error}; scores of {strategy.label} on {self.workload.spec.name} are not kept")
            return None
        metadata = {
            "workload": self.workload.spec.name,
            "strategy": strategy.label,
            "operating_points": [str(point) for point in self.points],
            "recordings": scored_recordings(self.workload, self.weights),
        }
        try:
            self.store.put(KIND, key, tensors, metadata, {_HEADER: text})
        except StoreError as error:  # the board does not need them
            note(f"{error}; scores of {metadata['workload']} are not kept")
            self._writes = False
            return None
        return key

    def _key(self, strategy: ExitStrategy) -> str | None:
        return scores_key(self.workload, self.weights, strategy, self.points)

    def _read(self, found: Artifact, strategy: ExitStrategy) -> StrategyScores | None:
        record = json.loads(found.header[_HEADER])
        if record["digests"] != dict(self.digests):
            return None  # the traces were recorded again under the same keys, with different results
        trace, fitted = self.contest.test.trace, _Fitted(strategy, self.contest)
        ran = sum(policy["status"] != "infeasible" for policy in record["policies"])
        exits = found.tensors["exit_timesteps"].long() if ran else torch.ones(0, len(trace), dtype=torch.int64)
        if exits.shape != (ran, len(trace)) or not bool(((exits >= 1) & (exits <= trace.timesteps)).all()):
            raise ValueError(f"exit timesteps aren't [{ran}, {len(trace)}] of 1 .. {trace.timesteps}")
        row = iter(exits)

        def policy(point: OperatingPoint, status: str, value: Any, overhead: Any, **figures: Any) -> ScoredPolicy:
            if status == "infeasible":
                return ScoredPolicy(point, status)
            costs = None if overhead is None else Overhead(*(Operations(**overhead[name]) for name in _COSTS))
            make = NeverExit if status == "fallback" else lambda: fitted.policy(value)
            return ScoredPolicy(point, status, value, make, outcome_at(trace, next(row)), overhead=costs, **figures)

        policies = [policy(point, **kept) for point, kept in zip(self.points, record["policies"], strict=True)]
        curve = [(value, float(average), float(accuracy)) for value, average, accuracy in record["curve"]]
        return StrategyScores(dict(record["parameters"]), policies, curve)


_COSTS = ("once", "per_decision")


@dataclass(frozen=True)
class _Fitted:
    """A family that is fitted when one of its policies is first requested."""

    strategy: ExitStrategy
    contest: Contest

    @cached_property
    def _family(self) -> PolicyFamily:
        return fit_family(self.strategy, self.contest.fit, self.contest.artifacts)

    def policy(self, value: Any) -> ExitPolicy:
        """Return the policy of one knob value."""
        return self._family.policy(value)


def _record(policy: ScoredPolicy) -> dict[str, Any]:
    return {
        "status": policy.status,
        "value": policy.value,
        "overhead": None if policy.overhead is None else asdict(policy.overhead),
        "select_accuracy": policy.select_accuracy,
        "select_timestep": policy.select_timestep,
    }
