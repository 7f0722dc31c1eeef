# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return, operator, arg-type"
"""Logarithm, arcus tangens and order statistics on vectors of A-lines, to float32 precision."""

from __future__ import annotations

import numpy as np
from numba import njit

from opticstream.compute.simd import (
    LANES,
    absolute,
    lanes_minimum,
    lanes_sum,
    load,
    mantissa_and_exponent,
    splat,
    where_less,
    where_less_equal,
)

_F = np.float32
_TEN_LOG10_2 = _F(10 * np.log10(2))
_LOG2_E = _F(1 / np.log(2))
_HALF_PI = _F(np.pi / 2)
_PI = _F(np.pi)
_INF = _F(np.inf)
TINY = _F(1e-37)


@njit(inline="always")
def log2(x):
    """Return log2 of positive normal numbers; error below 3e-7."""
    one = splat(_F(1))
    m, e = mantissa_and_exponent(x)
    t = (m - one) / (m + one)
    q = t * t
    series = splat(_F(1 / 9)) * q + splat(_F(1 / 7))
    series = series * q + splat(_F(1 / 5))
    series = series * q + splat(_F(1 / 3))
    series = series * q + one
    return e + t * series * splat(_F(2) * _LOG2_E)


@njit(inline="always")
def decibel(power):
    """Return 10 log10 of positive powers."""
    return log2(power) * splat(_TEN_LOG10_2)


@njit(inline="always")
def _arctangent_below_one(x):
    # Abramowitz and Stegun 4.4.49, error below 2e-8 on 0..1
    q = x * x
    s = splat(_F(0.0028662257)) * q + splat(_F(-0.0161657367))
    s = s * q + splat(_F(0.0429096138))
    s = s * q + splat(_F(-0.0752896400))
    s = s * q + splat(_F(0.1065626393))
    s = s * q + splat(_F(-0.1420889944))
    s = s * q + splat(_F(0.1999355085))
    s = s * q + splat(_F(-0.3333314528))
    return (s * q + splat(_F(1))) * x


@njit(inline="always")
def arctangent_of_ratio(y, x):
    """Return atan(y / x) in 0..pi/2 of numbers that are not negative."""
    small = where_less(y, x, y, x)
    large = where_less(y, x, x, y)
    angle = _arctangent_below_one(small / where_less(large, splat(TINY), splat(TINY), large))
    return where_less(x, y, splat(_HALF_PI) - angle, angle)


@njit(inline="always")
def arctangent2(y, x):
    """Return the angle of (x, y) in -pi..pi."""
    zero = splat(_F(0))
    angle = arctangent_of_ratio(absolute(y), absolute(x))
    angle = where_less(x, zero, splat(_PI) - angle, angle)
    return where_less(y, zero, zero - angle, angle)


@njit(inline="always")
def _next_above(values, size, limit):
    bound, smallest = splat(limit), splat(_INF)
    for i in range(0, size, LANES):
        x = load(values, i)
        above = where_less(bound, x, x, splat(_INF))
        smallest = where_less(above, smallest, above, smallest)
    return lanes_minimum(smallest)


@njit(inline="always")
def _count_up_to(values, size, a, b):
    va, vb, one, zero = splat(a), splat(b), splat(_F(1)), splat(_F(0))
    na, nb = zero, zero
    for i in range(0, size, LANES):
        x = load(values, i)
        na = na + where_less_equal(x, va, one, zero)
        nb = nb + where_less_equal(x, vb, one, zero)
    return int(lanes_sum(na)), int(lanes_sum(nb))


@njit(nogil=True, cache=True)
def median_of(values, n, mean, scale):
    """Return the median of the first `n` of `values`, whose size is a multiple of LANES and whose rest is +inf.

    Counts values below two thresholds around where the median should be, narrows them like a secant search, and walks
    the last few values one by one: about seven passes of vector instructions. `mean` and `scale` (their spread) only
    say where to begin.
    """
    size = -(-n // LANES) * LANES
    k = (n - 1) // 2
    low, high, n_low, n_high = -_INF, _INF, 0, n
    reach = _F(3.0) * scale / _F(np.sqrt(n)) + TINY
    a, b = mean - reach, mean + reach
    for _ in range(12):
        n_a, n_b = _count_up_to(values, size, a, b)
        if n_a <= k:
            if a > low:
                low, n_low = a, n_a
        elif a < high:
            high, n_high = a, n_a
        if n_b <= k:
            if b > low:
                low, n_low = b, n_b
        elif b < high:
            high, n_high = b, n_b
        if n_high - n_low <= 4:
            break
        if low == -_INF:
            reach *= _F(4)
            b, a = a, a - reach
        elif high == _INF:
            reach *= _F(4)
            a, b = b, b + reach
        else:
            per_value = (high - low) / _F(n_high - n_low)
            guess = low + per_value * (_F(k - n_low) + _F(0.5))
            a, b = guess - per_value * _F(1.5), guess + per_value * _F(1.5)
    value, count = low, n_low
    while count <= k:
        value = _next_above(values, size, value)
        count, _n = _count_up_to(values, size, value, value)
        if value == _INF:
            break
    if n % 2 == 0 and count <= k + 1:
        return _F(0.5) * (value + _next_above(values, size, value))
    return value
