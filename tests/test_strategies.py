"""Every shipped trace-only strategy stops each sample where the plain-Python reference says, and predicts the same."""

import math
from collections.abc import Callable

import pytest
import torch
from bench_plugins.baselines import Fixed, Margin, RandomExit, Stability
from bench_plugins.dt_snn import DtSnn
from bench_plugins.dynamic_confidence import LARGEST, SMALLEST, DynamicConfidence
from bench_plugins.seenn_i import SeennI
from bench_plugins.spikecp import ConformalPValues, SpikeCP
from bench_plugins.topk_cutoff import TopKCutoff
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bench_core import Evidence, Trace, UsageError
from bench_core.replay.controller import replay_policy, score_table
from bench_core.replay.family import FamilyOnTrace, candidates
from bench_core.scoring.operating_points import OperatingPoint, choose
from tests.reference import rules
from tests.traces import calibrations, make_trace, samples_of, trace_pairs, traces

pytestmark = pytest.mark.numerics

thorough = settings(max_examples=100, deadline=None)
ACCUMULATE = st.sampled_from(("sum", "mean"))
Scores = list[list[float]]


def close(score: float, threshold: float) -> bool:
    """Too near for two correct floating-point computations of a score in [0, 1] to be sure to agree."""
    return abs(score - threshold) <= max(1e-9 * abs(threshold), 1e-12)


def some_threshold(data: st.DataObject, scores: Scores) -> float:
    """A number in [0, 1]: any, or half-way between two scores that occur."""
    seen = sorted({score for row in scores for score in row} | {0.0, 1.0})
    place = data.draw(st.integers(0, len(seen) - 2))
    return data.draw(st.sampled_from(((seen[place] + seen[place + 1]) / 2, None))) or data.draw(st.floats(0.0, 1.0))


def check_exits(policy: object, trace: Trace, expected: list[int | None]) -> None:
    """Outcomes of a replay against exit timesteps; None where rounding may decide."""
    outcome = replay_policy(policy, trace)
    found = zip(outcome.exit_timesteps.tolist(), outcome.predictions.tolist(), outcome.forced.tolist(), strict=True)
    for sample, wanted, (exit_timestep, prediction, forced) in zip(samples_of(trace), expected, found, strict=True):
        if wanted is not None:
            assert exit_timestep == wanted
            assert prediction == rules.predictions(sample)[wanted - 1]
            assert forced == (wanted == trace.timesteps)


def sure_exits(scores: Scores, threshold: float, rule: Callable[[list[float], float], int]) -> list[int | None]:
    """Where a rule stops each sample; None where a score on the way there is too close to the threshold."""
    exits: list[int | None] = []
    for row in scores:
        t = rule(row, threshold)
        asked = row[: min(t, len(row) - 1)]
        exits.append(None if any(close(score, threshold) for score in asked) else t)
    assume(any(t is not None for t in exits))
    return exits


@given(trace=traces(), data=st.data(), accumulate=ACCUMULATE, alpha=st.sampled_from((1.0, 0.3, 8.0, 30.0)))
@thorough
def test_seenn_i_stops_where_the_largest_softmax_exceeds_the_threshold(trace, data, accumulate, alpha):
    scores = [rules.confidences(sample, accumulate, alpha) for sample in samples_of(trace)]
    threshold = some_threshold(data, scores)
    family = SeennI(accumulate=accumulate, alpha=alpha).fit(calibrations(trace))
    check_exits(family.policy(threshold), trace, sure_exits(scores, threshold, rules.first_above))


@given(trace=traces(), data=st.data(), accumulate=ACCUMULATE)
@thorough
def test_dt_snn_stops_where_the_normalised_entropy_falls_below_the_threshold(trace, data, accumulate):
    scores = [rules.entropies(sample, accumulate) for sample in samples_of(trace)]
    threshold = some_threshold(data, scores)
    family = DtSnn(accumulate=accumulate).fit(calibrations(trace))
    check_exits(family.policy(threshold), trace, sure_exits(scores, threshold, rules.first_below))


