# mypy: disable-error-code="untyped-decorator"
"""Compiled inner loops of `opticstream.compute.axis`: every start of one pixel, then the next pixel.

Plain loops over scalars, released from the interpreter lock so that the caller spreads blocks of pixels over threads;
each pixel's arithmetic is the same whatever the block or the number of threads, so results are reproducible bit by bit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from opticstream.system.compiled import njit

MAX_MAXIMA = 12
MAX_PAIR_STARTS = 48
MAX_STARTS = MAX_MAXIMA + MAX_PAIR_STARTS
MAX_STEPS = 60
LONGEST_STEP = 0.5
"""Of the sine of the angle to the nearest beam: close to a beam minima lie close together."""
NEAR_SLOPE = 0.1
NEAR_COS2 = 0.998
"""Squared cosine within which (2.6 degrees) a descent without a better minimum counts as having reached a known one."""
MAX_BEAMS = 16
TINY = 1e-300


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _across(u0: float, u1: float, u2: float) -> Any:
    """Return two unit vectors across a unit vector, without a branch near the poles (Duff et al. 2017)."""
    side = 1.0 if u2 >= 0.0 else -1.0
    a = -1.0 / (side + u2)
    b = u0 * u1 * a
    return 1.0 + side * u0 * u0 * a, side * b, -side * u0, b, side + u1 * u1 * a, -u1


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _stepped(x: float, y: float, z: float, dx: float, dy: float, dz: float) -> Any:
    """Return the unit vector along a sum of two vectors."""
    u0, u1, u2 = x + dx, y + dy, z + dz
    over = 1.0 / math.sqrt(u0 * u0 + u1 * u1 + u2 * u2)
    return u0 * over, u1 * over, u2 * over


@njit(nogil=True, cache=True, error_model="numpy")
def _turn_towards(m: Any, n: int, x: float, y: float, z: float) -> None:
    """Give the measured vectors, which have no sign, the sign that fits r = (x, y, z)."""
    for i in range(n):
        if m[i, 0] * x + m[i, 1] * y + m[i, 2] * z < 0.0:
            for k in range(3):
                m[i, k] = -m[i, k]


@njit(nogil=True, cache=True, error_model="numpy")
def _misfit_of_direction(m: Any, frames: Any, n: int, u0: float, u1: float, u2: float) -> Any:
    """Return minus the share of the energy of measured vectors `m` that the unit vector u explains at its best length.

    The share is S^2 / P, S = sum (m.u) v, P = sum v^4, v the sine of the angle to each beam; the best length is S / P.

    Returns
    -------
    tuple of float
        Minus the share, the best length, gradient (e, f) and Hessian (ee, ef, ff) of minus the share along two
        directions e, f across u, which `_across` gives.
    """
    e0, e1, e2, f0, f1, f2 = _across(u0, u1, u2)
    s = s_e = s_f = s_ee = s_ef = s_ff = 0.0
    p = p_e = p_f = p_ee = p_ef = p_ff = 0.0
    nearest = 1.0
    for i in range(n):
        k0, k1, k2 = frames[i, 2, 0], frames[i, 2, 1], frames[i, 2, 2]
        m0, m1, m2 = m[i, 0], m[i, 1], m[i, 2]
        k_u = k0 * u0 + k1 * u1 + k2 * u2
        k_e = k0 * e0 + k1 * e1 + k2 * e2
        k_f = k0 * f0 + k1 * f1 + k2 * f2
        c = m0 * u0 + m1 * u1 + m2 * u2
        m_e = m0 * e0 + m1 * e1 + m2 * e2
        m_f = m0 * f0 + m1 * f1 + m2 * f2
        v2 = k_e * k_e + k_f * k_f + TINY
        v = math.sqrt(v2)
        nearest = min(nearest, v)
        over = 1.0 / v
        w_e, w_f = -k_u * k_e, -k_u * k_f
        q_ee, q_ef, q_ff = 1.0 - k_e * k_e, -k_e * k_f, 1.0 - k_f * k_f
        t = c * over
        r = t / v2
        s += c * v
        s_e += m_e * v + t * w_e
        s_f += m_f * v + t * w_f
        s_ee += 2.0 * m_e * w_e * over + t * q_ee - r * w_e * w_e
        s_ef += (m_e * w_f + m_f * w_e) * over + t * q_ef - r * w_e * w_f
        s_ff += 2.0 * m_f * w_f * over + t * q_ff - r * w_f * w_f
        p += v2 * v2
        p_e += v2 * w_e
        p_f += v2 * w_f
        p_ee += v2 * q_ee + 2.0 * w_e * w_e
        p_ef += v2 * q_ef + 2.0 * w_e * w_f
        p_ff += v2 * q_ff + 2.0 * w_f * w_f
    over = 1.0 / p
    length = s * over
    d_e = s_e - 4.0 * length * p_e
    d_f = s_f - 4.0 * length * p_f
    rising = 4.0 * length * length
    over *= 2.0
    return (
        -s * length,
        length,
        -2.0 * length * (s_e - 2.0 * length * p_e),
        -2.0 * length * (s_f - 2.0 * length * p_f),
        rising * p_ee - 2.0 * length * s_ee - over * d_e * d_e,
        rising * p_ef - 2.0 * length * s_ef - over * d_e * d_f,
        rising * p_ff - 2.0 * length * s_ff - over * d_f * d_f,
        nearest,
    )


@njit(nogil=True, cache=True, error_model="numpy")
def _descend(m: Any, frames: Any, n: int, found: Any, reached: Any, start: int, tolerance: float) -> None:
    """Minimise from the unit vector `found[start]` by Newton steps, and write minus the share to `reached[start]`.

    The descent ends early if it reaches one of the minima before `start` and no lower value.
    """
    x, y, z = found[start, 0], found[start, 1], found[start, 2]
    _turn_towards(m, n, x, y, z)
    cost, _, g_e, g_f, h_ee, h_ef, h_ff, nearest = _misfit_of_direction(m, frames, n, x, y, z)
    for _ in range(MAX_STEPS):
        e0, e1, e2, f0, f1, f2 = _across(x, y, z)
        middle = 0.5 * (h_ee + h_ff)
        apart = 0.5 * (h_ee - h_ff)
        radius = math.sqrt(apart * apart + h_ef * h_ef)
        lowest = middle - radius
        # With negative curvature, take the step for the same curvature with positive sign.
        lift = -2.0 * lowest if lowest < 0.0 else 0.0
        flat = 1e-9 * (abs(middle) + radius) + TINY
        if lowest + lift < flat:
            lift = flat - lowest
        a, c = h_ee + lift, h_ff + lift
        over = 1.0 / (a * c - h_ef * h_ef)
        d_e = (h_ef * g_f - c * g_e) * over
        d_f = (h_ef * g_e - a * g_f) * over
        slope = d_e * g_e + d_f * g_f
        if lift == 0.0 and slope > -2.0 * tolerance:
            x, y, z = _stepped(x, y, z, d_e * e0 + d_f * f0, d_e * e1 + d_f * f1, d_e * e2 + d_f * f2)
            cost += 0.5 * slope
            break
        if lift == 0.0 and slope > -NEAR_SLOPE:
            known = False
            for other in range(start):
                dot = x * found[other, 0] + y * found[other, 1] + z * found[other, 2]
                if dot * dot > NEAR_COS2 and cost + slope > reached[other] - tolerance:
                    known = True
            if known:
                break
        length2 = d_e * d_e + d_f * d_f
        longest = LONGEST_STEP * nearest
        part = longest / math.sqrt(length2) if length2 > longest * longest else 1.0
        s0, s1, s2 = d_e * e0 + d_f * f0, d_e * e1 + d_f * f1, d_e * e2 + d_f * f2
        gain = -1.0
        for _try in range(12):
            u0, u1, u2 = _stepped(x, y, z, part * s0, part * s1, part * s2)
            there = _misfit_of_direction(m, frames, n, u0, u1, u2)
            if there[0] <= cost:
                gain = cost - there[0]
                x, y, z = u0, u1, u2
                cost, _, g_e, g_f, h_ee, h_ef, h_ff, nearest = there
                break
            # The minimum of the parabola through both misfits and the slope, within bounds.
            best = -0.5 * part * slope / (there[0] - cost - part * slope)
            part *= min(max(best, 0.1), 0.5)
        if gain < 0.01 * tolerance:
            break
    found[start, 0], found[start, 1], found[start, 2] = x, y, z
    reached[start] = cost


@njit(nogil=True, cache=True, error_model="numpy")
def _curvature(m: Any, frames: Any, n: int, x: float, y: float, z: float, h: Any) -> None:
    """Write half the Hessian of the squared misfit of r = (x, y, z) to `h`: xx, xy, xz, yy, yz, zz."""
    rho2 = x * x + y * y + z * z + TINY
    inverse2 = 1.0 / rho2
    inverse = math.sqrt(inverse2)
    h0 = h1 = h2 = h3 = h4 = h5 = 0.0
    s0 = s1 = s2 = 0.0  # H holds s r' + r s'
    identity = 0.0
    radial = 0.0
    for i in range(n):
        k0, k1, k2 = frames[i, 2, 0], frames[i, 2, 1], frames[i, 2, 2]
        m0, m1, m2 = m[i, 0], m[i, 1], m[i, 2]
        along = k0 * x + k1 * y + k2 * z
        w0, w1, w2 = x - along * k0, y - along * k1, z - along * k2  # the part of r across the beam, of length v
        v2 = w0 * w0 + w1 * w1 + w2 * w2 + TINY
        v = math.sqrt(v2)
        c = m0 * x + m1 * y + m2 * z
        u = v2 * inverse2
        g = v * inverse
        # Half the cost is the sum of u v^2 / 2 - c g; q = dg/dr = alpha r - beta along k.
        beta = inverse / v
        alpha = beta - g * inverse2
        across = 2.0 * u - c * beta
        ww = 4.0 * inverse2 + c * beta / v2
        wr = inverse2 * (c * beta - 4.0 * u)
        identity += across - u * u + c * g * inverse2
        radial += ww + 2.0 * wr + (4.0 * u * u - 3.0 * c * g * inverse2) * inverse2
        s0 -= alpha * m0
        s1 -= alpha * m1
        s2 -= alpha * m2
        # ... and k p' + p k'
        pk = 0.5 * (ww * along * along - across)
        pr = -along * (ww + wr)
        pm = along * beta
        p0 = pk * k0 + pr * x + pm * m0
        p1 = pk * k1 + pr * y + pm * m1
        p2 = pk * k2 + pr * z + pm * m2
        h0 += 2.0 * k0 * p0
        h1 += k0 * p1 + k1 * p0
        h2 += k0 * p2 + k2 * p0
        h3 += 2.0 * k1 * p1
        h4 += k1 * p2 + k2 * p1
        h5 += 2.0 * k2 * p2
    half = 0.5 * radial
    s0 += half * x
    s1 += half * y
    s2 += half * z
    h[0] = h0 + identity + 2.0 * s0 * x
    h[1] = h1 + s0 * y + s1 * x
    h[2] = h2 + s0 * z + s2 * x
    h[3] = h3 + identity + 2.0 * s1 * y
    h[4] = h4 + s1 * z + s2 * y
    h[5] = h5 + identity + 2.0 * s2 * z


@njit(nogil=True, cache=True, error_model="numpy")
def _spread(h: Any, r: Any) -> tuple[float, float]:
    """Return the variances of r's direction (rad^2, summed over both angles) and length, for noise of unit variance."""
    c00 = h[3] * h[5] - h[4] * h[4]
    c01 = h[2] * h[4] - h[1] * h[5]
    c02 = h[1] * h[4] - h[2] * h[3]
    c11 = h[0] * h[5] - h[2] * h[2]
    c12 = h[1] * h[2] - h[0] * h[4]
    c22 = h[0] * h[3] - h[1] * h[1]
    determinant = h[0] * c00 + h[1] * c01 + h[2] * c02
    norm2 = r[0] ** 2 + r[1] ** 2 + r[2] ** 2
    trace = h[0] + h[3] + h[5]
    if not (determinant > 1e-18 * trace**3) or norm2 <= 0.0:
        return np.inf, np.inf
    along = (
        c00 * r[0] * r[0]
        + c11 * r[1] * r[1]
        + c22 * r[2] * r[2]
        + 2.0 * (c01 * r[0] * r[1] + c02 * r[0] * r[2] + c12 * r[1] * r[2])
    ) / (norm2 * determinant)
    across = (c00 + c11 + c22) / determinant - along
    if across < 0.0 or along < 0.0:
        return np.inf, np.inf
    return across / norm2, along


