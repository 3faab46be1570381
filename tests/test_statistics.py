"""The paired bootstrap against a slow one, normal theory and known differences; seeds; exact sums in both widths."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench_core.statistics import bootstrap_means, interval, significantly_less, significantly_more


def resample_counts(samples: int, resamples: int, seed: int) -> list[list[int]]:
    """How often each sample was drawn in each resample, read off columns that are 1 for one sample only."""
    means = bootstrap_means(np.eye(samples, dtype=np.int64), resamples=resamples, seed=seed)
    return [[round(share * samples) for share in row] for row in means.tolist()]


def two_sided(first: np.ndarray, second: np.ndarray, resamples: int = 4000, seed: int = 3):
    """Bootstrap means of two columns over the same resamples."""
    return bootstrap_means(np.stack([first, second], axis=1), resamples=resamples, seed=seed).T


def test_every_resample_draws_n_samples_with_replacement():
    counts = resample_counts(40, 300, 1)
    assert all(sum(row) == 40 and min(row) >= 0 for row in counts)
    assert max(max(row) for row in counts) > 1


def test_draws_are_uniform_over_samples_and_binomial_over_resamples():
    counts = np.array(resample_counts(50, 2000, 2))
    assert counts.mean(axis=0) == pytest.approx(np.ones(50), abs=5 * math.sqrt(0.98 / 2000))
    assert counts.var() == pytest.approx(1 - 1 / 50, rel=0.03)
    correlation = np.corrcoef(counts[:, 0], counts[:, 1])[0, 1]
    assert correlation == pytest.approx(-1 / 49, abs=5 / math.sqrt(2000))


def test_resamples_differ_from_each_other_in_every_chunk():
    rows = [tuple(row) for row in resample_counts(60, 600, 4)]
    assert len(set(rows)) == 600


@pytest.mark.parametrize(
    "largest",
    [1, 12, 2**24 // 20 - 1, 2**24 // 20, 2**24 // 20 + 1, 2**25 // 20, 2**40 + 1],
    ids=["bits", "timesteps", "below 2**24", "last below 2**24", "above 2**24", "below 2**25", "far above"],
)
def test_means_are_the_exact_sums_of_a_slow_bootstrap_with_the_same_counts(largest):
    samples, resamples, seed = 20, 260, 5
    generator = np.random.default_rng(0)
    values = generator.integers(0, largest, size=(samples, 3), endpoint=True)
    values[0], values[:, 2] = largest, -values[:, 2]
    means = bootstrap_means(values, resamples=resamples, seed=seed)
    assert means.dtype == np.float64
    for counts, found in zip(resample_counts(samples, resamples, seed), means.tolist(), strict=True):
        for column, mean in enumerate(found):
            assert mean == sum(c * int(v) for c, v in zip(counts, values[:, column], strict=True)) / samples


def test_sums_beyond_float32_are_not_rounded_to_it():
    values = np.full((64, 1), 2**24 + 1)
    assert (bootstrap_means(values, resamples=10, seed=0) == 2**24 + 1).all()


def test_a_columns_means_do_not_depend_on_the_columns_beside_it():
    generator = np.random.default_rng(1)
    column = generator.integers(0, 2, size=(90, 1))
    alone = bootstrap_means(column, resamples=300, seed=6)
    for other in (column, np.full((90, 1), 2**40)):
        beside = bootstrap_means(np.concatenate([other, column], axis=1), resamples=300, seed=6)
        assert beside[:, 1].tolist() == alone[:, 0].tolist()


def test_the_same_seed_gives_the_same_means_and_another_seed_others():
    values = np.arange(70)[:, None]
    first, again, other = (bootstrap_means(values, resamples=300, seed=seed) for seed in (7, 7, 8))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize(("samples", "share"), [(400, 0.5), (1000, 0.8), (1000, 0.95)])
def test_the_interval_of_an_accuracy_is_as_wide_as_normal_theory_says(samples, share):
    values = (np.arange(samples) < share * samples).astype(np.int64)[:, None]
    low, high = interval(bootstrap_means(values, resamples=5000, seed=9)[:, 0])
    error = math.sqrt(share * (1 - share) / samples)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert low == pytest.approx(share - 1.96 * error, abs=0.15 * error + 1 / samples)


def test_the_interval_of_a_difference_is_as_wide_as_normal_theory_of_pairs_says():
    first, second = np.zeros(1000, dtype=np.int64), np.zeros(1000, dtype=np.int64)
    first[:840], second[:800], second[840:860] = 1, 1, 1  # 40 for the first alone, 20 for the second alone
    a, b = two_sided(first, second, resamples=5000)
    low, high = interval(a - b)
    error = math.sqrt((60 / 1000 - 0.02**2) / 1000)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    unpaired = math.sqrt((0.84 * 0.16 + 0.82 * 0.18) / 1000)
    assert high - low < 0.6 * 2 * 1.96 * unpaired


def test_equal_columns_never_differ():
    generator = np.random.default_rng(2)
    column = generator.integers(1, 9, size=200)
    a, b = two_sided(column, column.copy())
    assert (a - b == 0).all()
    assert not significantly_less(a, b)
    assert not significantly_more(a, b)


def test_pairing_finds_a_small_one_sided_difference_within_overlapping_intervals():
    right = (np.arange(1000) < 800).astype(np.int64)
    worse = right.copy()
    worse[:10] = 0
    a, b = two_sided(right, worse)
    assert significantly_more(a, b)
    assert significantly_less(b, a)
    assert interval(a)[0] < interval(b)[1]


def test_as_many_gains_as_losses_are_no_difference():
    first, second = np.zeros(500, dtype=np.int64), np.zeros(500, dtype=np.int64)
    first[:30], second[30:60] = 1, 1
    a, b = two_sided(first, second)
    assert not significantly_more(a, b)
    assert not significantly_less(a, b)


def test_a_difference_that_touches_zero_is_not_significant():
    never_below = np.concatenate([np.zeros(30), np.ones(970)])
    assert not significantly_more(never_below, np.zeros(1000))
    assert significantly_more(np.concatenate([np.zeros(20), np.ones(980)]), np.zeros(1000))


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=300))
@settings(max_examples=150, deadline=None)
def test_less_one_way_round_is_more_the_other(differences):
    a, b = np.array(differences, dtype=np.float64), np.zeros(len(differences))
    assert significantly_less(a, b) == significantly_more(b, a)
    assert not (significantly_less(a, b) and significantly_more(a, b))


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=200), st.sampled_from((0.5, 0.9, 0.95)))
@settings(max_examples=120, deadline=None)
def test_an_interval_holds_its_share_of_the_means_and_ends_on_two_of_them(means, confidence):
    low, high = interval(np.array(means, dtype=np.float64), confidence)
    assert low in means
    assert high in means
    assert low <= high
    tail = (1 - confidence) / 2 * len(means)
    assert sum(m < low for m in means) <= tail + 1e-6
    assert sum(m > high for m in means) <= tail + 1e-6