@given(trace=traces(), data=st.data(), alpha=st.floats(0.01, 100.0))
@thorough
def test_dynamic_confidence_stops_where_the_smoothed_softmax_exceeds_the_threshold(trace, data, alpha):
    scores = [rules.confidences(sample, "sum", alpha) for sample in samples_of(trace)]
    threshold = some_threshold(data, scores)
    family = DynamicConfidence(alpha=alpha).fit(calibrations(trace))
    check_exits(family.policy(threshold), trace, sure_exits(scores, threshold, rules.first_above))


@given(traces(samples=15, timesteps=4, classes=6))
@thorough
def test_dynamic_confidence_fits_the_alpha_with_the_least_negative_log_likelihood(trace):
    fitted = DynamicConfidence().fit(calibrations(trace)).strategy.parameters["alpha"]
    samples, labels = samples_of(trace), trace.labels.tolist()
    assert SMALLEST <= fitted <= LARGEST
    found = rules.negative_log_likelihood(samples, labels, fitted)
    least = rules.least_negative_log_likelihood(samples, labels, SMALLEST, LARGEST)
    assert found <= least + 1e-6 * (1.0 + abs(least))


def test_the_fitted_alpha_is_the_one_that_calculus_gives():
    # Two classes, gap 6 at T, three in four right: the likelihood peaks where softmax says 3/4, at 6 / alpha = log 3.
    logits = torch.tensor([[[2.0, 0.0], [4.0, 0.0]]]).repeat(4, 1, 1)
    trace = Trace(logits, torch.tensor([0, 0, 0, 1]), torch.arange(4))
    fitted = DynamicConfidence().fit(calibrations(trace)).strategy.parameters["alpha"]
    assert fitted == pytest.approx(6 / math.log(3), rel=1e-6)


def test_a_given_alpha_is_not_fitted():
    trace = make_trace("normal", 1, 20, 4, 5)
    assert DynamicConfidence(alpha=30).fit(calibrations(trace)).strategy.parameters["alpha"] == 30.0


@given(trace=traces(), data=st.data(), accumulate=ACCUMULATE)
@thorough
def test_margin_stops_where_the_two_largest_probabilities_are_far_enough_apart(trace, data, accumulate):
    scores = [rules.margins(sample, accumulate) for sample in samples_of(trace)]
    threshold = some_threshold(data, scores)
    family = Margin(accumulate=accumulate).fit(calibrations(trace))
    check_exits(family.policy(threshold), trace, sure_exits(scores, threshold, rules.first_above))


def some_epsilon(data: st.DataObject, samples: int) -> float:
    """A number in [0, 1), often exactly a share that the samples can have."""
    whole = data.draw(st.integers(1, samples))
    share = data.draw(st.integers(0, whole - 1)) / whole
    return data.draw(st.sampled_from((share, math.nextafter(share, 1.0), math.nextafter(share, -1.0)))) % 1.0


@given(pair=trace_pairs(samples=30, timesteps=8, classes=8), data=st.data())
@thorough
def test_topk_cutoff_stops_where_the_gap_exceeds_its_timesteps_threshold(pair, data):
    calibration = pair[0]
    epsilon = some_epsilon(data, len(calibration))
    betas = rules.cutoff_thresholds(samples_of(calibration), calibration.labels.tolist(), epsilon)
    family = TopKCutoff().fit(calibrations(calibration))
    for trace in pair:
        expected = [rules.first_above_own(rules.gaps(sample), betas) for sample in samples_of(trace)]
        check_exits(family.policy(epsilon), trace, expected)


