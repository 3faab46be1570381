"""Samples of a replay that rounding may decide: their score is all but equal to what it is compared with.

A score is computed anew where other samples surround it, and its last bits may differ. A sample is settled where a
policy that is a hair stricter and one that is a hair laxer stop it at the same timestep: all between them do, too.
"""

import copy

import torch
from bench_plugins.spikecp import SimesPolicy

from bench_core.exits.strategy import ScorePolicy
from bench_core.replay.controller import replay_policy

__all__ = ["assert_same_exits", "settled"]

HAIR = 1e-9  # relative, and absolute


def assert_same_exits(policy, trace, found, expected):
    """Assert that two replays of a policy stop every settled sample at the same timestep.

    Args:
        found: exit timesteps, int64 [N].
        expected: the same.
    """
    if not torch.equal(found, expected):
        differing = (found != expected).nonzero()[:, 0]
        wrong = differing[settled(policy, trace)[differing]]
        assert len(wrong) == 0, f"samples {wrong.tolist()}: {found[wrong].tolist()}, not {expected[wrong].tolist()}"


def settled(policy, trace):
    """Return where no rounding decides, bool [N]: everywhere for a policy that compares no score."""
    stricter, laxer = (replay_policy(_near(policy, sign * HAIR), trace).exit_timesteps for sign in (1, -1))
    return stricter == laxer


def _near(policy, by):
    """Return a policy whose threshold, and calibration scores if it has any, are a little larger or smaller."""
    if isinstance(policy, SimesPolicy):
        return SimesPolicy(_shifted(policy._p_values, by), policy._alpha, policy._max_set)
    if not isinstance(policy, ScorePolicy):
        return policy
    strategy = policy.strategy
    if hasattr(strategy, "p_values"):
        strategy = copy.copy(strategy)
        strategy.p_values = _shifted(strategy.p_values, by)
    return ScorePolicy(strategy, float(_larger(torch.tensor(policy.threshold, dtype=torch.float64), by)))


def _shifted(p_values, by):
    found = copy.copy(p_values)
    found._scores = _larger(p_values._scores, by)
    return found


def _larger(values, by):
    return torch.where(values.isinf(), values, values + values.abs() * by + by)
