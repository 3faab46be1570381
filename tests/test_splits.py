"""The frozen cuts: halves and calibration cut are disjoint, whole, stratified, and the same in any order, for ever."""

import hashlib
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench_core.data import calibration_halves, stratified_cut
from bench_core.data.builtin import FashionMNIST
from tests.reference import rules

thorough = settings(max_examples=80, deadline=None)
LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=60)


@st.composite
def labelled_ids(draw: st.DrawFn, least: int = 1) -> tuple[list[int], list[int]]:
    labels = draw(st.lists(st.integers(0, 5), min_size=least, max_size=60))
    ids = draw(st.lists(st.integers(0, 2**62), min_size=len(labels), max_size=len(labels), unique=True))
    return labels, ids


def halves_of(labels: list[int], ids: list[int]) -> tuple[list[int], list[int]]:
    """Positions in the fit and in the select half."""
    fit, select = calibration_halves(torch.tensor(labels), torch.tensor(ids))
    return fit.tolist(), select.tolist()


@given(labelled_ids(least=2))
@thorough
def test_the_halves_are_disjoint_and_cover_everything(labelled):
    fit, select = halves_of(*labelled)
    samples = len(labelled[0])
    assert sorted(fit + select) == list(range(samples))
    assert (len(fit), len(select)) == ((samples + 1) // 2, samples // 2)
    assert fit == sorted(fit)
    assert select == sorted(select)


@given(labelled_ids(least=2))
@thorough
def test_the_halves_hold_each_class_equally_but_for_one(labelled):
    labels = labelled[0]
    fit, select = (Counter(labels[i] for i in half) for half in halves_of(*labelled))
    assert all(abs(fit[c] - select[c]) <= 1 for c in set(labels))


@given(labelled_ids(least=2), st.randoms(use_true_random=False))
@thorough
def test_the_halves_do_not_depend_on_the_order_of_the_samples(labelled, rng):
    labels, ids = labelled
    order = list(range(len(labels)))
    rng.shuffle(order)
    shuffled = [labels[i] for i in order], [ids[i] for i in order]
    for half, again in zip(halves_of(*labelled), halves_of(*shuffled), strict=True):
        assert {ids[i] for i in half} == {shuffled[1][i] for i in again}


@given(labelled_ids(least=2))
@thorough
def test_the_halves_are_dealt_alternately_by_class_and_hash_of_the_id(labelled):
    labels, ids = labelled
    salt = int.from_bytes(b"HALF", "big")
    order = sorted(range(len(labels)), key=lambda i: (labels[i], rules.hash64(ids[i], salt)))
    assert halves_of(labels, ids) == (sorted(order[0::2]), sorted(order[1::2]))


def test_a_single_sample_serves_as_both_halves():
    assert halves_of([3], [12]) == ([0], [0])


def cut_of(labels: list[int], size: int) -> tuple[list[int], list[int]]:
    """Positions kept for training, and positions cut."""
    kept, cut = stratified_cut(torch.tensor(labels), size)
    return kept.tolist(), cut.tolist()


@given(LABELS, st.data())
@thorough
def test_the_cut_has_its_size_and_leaves_the_rest(labels, data):
    size = data.draw(st.integers(0, len(labels)))
    kept, cut = cut_of(labels, size)
    assert len(cut) == size
    assert sorted(kept + cut) == list(range(len(labels)))
    assert kept == sorted(kept)
    assert cut == sorted(cut)


@given(LABELS, st.data())
@thorough
def test_the_cut_takes_the_same_number_of_each_class_where_the_classes_allow_it(labels, data):
    size = data.draw(st.integers(0, len(labels)))
    whole, taken = Counter(labels), Counter(labels[i] for i in cut_of(labels, size)[1])
    most = max((taken[c] for c in whole), default=0)
    assert all(taken[c] >= most - 1 or taken[c] == whole[c] for c in whole)


@given(LABELS, st.data())
@thorough
def test_a_larger_cut_holds_every_smaller_one(labels, data):
    size = data.draw(st.integers(0, len(labels) - 1))
    assert set(cut_of(labels, size)[1]) < set(cut_of(labels, size + 1)[1])


@given(LABELS, st.data())
@thorough
def test_within_a_class_the_cut_takes_the_smallest_hashes(labels, data):
    cut = set(cut_of(labels, data.draw(st.integers(0, len(labels))))[1])
    salt = int.from_bytes(b"CALI", "big")
    for c in set(labels):
        members = sorted((i for i in range(len(labels)) if labels[i] == c), key=lambda i: rules.hash64(i, salt))
        taken = [i in cut for i in members]
        assert taken == sorted(taken, reverse=True)


@pytest.fixture(scope="module")
def calibration():
    return FashionMNIST().split("calibration")


def digest(values: torch.Tensor) -> str:
    return hashlib.sha256(" ".join(str(v) for v in values.tolist()).encode()).hexdigest()


def test_the_embedded_calibration_ids_and_their_halves_are_frozen(calibration):
    fit, select = calibration_halves(calibration.labels, calibration.sample_ids)
    assert (len(fit), len(select)) == (2500, 2500)
    assert digest(calibration.sample_ids) == "e8a14111336e9b4dfa482e4337586a7885cab8b818deac4423510506d417857c"
    assert digest(calibration.sample_ids[fit]) == "d34c9ee789bbaa9200739bdf901db772d374bbb913a3108484d6a13d239eada7"
    assert digest(calibration.sample_ids[select]) == "b17e1608d712b04a29aa820de094a6a81d509a89453519a6176379eca8e26cfe"


def test_the_embedded_calibration_split_and_its_halves_are_balanced(calibration):
    fit, select = calibration_halves(calibration.labels, calibration.sample_ids)
    assert calibration.labels.bincount().tolist() == [500] * 10
    assert calibration.labels[fit].bincount().tolist() == [250] * 10
    assert calibration.labels[select].bincount().tolist() == [250] * 10


def test_the_cut_of_fifty_thousand_labels_is_frozen():
    labels = torch.arange(50_000) * 7919 % 10
    assert (
        digest(stratified_cut(labels, 5_000)[1]) == "960ad05e83647d557d885f55dd43d138ca184bedb9a901119b45240882a4d4cc"
    )