@given(pair=trace_pairs(samples=20, timesteps=6, classes=8), bins=st.sampled_from((1, 2, 7, 100)), data=st.data())
@thorough
def test_topk_cutoff_with_bins_stops_where_the_authors_search_says(pair, bins, data):
    calibration = pair[0]
    epsilon = some_epsilon(data, len(calibration))
    betas = rules.cutoff_bin_thresholds(samples_of(calibration), calibration.labels.tolist(), epsilon, bins)
    family = TopKCutoff(search="bins", bins=bins).fit(calibrations(calibration))
    for trace in pair:
        expected = [rules.first_above_own(rules.gaps(sample), betas) for sample in samples_of(trace)]
        check_exits(family.policy(epsilon), trace, expected)


def stops_at(policy: object, t: int, gap: float, timesteps: int) -> bool:
    """Whether a two-class sample with no gap before t and this gap at t stops at t."""
    logits = torch.zeros(1, timesteps, 2, dtype=torch.float64)
    logits[0, t - 1, 0] = gap
    probe = Trace(logits, torch.tensor([0]), torch.tensor([0]))
    return int(replay_policy(policy, probe).exit_timesteps) == t


@given(
    trace=traces(samples=25, timesteps=5, classes=6, least_timesteps=2),
    search=st.sampled_from(("exact", "bins")),
    data=st.data(),
)
@thorough
def test_topk_thresholds_are_the_references_to_the_last_bit(trace, search, data):
    epsilon = some_epsilon(data, len(trace))
    samples, labels = samples_of(trace), trace.labels.tolist()
    betas = {
        "exact": lambda: rules.cutoff_thresholds(samples, labels, epsilon),
        "bins": lambda: rules.cutoff_bin_thresholds(samples, labels, epsilon, 100),
    }[search]()
    policy = TopKCutoff(search=search).fit(calibrations(trace)).policy(epsilon)
    for t, beta in enumerate(betas, start=1):
        if math.isinf(beta):
            assert not stops_at(policy, t, 1e300, trace.timesteps)
        else:
            assert not stops_at(policy, t, beta, trace.timesteps)
            assert stops_at(policy, t, math.nextafter(beta, math.inf), trace.timesteps)


def test_exact_search_rejects_the_lucky_bin_that_the_authors_search_takes():
    # Gaps 1..4 at t = 1, right, wrong, right, right from there on: above 0 one in four is wrong, above 2 none.
    logits = torch.tensor([[[g, 0.0], [0.0, 1e3 * ok]] for g, ok in ((1.0, 0), (2.0, 1), (3.0, 0), (4.0, 0))])
    trace = Trace(logits, torch.zeros(4, dtype=torch.int64), torch.arange(4))
    lucky = Trace(
        torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[4.0, 0.0], [0.0, 9.0]], [[3.0, 0.0], [0.0, 0.0]]]),
        torch.zeros(3, dtype=torch.int64),
        torch.arange(3),
    )
    assert rules.cutoff_thresholds(samples_of(trace), [0] * 4, 0.0) == [2.0]
    exact, binned = (TopKCutoff(search=s).fit(calibrations(lucky)).policy(0.4) for s in ("exact", "bins"))
    assert not stops_at(exact, 1, 2.0, 2)  # above 3 the only sample is wrong: no threshold holds from itself upwards
    assert stops_at(binned, 1, 2.0, 2)  # above 0 one in three is wrong: good enough for the first bin


def same_unless_equal(known: list[float], surprise: float) -> bool:
    """Whether no calibration score is so near to a surprise that rounding decides which is larger."""
    return all(abs(s - surprise) > 1e-9 * max(1.0, abs(s)) for s in known)