@njit(nogil=True, cache=True, error_model="numpy")
def _pair_starts(unit: Any, frames: Any, n: int, found: Any) -> int:
    """Write starts to `found` and return their number.

    They are directions that fit one beam's angle exactly, and the ratio of its birefringence to that of another beam,
    for all pairs of beams.

    On the plane that holds beam k and its measured vector, u = (cot k + m) and the ratio is a quadratic in cot; without
    a real root its vertex is the nearest fit. These starts find minima too narrow for the table (axes close to a beam).
    """
    count = 0
    for pair in range(n * n):
        i, j = pair // n, pair % n
        if i == j or count > MAX_PAIR_STARTS - 2:
            continue
        mi = math.sqrt(unit[i, 0] ** 2 + unit[i, 1] ** 2)
        mj = math.sqrt(unit[j, 0] ** 2 + unit[j, 1] ** 2)
        if not mi > 0.0:
            continue
        c, s = unit[i, 0] / mi, unit[i, 1] / mi
        m0 = c * frames[i, 0, 0] + s * frames[i, 1, 0]
        m1 = c * frames[i, 0, 1] + s * frames[i, 1, 1]
        m2 = c * frames[i, 0, 2] + s * frames[i, 1, 2]
        a = frames[i, 2, 0] * frames[j, 2, 0] + frames[i, 2, 1] * frames[j, 2, 1] + frames[i, 2, 2] * frames[j, 2, 2]
        b = m0 * frames[j, 2, 0] + m1 * frames[j, 2, 1] + m2 * frames[j, 2, 2]
        rest = 1.0 - a * a
        if rest < 1e-9:
            continue
        half = a * b / rest
        root = half * half - (1.0 - b * b - mj / mi) / rest
        root = math.sqrt(root) if root > 0.0 else 0.0
        for sign in range(2 if root > 0.0 else 1):
            t = half + root if sign == 0 else half - root
            x, y, z = t * frames[i, 2, 0] + m0, t * frames[i, 2, 1] + m1, t * frames[i, 2, 2] + m2
            norm = math.sqrt(x * x + y * y + z * z)
            found[count, 0], found[count, 1], found[count, 2] = x / norm, y / norm, z / norm
            count += 1
    return count


