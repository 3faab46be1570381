"""The strategy stops where plain arithmetic says it should, and keeps the rules that every strategy keeps."""

import pytest
import torch
from exitbench_example import ScaledGap

from bench_core import Calibration, Trace, replay_policy
from bench_core.conformance import CHECKS


def test_stops_at_the_first_gap_above_the_threshold():
    logits = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [2.0, 0.0]]])  # gaps 1, 3, 5; over sqrt(t): 1, 2.12, 2.89
    trace = Trace(logits, torch.tensor([0]), torch.tensor([0]))
    policy = ScaledGap().fit(Calibration(trace)).policy(2.0)
    assert replay_policy(policy, trace).exit_timesteps.tolist() == [2]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_conformance(check):
    check(ScaledGap())