@given(
    pair=trace_pairs(samples=12, timesteps=5, classes=5),
    correction=st.sampled_from(("bonferroni", "simes")),
    max_set=st.integers(1, 5),
    alpha=st.floats(0.01, 0.99),
)
@thorough
def test_spikecp_stops_where_few_enough_labels_have_a_corrected_p_value_above_alpha(pair, correction, max_set, alpha):
    calibration, trace = pair
    known, labels = samples_of(calibration), calibration.labels.tolist()
    right = [
        [rules.surprises(rules.totals(sample)[t])[label] for sample, label in zip(known, labels, strict=True)]
        for t in range(trace.timesteps)
    ]
    expected: list[int | None] = []
    for sample in samples_of(trace):
        so_far: list[list[float]] = []
        sure, stop = True, trace.timesteps
        for t, total in enumerate(rules.totals(sample)[:-1], start=1):
            so_far.append(rules.conformal_p_values(known, labels, total, t))
            corrected = rules.corrected_p_values(so_far, trace.timesteps, correction)
            sure &= all(same_unless_equal(right[t - 1], surprise) for surprise in rules.surprises(total))
            sure &= not any(close(p, alpha) for p in corrected)
            if sum(p > alpha for p in corrected) <= max_set:
                stop = t
                break
        expected.append(stop if sure else None)
    assume(any(t is not None for t in expected))
    family = SpikeCP(correction=correction, max_set=max_set).fit(calibrations(calibration))
    check_exits(family.policy(alpha), trace, expected)


def evidence_at(trace: Trace, sample: int, t: int) -> Evidence:
    """What a decision about one sample sees at t."""
    logits = trace.logits[sample : sample + 1].double()
    return Evidence(t, trace.timesteps, logits[:, t - 1], logits[:, :t].sum(1), trace.sample_ids[sample : sample + 1])


