# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return, operator, arg-type"
"""Logarithm, arcus tangens and order statistics on vectors of A-lines, to float32 precision."""

from __future__ import annotations

import numpy as np

from opticstream.compute._axial_kernels import ARCTANGENT
from opticstream.compute.lanes._vectors import (
    LANES,
    absolute,
    floor,
    keep_between,
    lanes_maximum,
    lanes_minimum,
    lanes_sum,
    load,
    mantissa_and_exponent,
    splat,
    spread_out,
    store,
    where_equal,
    where_less,
    where_less_equal,
)
from opticstream.system.compiled import njit

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
def wrapped(angle):
    """Return angles of axes, -270 < angle <= 270 degrees, brought to (-90, 90]."""
    turn, right = splat(_F(180)), splat(_F(90))
    angle = where_less(right, angle, angle - turn, angle)
    return where_less_equal(angle, splat(_F(-90)), angle + turn, angle)


@njit(inline="always")
def decibel(power):
    """Return 10 log10 of positive powers."""
    return log2(power) * splat(_TEN_LOG10_2)


@njit(inline="always")
def _arctangent_below_one(x):
    q = x * x
    s = splat(ARCTANGENT[0]) * q + splat(ARCTANGENT[1])
    s = s * q + splat(ARCTANGENT[2])
    s = s * q + splat(ARCTANGENT[3])
    s = s * q + splat(ARCTANGENT[4])
    s = s * q + splat(ARCTANGENT[5])
    s = s * q + splat(ARCTANGENT[6])
    s = s * q + splat(ARCTANGENT[7])
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
def cosine_and_sine(x):
    """Return cosine and sine of angles of a few turns at most; error below 3e-7."""
    one, half = splat(_F(1)), splat(_F(0.5))
    quarter = floor(x * splat(_F(2 / np.pi)) + half)
    x = x - quarter * splat(_F(1.5707855))  # pi / 2 in two parts, the first of few digits
    x = x - quarter * splat(_F(np.pi / 2 - float(_F(1.5707855))))
    q = x * x
    c = splat(_F(2.44331571e-5)) * q + splat(_F(-1.38873162e-3))
    c = c * q + splat(_F(4.16666456e-2))
    c = c * q * q - half * q + one
    s = splat(_F(-1.95152959e-4)) * q + splat(_F(8.33216087e-3))
    s = s * q + splat(_F(-1.66666546e-1))
    s = s * q * x + x
    # by quarter turns: (c, s), (-s, c), (-c, -s), (s, -c)
    turns = quarter - splat(_F(4)) * floor(quarter * splat(_F(0.25)))
    zero, two = splat(_F(0)), splat(_F(2))
    odd = turns - two * floor(turns * half)
    cosine, sine = where_equal(odd, one, s, c), where_equal(odd, one, c, s)
    negative = where_equal(turns, one, one, where_equal(turns, two, one, zero))
    cosine = where_equal(negative, one, zero - cosine, cosine)
    return cosine, where_less(one, turns, zero - sine, sine)


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


_NEAR = 64  # values that are ranked one against the other
SPARE = _NEAR + 2 * LANES
"""Length of the scratch of `median_of`."""


@njit(inline="always")
def _larger(a, b):
    return where_less(a, b, b, a)


@njit(inline="always")
def _rank_bounds(near, n_near, k):
    """Return the k-th smallest of the first `n_near` values and the one after it; the rest is +inf."""
    one, zero, rank = splat(_F(1)), splat(_F(0)), splat(_F(k))
    after = rank + one
    first, second = splat(-_INF), splat(-_INF)
    for i in range(0, n_near, 2 * LANES):
        a, b = load(near, i), load(near, i + LANES)
        below_a, below_b = zero, zero
        for j in range(n_near):
            x = spread_out(near, j)
            below_a = below_a + where_less(x, a, one, zero)
            below_b = below_b + where_less(x, b, one, zero)
        first = _larger(first, where_less_equal(below_a, rank, a, splat(-_INF)))
        first = _larger(first, where_less_equal(below_b, rank, b, splat(-_INF)))
        second = _larger(second, where_less_equal(below_a, after, a, splat(-_INF)))
        second = _larger(second, where_less_equal(below_b, after, b, splat(-_INF)))
    return lanes_maximum(first), lanes_maximum(second)


@njit(nogil=True, cache=True, inline="always")
def median_of(values, n, mean, scale, near):
    """Return the median of the first `n` of `values`, whose size is a multiple of LANES and whose rest is +inf.

    Takes out the values around where the median should be and ranks them one against the other; where the median is
    not among them, or they are too many, counts are narrowed down. `mean` and `scale` (their spread) only say where to
    begin. `near` is scratch of length SPARE.
    """
    k = (n - 1) // 2
    # the median of n normal numbers lies about 0.76 sigma / sqrt(n) from their mean
    reach = _F(2.3) * scale / _F(np.sqrt(n))
    low, high = splat(mean - reach), splat(mean + reach)
    one, zero = splat(_F(1)), splat(_F(0))
    below, n_near = zero, 0
    for i in range(0, n, LANES):
        x = load(values, i)
        below = below + where_less(x, low, one, zero)
        if n_near <= _NEAR:
            n_near += keep_between(near, n_near, x, low, high)
    wanted = k - int(lanes_sum(below))
    if n_near > _NEAR - 1 or wanted < 0 or wanted + 1 >= n_near:
        return _median_by_counting(values, n, mean, scale)
    store(near, n_near, splat(_INF))
    store(near, n_near + LANES, splat(_INF))
    first, second = _rank_bounds(near, n_near, wanted)
    return _F(0.5) * (first + second) if n % 2 == 0 else first


@njit
def _median_by_counting(values, n, mean, scale):
    """Return the same as `median_of`.

    Counts values below two thresholds around where the median should be, narrows them like a secant search, and walks
    the last few values one by one: about seven passes of vector instructions.
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
