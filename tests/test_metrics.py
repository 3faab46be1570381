"""Reference points, areas, flips and reliability against definitions and brute force."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench_core import Trace
from bench_core.scoring.metrics import (
    area_share,
    fixed_hull,
    flips,
    histogram_matched_accuracy,
    hull_points,
    oracle_points,
    reference_points,
    reliability,
    saving_realised,
    static_accuracy,
)
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


# --- areas -----------------------------------------------------------------------------------------------------------


@given(correct=matrices(), data=st.data())
@thorough
def test_the_oracles_curve_is_the_best_that_knowing_exits_reach(correct, data):
    last = len(correct[0])
    allowance = data.draw(st.floats(1.0, float(last)))
    found = np.interp(allowance, *oracle_points(torch.tensor(correct)))
    assert found == pytest.approx(bounds.oracle_at(correct, allowance), abs=1e-9)


@given(matrices(samples=6, timesteps=3))
@thorough
def test_no_assignment_of_exits_is_above_the_oracles_curve(correct):
    samples, last = len(correct), len(correct[0])
    corners = oracle_points(torch.tensor(correct))
    for exits in itertools.product(range(1, last + 1), repeat=samples):
        right = sum(row[t - 1] for row, t in zip(correct, exits, strict=True))
        assert right / samples <= np.interp(sum(exits) / samples, *corners) + 1e-12


@st.composite
def curves(draw: st.DrawFn, correct: list[list[bool]]) -> list[tuple[float, float]]:
    """Average exit timesteps between 1 and T, ascending, with accuracies."""
    last = len(correct[0])
    shares = draw(st.sets(st.floats(0.01, 0.99), max_size=5)) if last > 1 else []
    averages = sorted(1 + share * (last - 1) for share in shares)
    return [(average, draw(st.floats(0, 1))) for average in averages]


@given(correct=matrices(samples=12, timesteps=5), data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_area_share_is_what_adding_up_thin_strips_gives(correct, data):
    curve = data.draw(curves(correct))
    found, expected = area_share(curve, torch.tensor(correct)), bounds.area_share(curve, correct)
    if expected is None or found is None:
        assert expected is None or abs(expected) > 100  # strips are too coarse for an area of 1e-6
    else:
        assert found == pytest.approx(expected, rel=0.02, abs=0.02)


@given(matrices(samples=12, timesteps=5))
@thorough
def test_the_hull_itself_has_no_area_and_the_oracle_has_all_of_it(correct):
    matrix = torch.tensor(correct)
    static = np.array([bounds.right_at(correct, t) / len(correct) for t in range(1, len(correct[0]) + 1)])
    hull = list(zip(*(side.tolist() for side in hull_points(static)), strict=True))
    oracle = list(zip(*(side.tolist() for side in oracle_points(matrix)), strict=True))
    if (whole := area_share(oracle, matrix)) is not None:
        slip = static.max() - static[-1]  # the policy's own last point is static T, which hull and oracle overlook
        assert area_share(hull, matrix) == pytest.approx(0, abs=1e-9) or slip > 0
        assert whole == pytest.approx(1, abs=1e-9) or slip > 0


def test_a_curve_below_the_hull_has_a_negative_share():
    correct = torch.tensor([[True, True, True], [False, True, True], [False, False, True]])
    assert area_share([(2.0, 0.0)], correct) < 0


@pytest.mark.parametrize(
    "correct",
    [[[True]], [[False]], [[False, False]], [[True, True], [True, True]], [[False] * 4] * 3],
    ids=["one right", "one wrong", "all wrong", "all right", "never right"],
)
def test_where_oracle_and_hull_enclose_nothing_there_is_no_share(correct):
    assert area_share([], torch.tensor(correct)) is None


def test_the_saving_is_a_share_of_what_was_possible():
    assert saving_realised(2.5, 1.0, 4) == 0.5
    assert saving_realised(4.0, 1.5, 4) == 0.0
    assert saving_realised(1.0, 1.0, 1) is None
    assert saving_realised(3.0, 4.0, 4) is None


# --- flips and reliability -------------------------------------------------------------------------------------------


@given(matrices())
@thorough
def test_flips_are_counted_between_neighbouring_timesteps(correct):
    to_wrong, to_right = flips(torch.tensor(correct))
    for t in range(len(correct[0]) - 1):
        assert to_wrong[t] == sum(row[t] and not row[t + 1] for row in correct)
        assert to_right[t] == sum(not row[t] and row[t + 1] for row in correct)
    assert len(to_wrong) == len(to_right) == len(correct[0]) - 1


@given(trace=traces(samples=30, timesteps=5, classes=6), bins=st.sampled_from((1, 4, 15)))
@settings(max_examples=60, deadline=None)
def test_reliability_and_calibration_error_are_those_of_loops(trace, bins):
    found = reliability(trace, bins=bins)
    correct = rules.correctness(samples_of(trace), trace.labels.tolist())
    confident = [rules.confidences(sample, "mean") for sample in samples_of(trace)]
    for t in range(trace.timesteps):
        pairs = [(row[t], right[t]) for row, right in zip(confident, correct, strict=True)]
        if any(abs(c * bins - round(c * bins)) < 1e-9 and c < 1 for c, _ in pairs):
            continue  # on an edge, rounding of the softmax decides
        error = 0.0
        for b in range(bins):
            inside = [(c, right) for c, right in pairs if b / bins < c <= (b + 1) / bins or (b == bins - 1 and c >= 1)]
            assert found.samples[t, b] == len(inside)
            if not inside:
                assert np.isnan(found.confidence[t, b])
                assert np.isnan(found.accuracy[t, b])
                continue
            confidence, accuracy = (sum(column) / len(inside) for column in zip(*inside, strict=True))
            assert found.confidence[t, b] == pytest.approx(confidence, rel=1e-9)
            assert found.accuracy[t, b] == pytest.approx(accuracy, rel=1e-12)
            error += len(inside) / len(pairs) * abs(accuracy - confidence)
        assert found.calibration_error[t] == pytest.approx(error, abs=1e-9)


def test_an_edge_belongs_to_the_bin_below_it():
    logits = torch.zeros(1, 1, 2)  # confidence 1/2
    found = reliability(Trace(logits, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)), bins=2)
    assert found.samples.tolist() == [[1, 0]]
    assert found.calibration_error.tolist() == [0.5]


def test_a_temperature_divides_the_mean_readout():
    logits = torch.tensor([[[2.0, 0.0], [4.0, 0.0]]])
    trace = Trace(logits, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    found = reliability(trace, bins=1, alpha=2.0)
    assert found.confidence[:, 0].tolist() == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-1.5))])
