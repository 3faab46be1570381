"""The paired bootstrap against a slow one, normal theory and known differences; paired tests against every case."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test

from bench_core.scoring.statistics import (
    bootstrap_means,
    holm,
    interval,
    mcnemar,
    sign_flip_p,
    sign_flip_sums,
    significantly_less,
    significantly_more,
)
from tests.reference import uncertainty


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


# --- paired tests ----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_samples(counts):
    only = np.array(counts).T
    for (first, second), p in zip(counts, mcnemar(*only).tolist(), strict=True):
        assert p == pytest.approx(float(uncertainty.mcnemar(first, second)), rel=1e-9)
        if first + second:
            assert p == pytest.approx(binomtest(first, first + second, 0.5).pvalue, rel=1e-9)
        else:
            assert p == 1.0


def test_mcnemar_of_thousands_of_samples_is_that_of_scipy():
    first, second = np.array([4000, 5000, 1, 0]), np.array([4200, 5000, 3000, 2000])
    expected = [binomtest(int(a), int(a + b), 0.5).pvalue for a, b in zip(first, second, strict=True)]
    assert mcnemar(first, second).tolist() == pytest.approx(expected, rel=1e-9)


def flipped_signs(samples: int, flips: int, seed: int) -> np.ndarray:
    """The signs [F, N] themselves, read off columns that are 1 for one sample only."""
    return sign_flip_sums(np.eye(samples, dtype=np.int64), flips=flips, seed=seed)


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 60])
def test_signs_are_fair_coins_and_differ_between_samples_and_flips(samples):
    signs = flipped_signs(samples, 4000, 1)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert signs.mean(axis=0) == pytest.approx(np.zeros(samples), abs=5 / math.sqrt(4000))
    if samples == 60:
        assert len({tuple(row) for row in signs.tolist()}) == 4000
        assert np.abs(np.corrcoef(signs.T) - np.eye(samples)).max() < 5 / math.sqrt(4000)


@pytest.mark.parametrize("largest", [16, 2**24 // 20, 2**40 + 1])
def test_flipped_sums_are_exact(largest):
    samples = 20
    values = np.random.default_rng(0).integers(0, largest, size=(samples, 3), endpoint=True)
    sums = sign_flip_sums(values, flips=260, seed=5)
    for signs, found in zip(flipped_signs(samples, 260, 5).tolist(), sums.tolist(), strict=True):
        for column, total in enumerate(found):
            assert total == sum(int(s) * int(v) for s, v in zip(signs, values[:, column], strict=True))


def test_a_columns_flipped_sums_do_not_depend_on_the_columns_beside_it():
    column = np.random.default_rng(1).integers(1, 9, size=(90, 1))
    alone = sign_flip_sums(column, flips=300, seed=6)
    beside = sign_flip_sums(np.concatenate([np.full((90, 1), 2**40), column], axis=1), flips=300, seed=6)
    assert beside[:, 1].tolist() == alone[:, 0].tolist()


def sign_flip_test(first: list[int], second: list[int], flips: int = 4000) -> float:
    sums = sign_flip_sums(np.array([first, second]).T, flips=flips, seed=2)
    return sign_flip_p(sum(first) - sum(second), sums[:, 0] - sums[:, 1])


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_sign_flips_agree_with_every_pattern_counted(pairs):
    differences = [a - b for a, b in pairs]
    exact = float(uncertainty.sign_flips(differences))
    found = sign_flip_test([a for a, _ in pairs], [b for _, b in pairs])
    assert found == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 4000) + 1 / 4001)


def test_sign_flips_agree_with_the_permutation_test_of_scipy():
    generator = np.random.default_rng(3)
    first = generator.integers(1, 9, size=200)
    second = first + generator.integers(-2, 4, size=200) * (generator.random(200) < 0.2)
    expected = permutation_test(
        (first, second),
        lambda a, b, axis=0: (a - b).mean(axis=axis),
        permutation_type="samples",
        n_resamples=9999,
        rng=np.random.default_rng(4),
    ).pvalue
    assert sign_flip_test(first.tolist(), second.tolist(), 9999) == pytest.approx(expected, abs=0.02)


def test_identical_policies_and_single_samples_are_never_significant():
    assert sign_flip_test([3] * 50, [3] * 50) == 1.0
    assert sign_flip_test([1], [16]) == 1.0
    assert mcnemar(np.array([0, 1]), np.array([0, 0])).tolist() == [1.0, 1.0]


def test_no_p_value_of_a_permutation_test_is_zero():
    assert sign_flip_test([1] * 200, [2] * 200, 999) == 1 / 1000


def test_under_no_difference_small_p_values_are_as_rare_as_they_say():
    generator = np.random.default_rng(7)
    small = 0
    for _ in range(300):
        steps = generator.integers(1, 5, size=(40, 2))
        sums = sign_flip_sums(steps, flips=999, seed=int(generator.integers(2**31)))
        small += sign_flip_p(int(steps[:, 0].sum() - steps[:, 1].sum()), sums[:, 0] - sums[:, 1]) <= 0.1
    assert small / 300 <= 0.1 + 4 * math.sqrt(0.09 / 300)


@given(st.lists(st.sampled_from((0.0, 1e-4, 0.01, 0.02, 0.03, 0.3, 1.0)), min_size=1, max_size=12))
@settings(max_examples=150, deadline=None)
def test_holm_rejects_what_its_steps_reject_and_only_raises(p):
    adjusted = holm(np.array(p)).tolist()
    assert all(x <= y <= 1 for x, y in zip(p, adjusted, strict=True))
    for level in (0.011, 0.05, 0.2):
        assert {i for i, value in enumerate(adjusted) if value <= level} == uncertainty.holm_rejects(p, level)


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([])).tolist() == []
