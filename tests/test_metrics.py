"""Reference points, hull and histogram-matched accuracy against definitions and brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench_core.metrics import fixed_hull, histogram_matched_accuracy, reference_points, static_accuracy
from tests.reference import bounds, rules
from tests.traces import samples_of, traces

thorough = settings(max_examples=120, deadline=None)


@st.composite
def matrices(draw: st.DrawFn, samples: int = 30, timesteps: int = 10) -> list[list[bool]]:
    width = draw(st.integers(1, timesteps))
    return draw(st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=samples))


@st.composite
def static_curves(draw: st.DrawFn) -> list[float]:
    samples = draw(st.integers(1, 50))
    return [c / samples for c in draw(st.lists(st.integers(0, samples), min_size=1, max_size=10))]


def test_the_appendix_example_of_seenn():
    points = reference_points(torch.tensor([[False, True, False, True]]))
    assert (points.empirical_aet, points.aet, points.oct) == (2, 3, 4)


@given(matrices())
@thorough
def test_reference_points_are_what_their_papers_define(correct):
    points = reference_points(torch.tensor(correct))
    assert points.aet == pytest.approx(bounds.aet(correct), rel=1e-12)
    assert points.empirical_aet == bounds.empirical_aet(correct)
    assert points.oct == bounds.oct_mean(correct)
    assert points.oracle_accuracy == bounds.oracle_accuracy(correct)
    assert points.oracle_timestep == bounds.oracle_timestep(correct)


@given(matrices())
@thorough
def test_empirical_aet_is_at_most_aet_is_at_most_oct(correct):
    points = reference_points(torch.tensor(correct))
    assert points.empirical_aet <= points.aet + 1e-12
    assert points.aet <= points.oct + 1e-12


@given(traces(samples=20, timesteps=8, classes=6))
@settings(max_examples=60, deadline=None)
def test_aet_is_t_less_the_static_accuracies_before_t(trace):
    static = static_accuracy(trace).tolist()
    expected = trace.timesteps - sum(static[:-1])
    assert reference_points(trace.correct).aet == pytest.approx(expected, rel=1e-12)


@given(traces(samples=20, timesteps=8, classes=6))
@settings(max_examples=60, deadline=None)
def test_static_accuracy_counts_right_predictions(trace):
    correct = rules.correctness(samples_of(trace), trace.labels.tolist())
    expected = [bounds.right_at(correct, t) / len(correct) for t in range(1, trace.timesteps + 1)]
    assert static_accuracy(trace).tolist() == expected


@given(matrices())
@thorough
def test_stopping_at_the_oct_has_the_accuracy_of_the_last_timestep(correct):
    stopped = [row[int(reference_points(torch.tensor([row])).oct) - 1] for row in correct]
    assert sum(stopped) == bounds.right_at(correct, len(correct[0]))


@given(matrices(samples=6, timesteps=4))
@thorough
def test_no_assignment_of_exits_as_accurate_as_static_beats_the_lower_bound_and_one_meets_it(correct):
    assert reference_points(torch.tensor(correct)).lower_bound == pytest.approx(bounds.lower_bound(correct), abs=1e-12)


def test_samples_that_are_never_right_cost_the_lower_bound_one_timestep():
    points = reference_points(torch.tensor([[False, False, False]] * 3 + [[False, True, True]]))
    assert points.lower_bound == (3 * 1 + 2) / 4
    assert points.empirical_aet == (3 * 3 + 2) / 4


def test_with_one_timestep_every_reference_point_is_one():
    points = reference_points(torch.tensor([[True], [False]]))
    assert (points.aet, points.empirical_aet, points.oct, points.oracle_timestep, points.lower_bound) == (1,) * 5
    assert points.oracle_accuracy == 0.5


@given(static=static_curves(), data=st.data())
@thorough
def test_the_hull_is_the_best_random_mixture_of_two_fixed_timesteps(static, data):
    allowance = data.draw(st.one_of(st.floats(1.0, float(len(static))), st.integers(1, len(static)).map(float)))
    assert fixed_hull(np.array(static), allowance) == pytest.approx(bounds.best_mixture(static, allowance), abs=1e-12)


def test_the_hull_bridges_a_dip_and_keeps_a_peak():
    static = np.array([0.5, 0.4, 0.9, 0.7])
    assert fixed_hull(static, 2.0) == pytest.approx(0.7)
    assert fixed_hull(static, 4.0) == pytest.approx(0.9)


@given(static=static_curves(), data=st.data())
@thorough
def test_histogram_matched_accuracy_is_the_expectation_of_shuffled_exits(static, data):
    exits = data.draw(st.lists(st.integers(1, len(static)), min_size=1, max_size=30))
    found = histogram_matched_accuracy(torch.tensor(exits), np.array(static))
    assert found == pytest.approx(bounds.histogram_matched(exits, static), abs=1e-12)