@njit(nogil=True, cache=True, error_model="numpy")
def solve_pixels(
    measured: Any,
    frames: Any,
    directions: Any,
    projections: Any,
    strength: Any,
    neighbours: Any,
    tolerance: float,
    distinct_cos: float,
    merge_cos: float,
    solutions: Any,
    costs: Any,
    spread: Any,
) -> None:
    """Solve every pixel of `measured` (pixels, beams, 2); write its best and its second, distinct solution.

    The table holds for every trial direction its projections (beams, 2, directions), the sum of their squares
    (`strength`), and its neighbours; its local maxima are starts, besides `_pair_starts`. Written are `solutions`
    (pixels, 2, 3), `costs` (pixels, 2) and `spread` (pixels, 2, [direction, length]): the variances for noise of unit
    variance, in rad^2 and as a factor. What does not exist is NaN, with infinite cost and spread.
    """
    n = measured.shape[1]
    count = directions.shape[0]
    around = neighbours.shape[1]
    score = np.empty(count)
    space = np.empty((n, 3))
    unit = np.empty((n, 2))
    h = np.empty(6)
    r = np.empty(3)
    starts = np.empty(MAX_MAXIMA, np.int64)
    found = np.empty((MAX_STARTS, 3))
    found_cost = np.empty(MAX_STARTS)
    for pixel in range(measured.shape[0]):
        energy = 0.0
        for i in range(n):
            energy += measured[pixel, i, 0] ** 2 + measured[pixel, i, 1] ** 2
        scale = math.sqrt(energy)
        if not scale > 0.0:
            for slot in range(2):
                for k in range(3):
                    solutions[pixel, slot, k] = 0.0 if slot == 0 else np.nan
                costs[pixel, slot] = 0.0 if slot == 0 else np.inf
                spread[pixel, slot, 0] = np.inf
                spread[pixel, slot, 1] = np.inf
            continue
        for i in range(n):
            unit[i, 0] = measured[pixel, i, 0] / scale
            unit[i, 1] = measured[pixel, i, 1] / scale
            for k in range(3):
                space[i, k] = unit[i, 0] * frames[i, 0, k] + unit[i, 1] * frames[i, 1, k]
        for t in range(count):
            score[t] = 0.0
        for i in range(n):
            u0, u1 = unit[i, 0], unit[i, 1]
            for t in range(count):
                score[t] += abs(u0 * projections[i, 0, t] + u1 * projections[i, 1, t])
        for t in range(count):
            score[t] = score[t] * score[t] / strength[t]
        n_starts = 0
        for t in range(count):
            top = True
            for k in range(around):
                if score[neighbours[t, k]] > score[t]:
                    top = False
                    break
            if top:
                if n_starts < MAX_MAXIMA:
                    starts[n_starts] = t
                    n_starts += 1
                else:
                    worst = 0
                    for k in range(1, MAX_MAXIMA):
                        if score[starts[k]] < score[starts[worst]]:
                            worst = k
                    if score[t] > score[starts[worst]]:
                        starts[worst] = t
        n_pairs = _pair_starts(unit, frames, n, found)
        total = n_pairs
        for s in range(n_starts):
            t = starts[s]
            covered = False
            for q in range(n_pairs):
                dot = 0.0
                for k in range(3):
                    dot += directions[t, k] * found[q, k]
                if abs(dot) > merge_cos:
                    covered = True
                    break
            if not covered:
                for k in range(3):
                    found[total, k] = directions[t, k]
                total += 1
        n_starts = total
        first = -1
        for s in range(n_starts):
            _descend(space, frames, n, found, found_cost, s, tolerance)
            if first < 0 or found_cost[s] < found_cost[first]:
                first = s
        other = -1
        for s in range(n_starts):
            if s == first or (other >= 0 and found_cost[s] >= found_cost[other]):
                continue
            dot = found[s, 0] * found[first, 0] + found[s, 1] * found[first, 1] + found[s, 2] * found[first, 2]
            if abs(dot) < distinct_cos:
                other = s
        for slot in range(2):
            chosen = first if slot == 0 else other
            if chosen < 0:
                for k in range(3):
                    solutions[pixel, slot, k] = np.nan
                costs[pixel, slot] = np.inf
                spread[pixel, slot, 0] = np.inf
                spread[pixel, slot, 1] = np.inf
                continue
            u0, u1, u2 = found[chosen, 0], found[chosen, 1], found[chosen, 2]
            _turn_towards(space, n, u0, u1, u2)
            length = _misfit_of_direction(space, frames, n, u0, u1, u2)[1]
            for k in range(3):
                r[k] = found[chosen, k] * length
                solutions[pixel, slot, k] = r[k] * scale
            costs[pixel, slot] = max(1.0 + found_cost[chosen], 0.0) * energy
            _curvature(space, frames, n, r[0], r[1], r[2], h)
            across, along = _spread(h, r)
            spread[pixel, slot, 0] = across / energy
            spread[pixel, slot, 1] = along
