"""Functions that give the same bits everywhere: beside fifty digits, and under the kernels of other processors."""

import hashlib
import json
import math
import struct
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench_core.util.portable_math import (
    FEW,
    exact_sum,
    exponential,
    logarithm,
    one_exponential,
    one_logarithm,
    row_sum,
    row_sums,
)
from tests.helpers.kernels import KERNELS, run_python

pytestmark = pytest.mark.numerics

# sha256 of what ``digests`` computes: the same on every processor, or the promise is broken.
DIGESTS = {
    "exponential": "355cd0370a0c4dbd511bcd1e7f16be70345ccbf909a1e011e23f474f53cea7c0",
    "logarithm": "fff3dc7e6d268f1b88d4dc4c6e3a700ca0ffcc39dce94568585e1e82719b5184",
    "row sums": "435f48af0960d07efc0e0ef65783ddab4aa278a6ca2a67d6fc7e99fe1e7f5197",
}


def units_off(found, exact):
    """How many units in the last place ``found`` is from a number of fifty digits."""
    return abs(float((Decimal(float(found)) - exact) / Decimal(float(np.spacing(abs(float(exact)))))))


def digests():
    """Digests of each function on numbers that need no library to be made."""
    steps = np.arange(60_000, dtype=np.float64)
    mixed = (steps * 7919.0) % 60_013.0
    small = np.array(mixed / 60_013.0)
    rows = (mixed[:59_994] / 977.0 - 30.0).reshape(-1, 11)
    found = {
        "exponential": exponential(np.concatenate([-800.0 * small, 800.0 * small, small * 2.0**-30])),
        "logarithm": logarithm(np.concatenate([small, 1.0 - small / 8192.0, small * 2.0**1000])),
        "row sums": row_sums(exponential(rows)),
    }
    return {name: hashlib.sha256(values.tobytes()).hexdigest() for name, values in found.items()}


@settings(deadline=None)
@given(st.floats(-708.0, 709.0))
def test_the_exponential_is_right_to_the_last_digit_but_one(x):
    with localcontext() as context:
        context.prec = 50
        assert units_off(exponential(np.array([x]))[0], Decimal(x).exp()) < 1.5


@settings(deadline=None)
@given(st.one_of(st.floats(5e-324, 1.7e308), st.floats(0.9, 1.1)))
def test_the_logarithm_is_right_to_the_last_digit_but_one(x):
    found = logarithm(np.array([x]))[0]
    if x == 1.0:
        assert found == 0.0
        return
    with localcontext() as context:
        context.prec = 50
        assert units_off(found, Decimal(x).ln()) < 1.5


def test_the_ends_of_the_range():
    values = np.array([-math.inf, -746.0, -708.5, 0.0, -0.0, 710.0, math.inf])
    assert exponential(values).tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, math.inf, math.inf]
    assert math.isnan(exponential(np.array([math.nan]))[0])
    assert logarithm(np.array([0.0, -0.0, 1.0, math.inf])).tolist() == [-math.inf, -math.inf, 0.0, math.inf]
    assert np.isnan(logarithm(np.array([-1.0, math.nan, -math.inf]))).all()


@given(st.integers(1, 40), st.integers(1, 5), st.randoms(use_true_random=False))
def test_row_sums_don_t_depend_on_the_other_rows(width, height, random):
    values = np.array([[random.uniform(-1e3, 1e3) for _ in range(width)] for _ in range(height)])
    alone = [float(row_sums(row[None].copy())[0]) for row in values]
    together = row_sums(values.copy())
    assert together.tolist() == alone
    assert np.allclose(together, [math.fsum(row) for row in values], rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("size", [1, 7, 2**14 - 1, 2**14, 2**14 + 1, 40_000])
def test_an_exponential_doesn_t_depend_on_its_neighbours(size):
    values = -np.arange(float(size)) / 97.0
    alone = [float(exponential(values[place : place + 1].copy())[0]) for place in range(0, size, 611)]
    assert exponential(values.copy())[::611].tolist() == alone
    assert exponential(values.copy().reshape(1, 1, size)).ravel().tolist() == exponential(values).tolist()


@settings(deadline=None)
@given(st.one_of(st.floats(-800.0, 800.0), st.floats(-1e-3, 1e-3), st.floats()))
def test_one_number_has_the_bits_that_it_has_among_many(x):
    many = np.full(FEW + 1, x)
    assert bits(one_exponential(x)) == bits(exponential(many.copy())[0]) == bits(exponential(np.array([x]))[0])
    assert bits(one_logarithm(x)) == bits(logarithm(many)[0]) == bits(logarithm(np.array([x]))[0])
    assert bits(one_logarithm(abs(x))) == bits(logarithm(abs(many))[0])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_one_row_has_the_sum_that_it_has_among_many(row):
    assert row_sum(list(row)) == row_sums(np.array([row, row]))[1]


def bits(number):
    """The bits of a float64, of any NaN the same."""
    return None if math.isnan(number) else struct.pack("d", number)


def test_an_exact_sum_doesn_t_depend_on_the_order():
    values = [1e16, 1.0, -1e16, 1e-8] * 50
    assert exact_sum(values) == exact_sum(sorted(values)) == 50.0 + 50 * 1e-8


@pytest.mark.parametrize("kernels", KERNELS)
def test_every_processor_gives_the_same_bits(kernels):
    code = "import json; from tests.test_portable_math import digests; print(json.dumps(digests()))"
    assert json.loads(run_python(["-c", code], kernels).stdout) == DIGESTS
