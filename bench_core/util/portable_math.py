"""Exponential, logarithm and sums that give the same bits on every processor.

Libraries choose different instructions on different processors, so their exponentials, logarithms and sums differ in
the last digits, and a threshold between two almost equal scores turns that into a different decision. IEEE 754 fixes
the result of every single addition, multiplication and division, so a computation composed of those alone, one
operation at a time and in a fixed order, is the same everywhere. Functions on arrays take and return float64.

``exponential`` and ``logarithm`` are accurate to 1.5 units in the last place (a test compares with 50 digits).
"""

import math
from collections.abc import Iterable
from decimal import Decimal, localcontext

import numpy as np

from bench_core.util.arrays import FloatArray

__all__ = [
    "FEW",
    "exact_sum",
    "exponential",
    "logarithm",
    "one_exponential",
    "one_logarithm",
    "row_sum",
    "row_sums",
]


FEW = 64  # up to this many values, plain Python numbers are faster than arrays
_BLOCK = 2**14  # values processed at once, sized to stay in a core's cache
_LOG_PARTS = 6
_PARTS = 1 << _LOG_PARTS  # an exponent is a multiple of log(2) / 64 and a remainder
_ROOT_HALF = math.sqrt(0.5)  # correctly rounded wherever IEEE 754 holds
_LOWEST, _HIGHEST = -800.0, 800.0  # beyond them the result is always 0 or infinite
_ROUNDING = 1.5 * 2.0**52  # adding it rounds to a whole number, which then occupies the lowest bits
_ROUNDING_BITS = np.float64(_ROUNDING).view(np.int64)
_BIAS, _SPECIAL, _MANTISSA = 1023, 2047, 52  # float64: exponent bias, largest exponent field, mantissa bits


def _constants() -> tuple[list[float], float, float, float, float, float]:
    """Return 2^(j / 64) for j = 0 .. 63, log(2) / 64 and log(2) (each as a short float plus the rest), 64 / log(2)."""
    with localcontext() as context:
        context.prec = 60
        log_2 = Decimal(2).ln()
        part = log_2 / _PARTS
        powers = [float((part * j).exp()) for j in range(_PARTS)]
        short, short_part = (
            Decimal(math.floor(value * 2**bits)) / 2**bits for value, bits in ((log_2, 32), (part, 41))
        )
        return (
            powers,
            float(short_part),
            float(part - short_part),
            float(short),
            float(log_2 - short),
            float(1 / part),
        )


_powers, _PART, _PART_REST, _LOG_2, _LOG_2_REST, _PARTS_PER_UNIT = _constants()
_POWERS: FloatArray = np.array(_powers)
_EXPONENTIAL = (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0)  # Taylor, for remainders up to log(2) / 128
# log((1 + s) / (1 - s)) = 2 s + s R(s^2): the coefficients of R for |s| < 0.1716, from FreeBSD's e_log.c (Sun, 1993).
_LOGARITHM = (
    1.479819860511658591e-01,
    1.531383769920937332e-01,
    1.818357216161805012e-01,
    2.222219843214978396e-01,
    2.857142874366239149e-01,
    3.999999999940941908e-01,
    6.666666666666735130e-01,
)


def exponential(values: FloatArray) -> FloatArray:
    """Replace each value x with e^x (0 if below 2^-1022) and return the same array: any shape, C-contiguous."""
    flat = values.reshape(-1)
    if len(flat) <= FEW:
        flat[:] = [one_exponential(x) for x in flat.tolist()]
        return values
    whole, result, factor = np.empty((3, min(len(flat), _BLOCK)))
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK]
        _exponential(block, whole[: len(block)], result[: len(block)], factor[: len(block)])
    return values


