"""Compiled inner loops of `opticstream.compute.axis`: every start of one pixel, then the next pixel.

Plain loops over scalars, released from the interpreter lock so that the caller spreads blocks of pixels over threads;
each pixel's arithmetic is the same whatever the block or the number of threads, so results are reproducible bit by bit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

MAX_MAXIMA = 12
MAX_PAIR_STARTS = 48
MAX_STARTS = MAX_MAXIMA + MAX_PAIR_STARTS
MAX_STEPS = 60
MAX_BEAMS = 16
TINY = 1e-300


@njit(nogil=True, cache=True, error_model="numpy")
def _evaluate(m: Any, frames: Any, n: int, x: float, y: float, z: float, h: Any) -> float:
    """Return the squared misfit of r = (x, y, z) to the signed measurements `m` (n, 3).

    Written to `h`: half its Hessian (h[0:6]: xx xy xz yy yz zz) and half its downhill gradient (h[6:9]).
    """
    rho2 = x * x + y * y + z * z + TINY
    inverse2 = 1.0 / rho2
    inverse = math.sqrt(inverse2)
    cost = 0.0
    h0 = h1 = h2 = h3 = h4 = h5 = 0.0
    g0 = g1 = g2 = 0.0
    s0 = s1 = s2 = 0.0  # H holds s r' + r s'
    identity = 0.0
    radial = 0.0
    outward = 0.0
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
        cost += m0 * m0 + m1 * m1 + m2 * m2 - 2.0 * c * g + v2 * u
        # Half the cost is the sum of u v^2 / 2 - c g; q = dg/dr = alpha r - beta along k.
        beta = inverse / v
        alpha = beta - g * inverse2
        outward += 2.0 * u - u * u - c * alpha
        back = along * (2.0 * u - c * beta)
        g0 += m0 * g + back * k0
        g1 += m1 * g + back * k1
        g2 += m2 * g + back * k2
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
    h[6] = g0 - outward * x
    h[7] = g1 - outward * y
    h[8] = g2 - outward * z
    return cost


@njit(nogil=True, cache=True, error_model="numpy")
def _descend(m: Any, frames: Any, n: int, r: Any, here: Any, there: Any, tolerance: float) -> float:
    """Walk `r` (changed in place) downhill by damped Newton steps; return the cost reached, its curvature in `here`."""
    x, y, z = r[0], r[1], r[2]
    cost = _evaluate(m, frames, n, x, y, z, here)
    damping = 0.0
    for _ in range(MAX_STEPS):
        h0, h1, h2, h3, h4, h5 = here[0], here[1], here[2], here[3], here[4], here[5]
        size = abs(h0) + abs(h3) + abs(h5) + TINY
        limit = 1e-13 * size
        gain = -1.0
        for _try in range(16):
            shift = damping * size
            # Cholesky pivots tell whether the step leads to a minimum; where not, the damping grows.
            d0 = h0 + shift
            l10 = h1 / d0
            l20 = h2 / d0
            d1 = h3 + shift - l10 * h1
            t21 = h4 - l20 * h1
            l21 = t21 / d1
            d2 = h5 + shift - l20 * h2 - l21 * t21
            if d0 > limit and d1 > limit and d2 > limit:
                y1 = here[7] - l10 * here[6]
                y2 = here[8] - l20 * here[6] - l21 * y1
                dz = y2 / d2
                dy = y1 / d1 - l21 * dz
                dx = here[6] / d0 - l10 * dy - l20 * dz
                trial = _evaluate(m, frames, n, x + dx, y + dy, z + dz, there)
                if trial <= cost:
                    gain = cost - trial
                    x += dx
                    y += dy
                    z += dz
                    cost = trial
                    damping = damping * 0.1 if damping > 1e-6 else 0.0
                    for k in range(9):
                        here[k] = there[k]
                    break
            damping = damping * 6.0 if damping > 0.0 else 1e-4
        if gain < tolerance:
            break
    r[0], r[1], r[2] = x, y, z
    return cost


@njit(nogil=True, cache=True, error_model="numpy")
def _sign_towards(unit: Any, frames: Any, n: int, r: Any, signed: Any) -> float:
    """Write the measurements in space to `signed`, with the sign that fits `r`; return the best factor for `r`."""
    length = math.sqrt(r[0] ** 2 + r[1] ** 2 + r[2] ** 2) + TINY
    reach = 0.0
    power = TINY
    for i in range(n):
        a = 0.0
        b = 0.0
        for k in range(3):
            a += frames[i, 0, k] * r[k]
            b += frames[i, 1, k] * r[k]
        g = math.sqrt(a * a + b * b) / length
        overlap = (unit[i, 0] * a + unit[i, 1] * b) * g
        sign = 1.0 if overlap >= 0.0 else -1.0
        for k in range(3):
            signed[i, k] = sign * (unit[i, 0] * frames[i, 0, k] + unit[i, 1] * frames[i, 1, k])
        reach += abs(overlap)
        power += (a * a + b * b) * g * g
    return reach / power


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
    signed = np.empty((n, 3))
    unit = np.empty((n, 2))
    h = np.empty(9)
    spare = np.empty(9)
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
            for k in range(3):
                r[k] = found[s, k]
            reach = _sign_towards(unit, frames, n, r, signed)
            for k in range(3):
                r[k] *= reach
            found_cost[s] = _descend(signed, frames, n, r, h, spare, tolerance)
            for k in range(3):
                found[s, k] = r[k]
            if first < 0 or found_cost[s] < found_cost[first]:
                first = s
        length = math.sqrt(found[first, 0] ** 2 + found[first, 1] ** 2 + found[first, 2] ** 2)
        other = -1
        for s in range(n_starts):
            if s == first or (other >= 0 and found_cost[s] >= found_cost[other]):
                continue
            norm = math.sqrt(found[s, 0] ** 2 + found[s, 1] ** 2 + found[s, 2] ** 2)
            dot = found[s, 0] * found[first, 0] + found[s, 1] * found[first, 1] + found[s, 2] * found[first, 2]
            if abs(dot) < distinct_cos * norm * length:
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
            for k in range(3):
                r[k] = found[chosen, k]
                solutions[pixel, slot, k] = r[k] * scale
            costs[pixel, slot] = max(found_cost[chosen], 0.0) * energy
            _sign_towards(unit, frames, n, r, signed)
            _evaluate(signed, frames, n, r[0], r[1], r[2], h)
            across, along = _spread(h, r)
            spread[pixel, slot, 0] = across / energy
            spread[pixel, slot, 1] = along