def exchangeable_trace(seed: int, samples: int, first_id: int) -> Trace:
    """Samples drawn independently of each other, four labels, evidence that grows with t and is often misleading."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (samples,), generator=generator)
    logits = 1.5 * torch.randn(samples, 5, 4, generator=generator, dtype=torch.float64)
    strength = torch.rand(samples, 1, generator=generator, dtype=torch.float64)
    logits[torch.arange(samples), :, labels] += 2.0 * strength
    return Trace(logits, labels, torch.arange(first_id, first_id + samples))


@pytest.mark.parametrize(("alpha", "max_set"), [(0.1, 1), (0.3, 1), (0.3, 2)])
def test_sets_at_the_stop_hold_the_label_as_often_as_promised(alpha, max_set):
    """Coverage of at least 1 - alpha on exchangeable data, on average over draws of calibration and test."""
    covered = early = total = 0
    for draw in range(150):
        calibration, test = exchangeable_trace(2 * draw, 99, 0), exchangeable_trace(2 * draw + 1, 60, 1000)
        family = SpikeCP(max_set=max_set).fit(calibrations(calibration))
        exits = replay_policy(family.policy(alpha), test).exit_timesteps
        p_values = ConformalPValues(calibrations(calibration))
        for sample, t in enumerate(exits.tolist()):
            at_stop = p_values(evidence_at(test, sample, t))[0]
            kept = 5 * at_stop > alpha
            covered += bool(kept[test.labels[sample]])
            early += t < 5
            assert t == 5 or int(kept.sum()) <= max_set
        total += len(test)
    assert early > 0.05 * total  # it is a stop that is judged, not the end
    assert covered / total >= 1 - alpha - 3 * math.sqrt(alpha * (1 - alpha) / total)


def test_without_the_correction_the_promise_would_be_broken():
    """Stopping at the first t with a small uncorrected set misses the label more often than alpha: why T p is taken."""
    alpha, missed, total = 0.3, 0, 0
    for draw in range(150):
        calibration, test = exchangeable_trace(2 * draw, 99, 0), exchangeable_trace(2 * draw + 1, 60, 1000)
        p_values = ConformalPValues(calibrations(calibration))
        for sample in range(len(test)):
            for t in range(1, 6):
                kept = p_values(evidence_at(test, sample, t))[0] > alpha
                if kept.sum() <= 1 or t == 5:
                    missed += not kept[test.labels[sample]]
                    break
        total += len(test)
    assert missed / total > alpha + 3 * math.sqrt(alpha * (1 - alpha) / total)


def test_a_spikecp_level_equal_to_alpha_stops():
    # Seven samples with the right label on top, T = 2: the other label's p-value is 1/8, corrected 1/4.
    logits = torch.tensor([[[float(i), 0.0]] * 2 for i in range(1, 8)], dtype=torch.float64)
    trace = Trace(logits, torch.zeros(7, dtype=torch.int64), torch.arange(7))
    for correction in ("bonferroni", "simes"):
        family = SpikeCP(correction=correction).fit(calibrations(trace))
        for alpha, t in ((0.25, 1), (math.nextafter(0.25, 0.0), 2)):
            assert replay_policy(family.policy(alpha), trace).exit_timesteps.tolist() == [t] * 7


def test_a_calibration_score_equal_to_a_labels_counts_towards_its_p_value():
    silent = Trace(torch.zeros(7, 2, 3), torch.zeros(7, dtype=torch.int64), torch.arange(7))
    family = SpikeCP().fit(calibrations(silent))  # every score is log 3, so every p-value is one
    assert replay_policy(family.policy(0.99), silent).exit_timesteps.tolist() == [2] * 7


@given(trace=traces(samples=20), data=st.data())
@settings(max_examples=25, deadline=None)
def test_fixed_stops_every_sample_at_t(trace, data):
    t = data.draw(st.integers(1, trace.timesteps))
    check_exits(Fixed().fit(calibrations(trace)).policy(t), trace, [t] * len(trace))


@given(trace=traces(classes=4), seed=st.integers(0, 2**70), data=st.data())
@thorough
def test_random_draws_one_of_the_two_timesteps_around_the_mean_by_sample_id(trace, seed, data):
    mean = data.draw(st.floats(1.0, float(trace.timesteps)))
    family = RandomExit(seed=seed).fit(calibrations(trace))
    expected = [rules.planned_exit(mean, seed, sample, trace.timesteps) for sample in trace.sample_ids.tolist()]
    check_exits(family.policy(mean), trace, expected)


def test_the_hash_is_splitmix64():
    # The first outputs of SplitMix64 seeded with 0 and 1234567, as published with its reference implementation.
    assert rules.splitmix64(0) == 0xE220A8397B1DCDAF
    assert rules.splitmix64(1234567) == 6457827717110365317


@pytest.mark.parametrize("mean", [1.0, 2.25, 3.5, 4.0])
def test_random_exits_average_to_their_mean(mean):
    samples = 20_000
    trace = Trace(torch.zeros(samples, 4, 2), torch.zeros(samples, dtype=torch.int64), torch.arange(samples))
    exits = replay_policy(RandomExit().fit(calibrations(trace)).policy(mean), trace).exit_timesteps
    assert exits.double().mean().item() == pytest.approx(mean, abs=4 * 0.5 / math.sqrt(samples))


@given(trace=traces(samples=12), delta=st.sampled_from([0.0, 5.0, 20.0]))
@thorough
def test_the_iso_accuracy_rule_is_the_pareto_front_procedure_of_dynamic_confidence(trace, delta):
    """The least average exit timestep, of all confidences that occur, that loses no more than delta points."""
    strategy = DynamicConfidence(alpha=3.0)
    family = FamilyOnTrace(strategy.fit(calibrations(trace)), trace)
    kept = candidates(family)
    sums, correct = family.curve(kept)
    point = OperatingPoint("iso-accuracy", delta)
    static = int(trace.correct[:, -1].sum())
    chosen = choose(point, sums, correct, static_correct=static, samples=len(trace), timesteps=trace.timesteps)
    confidences = score_table(strategy, trace).tolist()
    expected = rules.pareto_choice(confidences, trace.correct.tolist(), static - delta / 100 * len(trace))
    assert (int(sums[chosen]), int(correct[chosen])) == expected


@given(trace=traces(classes=4), k=st.integers(1, 14))
@thorough
def test_stability_stops_when_the_last_k_predictions_agree(trace, k):
    policy = Stability().fit(calibrations(trace)).policy(k)
    check_exits(policy, trace, [rules.stable_exit(sample, k) for sample in samples_of(trace)])


@pytest.mark.parametrize(("strategy", "beyond"), [(Fixed(), 5), (RandomExit(), 4.01)])
def test_a_timestep_beyond_the_last_is_refused(strategy, beyond):
    family = strategy.fit(calibrations(make_trace("normal", 0, 3, 4, 3)))
    with pytest.raises(UsageError, match=r"outside \[1, 4\]"):
        family.policy(beyond)


def constant(values: list[float], timesteps: int = 3) -> Trace:
    """One sample that says the same at every timestep."""
    return Trace(torch.tensor([[values] * timesteps], dtype=torch.float64), torch.tensor([0]), torch.tensor([0]))


@pytest.mark.parametrize(
    ("strategy", "threshold", "values"),
    [
        (SeennI(), 0.5, [3.0, 3.0]),  # the largest softmax is exactly a half
        (SeennI(), 1.0, [1e30, 0.0, 0.0]),  # exactly one
        (SeennI(accumulate="mean", alpha=8.0), 1.0, [1e6, 0.0]),
        (DynamicConfidence(alpha=30.0), 0.5, [-7.0, -7.0]),
        (SeennI(), 0.1, [0.0] * 10),  # chance
        (DtSnn(), 1.0, [2.0, 2.0]),  # entropy exactly one
        (DtSnn(accumulate="mean"), 0.0, [1e30, 0.0]),  # exactly nought
        (Margin(), 0.0, [5.0, 5.0, 1.0]),
        (Margin(accumulate="mean"), 1.0, [0.0, 1e5]),
    ],
)
def test_a_score_equal_to_its_threshold_does_not_stop(strategy, threshold, values):
    trace = constant(values)
    assert replay_policy(strategy.fit(calibrations(trace)).policy(threshold), trace).exit_timesteps.tolist() == [3]


@pytest.mark.parametrize("classes", [2, 3, 10, 20, 49, 98, 101, 1000])  # 1 / (1 / 49) isn't 49
def test_dt_snn_never_stops_on_no_evidence_at_all(classes):
    trace = constant([0.0] * classes)
    assert replay_policy(DtSnn().fit(calibrations(trace)).policy(1.0), trace).exit_timesteps.tolist() == [3]


@pytest.mark.parametrize(
    ("strategy", "value"),
    [
        (SeennI(), 0.5),
        (DtSnn(), 0.5),
        (DynamicConfidence(), 0.5),
        (TopKCutoff(), 0.5),
        (TopKCutoff(search="bins"), 0.5),
        (Margin(), 0.5),
        (Fixed(), 1),
        (RandomExit(), 1.0),
        (Stability(), 1),
        (SpikeCP(), 0.5),
        (SpikeCP(correction="simes"), 0.5),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_single_timestep_is_always_forced(strategy, value):
    trace = make_trace("normal", 5, 12, 1, 4)
    check_exits(strategy.fit(calibrations(trace)).policy(value), trace, [1] * len(trace))


@pytest.mark.parametrize("alpha", [1e-3, 1e-300])
def test_a_small_alpha_saturates_instead_of_overflowing(alpha):
    trace = constant([1e30, 0.0, -1e30])
    assert replay_policy(SeennI(alpha=alpha).fit(calibrations(trace)).policy(0.9), trace).exit_timesteps.tolist() == [1]


def test_ties_go_to_the_lowest_class():
    trace = constant([1.0, 4.0, 4.0, 4.0, 0.0, 4.0])
    assert replay_policy(Fixed().fit(calibrations(trace)).policy(2), trace).predictions.tolist() == [1]