def _exponential(x: FloatArray, whole: FloatArray, result: FloatArray, factor: FloatArray) -> None:
    """Apply ``exponential`` to a block in place; the other arrays are scratch space."""
    np.maximum(x, _LOWEST, out=x)
    np.minimum(x, _HIGHEST, out=x)
    np.multiply(x, _PARTS_PER_UNIT, out=whole)
    whole += _ROUNDING
    np.subtract(whole, _ROUNDING, out=result)  # the number of parts, as a float
    x -= np.multiply(result, _PART, out=factor)
    result *= _PART_REST
    x -= result  # the remainder, at most half a part
    np.multiply(x, _EXPONENTIAL[0], out=result)
    for coefficient in _EXPONENTIAL[1:]:
        result += coefficient
        result *= x
    parts, place = whole.view(np.int64), factor.view(np.int64)
    parts -= _ROUNDING_BITS
    np.bitwise_and(parts, _PARTS - 1, out=place)
    np.take(_POWERS, place, out=x, mode="clip")
    result *= x
    result += x
    parts >>= _LOG_PARTS
    parts += _BIAS
    np.maximum(parts, 0, out=parts)
    np.minimum(parts, _SPECIAL, out=parts)
    parts <<= _MANTISSA
    np.multiply(result, whole, out=x)  # a power of 2


def logarithm(values: FloatArray) -> FloatArray:
    """Return the natural logarithm of each value: -inf for 0, NaN for NaN and for negative values."""
    if values.size <= FEW:
        few: FloatArray = np.array([one_logarithm(x) for x in values.reshape(-1).tolist()])
        return few.reshape(values.shape)
    positive = (values > 0.0) & (values < np.inf)
    fraction, exponent = np.frexp(np.where(positive, values, 1.0))
    low = fraction < _ROOT_HALF
    fraction = np.where(low, 2.0 * fraction, fraction)  # from sqrt(1 / 2) to sqrt(2)
    power = exponent - low.astype(np.float64)
    f = fraction - 1.0
    s = f / (2.0 + f)
    square = s * s
    series = np.full_like(f, _LOGARITHM[0])
    for coefficient in _LOGARITHM[1:]:
        series *= square
        series += coefficient
    series *= square
    half = f * f * 0.5
    found = power * _LOG_2 - ((half - (s * (half + series) + power * _LOG_2_REST)) - f)
    if positive.all():
        return found
    special = np.where(values == 0.0, -np.inf, np.where(values > 0.0, np.inf, np.nan))
    return np.where(positive, found, special)


def row_sums(values: FloatArray) -> FloatArray:
    """Return the sum of each row of ``values`` [B, K] as [B], in an order that depends on K alone; overwrites input."""
    width = values.shape[1]
    while width > 1:
        half = width // 2
        values[:, :half] += values[:, width - half : width]
        width -= half
    return values[:, 0].copy()


def one_exponential(x: float) -> float:
    """Return the ``exponential`` of one number, with the same bits."""
    if not _LOWEST <= x <= _HIGHEST:
        return math.nan if math.isnan(x) else 0.0 if x < 0.0 else math.inf
    parts = x * _PARTS_PER_UNIT + _ROUNDING - _ROUNDING
    x = x - parts * _PART - parts * _PART_REST
    result = x * _EXPONENTIAL[0]
    result = (result + _EXPONENTIAL[1]) * x
    result = (result + _EXPONENTIAL[2]) * x
    result = (result + _EXPONENTIAL[3]) * x
    result = (result + _EXPONENTIAL[4]) * x
    whole = int(parts)
    power = _powers[whole & _PARTS - 1]
    exponent = whole >> _LOG_PARTS
    if exponent <= -_BIAS:
        return 0.0
    return (result * power + power) * (math.inf if exponent > _BIAS else math.ldexp(1.0, exponent))


def one_logarithm(x: float) -> float:
    """Return the ``logarithm`` of one number, with the same bits."""
    if not 0.0 < x < math.inf:
        return -math.inf if x == 0.0 else math.inf if x > 0.0 else math.nan
    fraction, exponent = math.frexp(x)
    if fraction < _ROOT_HALF:
        fraction, exponent = 2.0 * fraction, exponent - 1
    f = fraction - 1.0
    s = f / (2.0 + f)
    square = s * s
    series = _LOGARITHM[0]
    for coefficient in _LOGARITHM[1:]:
        series = series * square + coefficient
    series *= square
    half = f * f * 0.5
    return exponent * _LOG_2 - ((half - (s * (half + series) + exponent * _LOG_2_REST)) - f)


def row_sum(values: list[float]) -> float:
    """Return the ``row_sums`` result for one row, with the same bits; overwrites the row."""
    width = len(values)
    while width > 1:
        half = width // 2
        for place in range(half):
            values[place] += values[width - half + place]
        width -= half
    return values[0]


def exact_sum(values: Iterable[float]) -> float:
    """Return the sum rounded once, which makes it independent of the order."""
    return math.fsum(values)
