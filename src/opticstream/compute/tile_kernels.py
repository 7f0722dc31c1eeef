# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return, operator, arg-type"
"""Compiled kernels of the streaming reconstruction: one B-line of spectra in, depth profiles and their edges out.

A-lines are taken in strips of `LANES`. Depth profiles of a strip lie as (bin, re/im, lane), so that all that
comes after the transform is a walk down the depth axis with one A-line per lane.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from opticstream.compute.lane_fft import transform_lanes
from opticstream.compute.lane_math import (
    arctangent2,
    arctangent_of_ratio,
    decibel,
    log2,
    median_of,
)
from opticstream.compute.simd import (
    LANES,
    absolute,
    lanes_maximum,
    lanes_minimum,
    lanes_sum,
    load,
    splat,
    square_root,
    store,
    where_equal,
    where_less,
    where_less_equal,
)
from opticstream.compute.stokes import LEAST_AGREEMENT, START_LIMIT_PX, START_STEP_PX, START_STIFFNESS

_F = np.float32
EPS = _F(np.finfo(np.float32).eps)
_DEGREES = _F(180 / np.pi)
_LN2 = _F(np.log(2))
_INF = _F(np.inf)
_TINY = _F(1e-30)


@njit(nogil=True, cache=True)
def spectra_to_strips(counts, reverse, mean, reference, index, fraction, strips):
    """Subtract the background, put samples linear in wavenumber, and lay A-lines side by side.

    Parameters
    ----------
    counts : array, shape (A, S)
        One channel of one B-line.
    reverse : bool
        The channel is read out backwards.
    mean : bool
        Subtract the mean over the A-lines.
    reference : array, shape (S,)
        Subtracted otherwise; zeros for none.
    index, fraction : arrays, shape (S,)
        Where to sample: between `index` and the next pixel. Empty: as recorded.
    strips : array, shape (n_strips, S * LANES), output
        Lanes beyond A are +inf, which a median ignores.
    """
    n_lines, samples = counts.shape
    background = reference.copy()
    if mean:
        total = np.zeros(samples, np.float64)
        part = np.zeros(samples, np.float32)
        for first in range(0, n_lines, 16):  # float32 holds the sum of 16 counts of 16 bits exactly
            part[:] = _F(0)
            for a in range(first, min(first + 16, n_lines)):
                for p in range(samples):
                    part[p] += _F(counts[a, p])
            for p in range(samples):
                total[p] += part[p]
        for p in range(samples):
            background[p] = _F(total[p] / n_lines)
    if reverse:
        background = background[::-1].copy()
    linear = index.size > 0
    recorded = np.empty(samples * LANES, np.float32)
    for strip in range(strips.shape[0]):
        lanes = min(LANES, n_lines - strip * LANES)
        for begin in range(0, samples, 64):  # a piece that stays in the innermost cache while it is turned
            end = min(samples, begin + 64)
            for lane in range(lanes):
                line = counts[strip * LANES + lane]
                if reverse:
                    for p in range(begin, end):
                        recorded[p * LANES + lane] = _F(line[samples - 1 - p])
                else:
                    for p in range(begin, end):
                        recorded[p * LANES + lane] = _F(line[p])
        out = strips[strip]
        if linear:
            for p in range(samples):
                i = index[p]
                left = load(recorded, i * LANES) - splat(background[i])
                right = load(recorded, (i + 1) * LANES) - splat(background[i + 1])
                store(out, p * LANES, left + splat(fraction[p]) * (right - left))
        else:
            for p in range(samples):
                store(out, p * LANES, load(recorded, p * LANES) - splat(background[p]))
        for lane in range(lanes, LANES):
            for p in range(samples):
                out[p * LANES + lane] = _INF


@njit(nogil=True, cache=True)
def residual_of_strips(strips, n_lines, residual):
    """Put the median over the A-lines of every sample into `residual`, shape (S,)."""
    n_strips = strips.shape[0]
    values = np.empty(n_strips * LANES, np.float32)
    scale = _F(1)
    for p in range(residual.size):
        zero = splat(_F(0))
        sums = zero
        for strip in range(n_strips):
            x = load(strips[strip], p * LANES)
            store(values, strip * LANES, x)
            sums = sums + where_less(x, splat(_INF), x, zero)
        mean = lanes_sum(sums) / _F(n_lines)
        if p % 8 == 0:  # the spread changes slowly along the spectrum, and it only says where to begin
            square = _F(0)
            for i in range(n_lines):
                square += (values[i] - mean) * (values[i] - mean)
            scale = _F(math.sqrt(square / _F(n_lines)))
        residual[p] = median_of(values, n_lines, mean, scale)


@njit(nogil=True, cache=True)
def profiles_of_strip(strip, residual, phasor_re, phasor_im, work, other, radices, twiddles, out):
    """Transform one strip: residual background, window and dispersion, Fourier transform, conjugate.

    `strip` has shape (S * LANES,), `residual` (S,) or (0,), the phasor (S,) or (0,), `work` and `other`
    (N * 2 * LANES,) with N the transform length, `out` (N / 2 * 2 * LANES,).
    """
    samples = strip.size // LANES
    zero, infinity = splat(_F(0)), splat(_INF)
    turned = phasor_re.size > 0
    for p in range(samples):
        x = load(strip, p * LANES)
        x = where_less(x, infinity, x, zero)
        if residual.size > 0:
            x = x - splat(residual[p])
        at = 2 * p * LANES
        if turned:
            store(work, at, x * splat(phasor_re[p]))
            store(work, at + LANES, x * splat(phasor_im[p]))
        else:
            store(work, at, x)
            store(work, at + LANES, zero)
    for i in range(2 * samples * LANES, work.size, LANES):
        store(work, i, zero)
    transform_lanes(work, other, out, radices, twiddles)


@njit(inline="always")
def _power(profile, at):
    re, im = load(profile, at), load(profile, at + LANES)
    return re * re + im * im


@njit(inline="always")
def _at(z, cut, depth, reverse):
    """Return where the profile of depth sample z begins."""
    return 2 * LANES * (cut + (depth - 1 - z if reverse else z))


@njit(nogil=True, cache=True)
def intensity_of_strip(first, second, cut, depth, reverse, out):
    """Put the intensity in dB of a strip into `out`, shape (depth, LANES)."""
    floor = splat(EPS)
    for z in range(depth):
        at = _at(z, cut, depth, reverse)
        power = _power(first, at)
        if second.size > 0:
            power = power + _power(second, at)
        store(out, z * LANES, decibel(where_less(power, floor, floor, power)))


@njit(nogil=True, cache=True)
def edges_of_strip(intensity, taps, threshold_db, first_samples, padded, surface, floor_db):
    """Find the strongest rise of every A-line of a strip.

    Parameters
    ----------
    intensity : array, shape (depth * LANES,)
        Intensity in dB.
    taps : array, shape (reach,)
        Antisymmetric edge filter: tap k weighs sample z + k against z - 1 - k.
    threshold_db : float
        Where the mean of the first samples reaches it, the surface is the first sample that does; +inf: never.
    first_samples : int
        How many samples are the first ones.
    padded : array, shape ((depth + 2 * reach) * LANES,)
        Scratch.
    surface, floor_db : arrays, shape (LANES,), output
        Depth index; mean intensity of the deepest twentieth.
    """
    depth = intensity.size // LANES
    reach = taps.size
    half = 5
    zero, one = splat(_F(0)), splat(_F(1))
    for k in range(reach):
        store(padded, k * LANES, load(intensity, 0))
        store(padded, (reach + depth + k) * LANES, load(intensity, (depth - 1) * LANES))
    positive, early, first = zero, zero, splat(_F(-1))
    level = splat(threshold_db)
    for z in range(depth):
        x = load(intensity, z * LANES)
        store(padded, (reach + z) * LANES, x)
        positive = positive + where_less(zero, x, one, zero)
        if z < first_samples:
            early = early + x
        first = where_less(first, zero, where_less_equal(level, x, splat(_F(z)), first), first)
    best, where = splat(-_INF), zero
    for z in range(half, depth - half + 1):
        centre = (reach + z) * LANES
        rise, more = zero, zero
        for k in range(0, reach - 1, 2):
            rise = rise + splat(taps[k]) * (load(padded, centre + k * LANES) - load(padded, centre - (1 + k) * LANES))
            more = more + splat(taps[k + 1]) * (
                load(padded, centre + (k + 1) * LANES) - load(padded, centre - (2 + k) * LANES)
            )
        if reach % 2:
            k = reach - 1
            rise = rise + splat(taps[k]) * (load(padded, centre + k * LANES) - load(padded, centre - (1 + k) * LANES))
        rise = rise + more
        where = where_less(best, rise, splat(_F(z)), where)
        best = where_less(best, rise, rise, best)
    where = where_less(positive, splat(_F(2 * half)), zero, where)
    early = early * splat(_F(1.0 / min(first_samples, depth)))
    where = where_less_equal(level, early, first, where)
    store(surface, 0, where)
    deep = max(1, depth // 20)
    total = zero
    for z in range(depth - deep, depth):
        total = total + load(intensity, z * LANES)
    store(floor_db, 0, total * splat(_F(1.0 / deep)))


@njit(inline="always")
def _retardance(power_1, power_2):
    eps = splat(EPS)
    co = square_root(power_2)
    return splat(_DEGREES) * arctangent_of_ratio(square_root(power_1), where_less(co, eps, eps, co))


@njit(inline="always")
def _wrapped(angle):
    """Wrap -270 < angle <= 270 to (-90, 90]."""
    turn, right = splat(_F(180)), splat(_F(90))
    angle = where_less(right, angle, angle - turn, angle)
    return where_less_equal(angle, splat(_F(-90)), angle + turn, angle)


@njit(inline="always")
def _keep(out, at, value, lanes, spare):
    """Store the first `lanes` lanes at `at`."""
    if lanes == LANES:
        store(out, at, value)
    else:
        store(spare, 0, value)
        for lane in range(lanes):
            out[at + lane] = spare[lane]


@njit(nogil=True, cache=True)
def volumes_of_strip(first, second, intensity, cut, reverse, sign, offset_deg, at, step, lanes, dbi, r3d, o3d):
    """Put a strip into volumes whose depth planes are `step` elements apart, beginning at element `at`.

    `offset_deg` lies within -90..90; volumes of size 0 are not wanted.
    """
    depth = intensity.size // LANES
    spare = np.empty(LANES, np.float32)
    half = splat(_F(sign) * _F(0.5) * _DEGREES)
    offset = splat(offset_deg)
    for z in range(depth):
        place = at + z * step
        if dbi.size > 0:
            _keep(dbi, place, load(intensity, z * LANES), lanes, spare)
        if r3d.size > 0 or o3d.size > 0:
            i = _at(z, cut, depth, reverse)
            re1, im1, re2, im2 = load(first, i), load(first, i + LANES), load(second, i), load(second, i + LANES)
            if r3d.size > 0:
                _keep(r3d, place, _retardance(re1 * re1 + im1 * im1, re2 * re2 + im2 * im2), lanes, spare)
            if o3d.size > 0:
                angle = arctangent2(im1 * re2 - re1 * im2, re1 * re2 + im1 * im2)
                _keep(o3d, place, _wrapped(half * angle + offset), lanes, spare)


@njit(nogil=True, cache=True)
def maps_of_strip(
    first, second, cut, depth, reverse, start, stop, sign, offset_deg, slope_scale, at, aip, mip, ret, ori, biref
):
    """Put the maps of a strip at element `at`: mean and maximum intensity, retardance, axial mean, slope.

    Windows run from `start` to `stop` (shape (LANES,), both ends included). `second` is empty for one channel.
    """
    low, high = load(start, 0), load(stop, 0)
    z_first, z_last = int(lanes_minimum(low)), int(lanes_maximum(high))
    zero, one, eps = splat(_F(0)), splat(_F(1)), splat(EPS)
    middle = (low + high) * splat(_F(0.5))
    n, sum_db, top = zero, zero, zero
    sum_r, sum_c, sum_s = zero, zero, zero
    alive, m, sz, szz, sy, szy = one, zero, zero, zero, zero, zero
    for z in range(z_first, z_last + 1):
        zv = splat(_F(z))
        inside = where_less_equal(low, zv, where_less_equal(zv, high, one, zero), zero)
        i = _at(z, cut, depth, reverse)
        re1, im1 = load(first, i), load(first, i + LANES)
        p1 = re1 * re1 + im1 * im1
        power = p1
        if second.size > 0:
            re2, im2 = load(second, i), load(second, i + LANES)
            p2 = re2 * re2 + im2 * im2
            power = p1 + p2
            r = _retardance(p1, p2)
            sum_r = sum_r + inside * r
            c, s = re1 * re2 + im1 * im2, im1 * re2 - re1 * im2
            length = square_root(c * c + s * s)
            none = where_less(zero, length, zero, one)
            scale = inside / (length + none)
            sum_c = sum_c + (c + none) * scale
            sum_s = sum_s + s * scale
            alive = where_equal(r * inside + (one - inside), zero, zero, alive)
            w = inside * alive
            zc = w * (zv - middle)
            m = m + w
            sz = sz + zc
            szz = szz + zc * (zv - middle)
            sy = sy + w * r
            szy = szy + zc * r
        power = where_less(power, eps, eps, power)
        n = n + inside
        sum_db = sum_db + inside * decibel(power)
        seen = power * inside
        top = where_less(top, seen, seen, top)
    store(aip, at, sum_db / n)
    store(mip, at, decibel(where_less(top, eps, eps, top)))
    if second.size > 0:
        store(ret, at, sum_r / n)
        angle = arctangent2(sum_s, sum_c)
        store(ori, at, _wrapped(splat(_F(sign) * _F(0.5) * _DEGREES) * angle + splat(offset_deg)))
        safe = where_less(m, one, one, m)
        spread = szz - sz * sz / safe
        slope = (szy - sz * sy / safe) / where_less(zero, spread, spread, one)
        store(biref, at, where_less(m, splat(_F(3)), zero, slope * splat(slope_scale)))


@njit(nogil=True, cache=True)
def axis_modes_of_strip(first, second, cut, depth, reverse, start, stop, sign, offset_deg, at, lanes, out):
    """Put the centre of the fullest 1-degree bin of orientation over the window at element `at`."""
    bins = np.empty(180, np.int32)
    for lane in range(lanes):
        bins[:] = 0
        for z in range(int(start[lane]), int(stop[lane]) + 1):
            i = _at(z, cut, depth, reverse) + lane
            re1, im1, re2, im2 = first[i], first[i + LANES], second[i], second[i + LANES]
            angle = _F(math.atan2(im1 * re2 - re1 * im2, re1 * re2 + im1 * im2))
            value = _F(sign) * _F(0.5) * _DEGREES * angle + offset_deg
            value -= _F(180) * _F(math.ceil((value - _F(90)) / _F(180)))
            bins[min(179, max(0, math.floor(value + _F(90))))] += 1
        out[at + lane] = _F(np.argmax(bins)) - _F(89.5)


@njit(nogil=True, cache=True)
def attenuation_of_strip(first, second, cut, depth, reverse, start, stop, step_mm, at, out):
    """Put the mean attenuation coefficient (1/mm) over the window at element `at`."""
    low, high = load(start, 0), load(stop, 0)
    zero, one = splat(_F(0)), splat(_F(1))
    deep = max(1, depth // 20)
    floor = zero
    for z in range(depth - deep, depth):
        i = _at(z, cut, depth, reverse)
        floor = floor + _power(first, i)
        if second.size > 0:
            floor = floor + _power(second, i)
    floor = floor * splat(_F(1.0 / deep))
    below, total, n = zero, zero, zero
    for back in range(depth):
        z = depth - 1 - back
        i = _at(z, cut, depth, reverse)
        power = _power(first, i)
        if second.size > 0:
            power = power + _power(second, i)
        signal = where_less(power, floor, zero, power - floor)
        safe = where_less(zero, below, below, one)
        mu = where_less(zero, below, log2(one + signal / safe), zero)
        zv = splat(_F(z))
        inside = where_less_equal(low, zv, where_less_equal(zv, high, one, zero), zero)
        total = total + inside * mu
        n = n + inside
        below = below + signal
    store(out, at, total / n * splat(_LN2 / (_F(2) * _F(step_mm))))


@njit(nogil=True, cache=True)
def cells_of_strip(intensity, lanes, size, out):
    """Add up the intensity over cells of `size` A-lines, shape (cells, depth); `lanes` of the strip hold A-lines."""
    depth = intensity.size // LANES
    for z in range(depth):
        for cell in range(out.shape[0]):
            total = _F(0)
            for lane in range(cell * size, min(lanes, (cell + 1) * size)):
                total += intensity[z * LANES + lane]
            out[cell, z] = total


@njit(nogil=True, cache=True)
def edges_near(first, second, cut, depth, reverse, taps, centre, reach_px, padded, surface):
    """Find the strongest rise of every A-line of a strip within `reach_px` of `centre` (whole numbers, (LANES,))."""
    reach, half = taps.size, 5
    middle = load(centre, 0)
    z_first = max(half, int(lanes_minimum(middle)) - reach_px)
    z_last = min(depth - half, int(lanes_maximum(middle)) + reach_px)
    floor = splat(EPS)
    for z in range(z_first - reach, z_last + reach):
        at = _at(min(max(z, 0), depth - 1), cut, depth, reverse)
        power = _power(first, at)
        if second.size > 0:
            power = power + _power(second, at)
        store(padded, (z - z_first + reach) * LANES, decibel(where_less(power, floor, floor, power)))
    best, where, near = splat(-_INF), middle, splat(_F(reach_px))
    for z in range(z_first, z_last + 1):
        at = (z - z_first + reach) * LANES
        rise = splat(_F(0))
        for k in range(reach):
            rise = rise + splat(taps[k]) * (load(padded, at + k * LANES) - load(padded, at - (1 + k) * LANES))
        zv = splat(_F(z))
        rise = where_less_equal(absolute(zv - middle), near, rise, splat(-_INF))
        where = where_less(best, rise, zv, where)
        best = where_less(best, rise, rise, best)
    store(surface, 0, where)


@njit(nogil=True, cache=True)
def circles_of_strip(
    first,
    second,
    cut,
    depth,
    reverse,
    start,
    stop,
    cosine,
    sine,
    sign,
    offset_deg,
    step,
    scale,
    states,
    sums,
    at,
    ori,
    biref,
):
    """Fit axis and birefringence of a strip (see `opticstream.compute.stokes`) and put them at element `at`.

    `states` is scratch of shape (n, 3 * LANES) with n the length of the window, `sums` of shape (rates, 6 * LANES);
    `step` is the distance of the rates (rad per sample), which `scale` turns into birefringence. `ori` and `biref` of
    size 0 are not wanted.
    """
    n_rates, n = cosine.shape
    for lane in range(LANES):
        z_first, z_last = int(start[lane]), int(stop[lane])
        for k in range(n):
            z = z_first + k
            if z > z_last:
                states[k, lane] = states[k, LANES + lane] = states[k, 2 * LANES + lane] = _F(0)
                continue
            i = _at(z, cut, depth, reverse) + lane
            re1, im1, re2, im2 = first[i], first[i + LANES], second[i], second[i + LANES]
            states[k, lane] = _F(2) * (re1 * re2 + im1 * im2)
            states[k, LANES + lane] = _F(2) * (im1 * re2 - re1 * im2)
            states[k, 2 * LANES + lane] = re2 * re2 + im2 * im2 - re1 * re1 - im1 * im1
    zero = splat(_F(0))
    length = zero
    for k in range(n):
        row = states[k]
        s1, s2, s3 = load(row, 0), load(row, LANES), load(row, 2 * LANES)
        length = length + square_root(s1 * s1 + s2 * s2 + s3 * s3)
    best, where = splat(-_INF), zero
    for w in range(n_rates):
        s3_cos, s3_sin, s1_cos, s1_sin, s2_cos, s2_sin = zero, zero, zero, zero, zero, zero
        for k in range(n):
            c, s = splat(cosine[w, k]), splat(sine[w, k])
            row = states[k]
            s1, s2, s3 = load(row, 0), load(row, LANES), load(row, 2 * LANES)
            s3_cos, s3_sin = s3_cos + c * s3, s3_sin + s * s3
            s1_cos, s1_sin = s1_cos + c * s1, s1_sin + s * s1
            s2_cos, s2_sin = s2_cos + c * s2, s2_sin + s * s2
        row = sums[w]
        store(row, 0, s3_cos)
        store(row, LANES, s3_sin)
        store(row, 2 * LANES, s1_cos)
        store(row, 3 * LANES, s1_sin)
        store(row, 4 * LANES, s2_cos)
        store(row, 5 * LANES, s2_sin)
        value = s3_cos + square_root(s1_sin * s1_sin + s2_sin * s2_sin)
        where = where_less(best, value, splat(_F(w)), where)
        best = where_less(best, value, value, best)
    # The states are not needed any more; their memory takes what the lanes need one by one.
    found = states[0]
    store(found, 0, where)
    store(found, LANES, length)
    store(found, 2 * LANES, best)
    for lane in range(LANES):
        middle = min(max(int(found[lane]), 1), n_rates - 2)
        total = found[LANES + lane]
        agreement = max(found[2 * LANES + lane] / max(total, _TINY), _F(LEAST_AGREEMENT))
        price = _F(START_STIFFNESS) * total / (agreement * agreement)
        shift, axis_1, axis_2 = _circle_near(sums, middle, lane, step, price)
        found[lane], found[LANES + lane] = axis_1, axis_2
        if biref.size > 0:
            biref[at + lane] = max(_F(0), _F(middle) + shift) * _F(scale)
    if ori.size > 0:
        angle = arctangent2(load(found, LANES), load(found, 0))
        store(ori, at, _wrapped(splat(_F(sign) * _F(0.5) * _DEGREES) * angle + splat(offset_deg)))


@njit(nogil=True)
def _circle_near(sums, middle, lane, step, price):
    """Return the best rate as a shift in steps and the azimuth as a vector; see `opticstream.compute.stokes`."""
    before = _best_circle(sums, middle, lane, step, _F(-START_STEP_PX))[0]
    here = _best_circle(sums, middle, lane, step, _F(0))[0]
    after = _best_circle(sums, middle, lane, step, _F(START_STEP_PX))[0]
    gain = (after - before) / _F(2 * START_STEP_PX)
    bend = (before - _F(2) * here + after) / _F(START_STEP_PX * START_STEP_PX)
    start = gain / max(price - bend, _TINY)
    start = min(max(start, _F(-START_LIMIT_PX)), _F(START_LIMIT_PX))
    _, shift, axis_1, axis_2 = _best_circle(sums, middle, lane, step, start)
    return shift, axis_1, axis_2


@njit(nogil=True)
def _best_circle(sums, middle, lane, step, start):
    """Return match, shift of the rate in steps, and azimuth of the best circle from one start."""
    left, here, right, axis_1, axis_2 = _F(0), _F(0), _F(0), _F(0), _F(0)
    for d in range(-1, 2):
        angle = _F(step) * _F(middle + d) * start
        c, s = _F(math.cos(angle)), _F(math.sin(angle))
        row = sums[middle + d]
        cross_1 = c * row[3 * LANES + lane] + s * row[2 * LANES + lane]
        cross_2 = c * row[5 * LANES + lane] + s * row[4 * LANES + lane]
        value = c * row[lane] - s * row[LANES + lane] + _F(math.sqrt(cross_1 * cross_1 + cross_2 * cross_2))
        if d < 0:
            left = value
        elif d > 0:
            right = value
        else:
            here, axis_1, axis_2 = value, cross_1, cross_2
    slope, bend = _F(0.5) * (right - left), left - _F(2) * here + right
    shift = min(max(-slope / bend, _F(-1)), _F(1)) if bend < 0 else _F(0)
    return here + shift * (slope + _F(0.5) * shift * bend), shift, axis_1, axis_2


@njit(nogil=True, cache=True)
def clean_retardance_of_strip(first, second, cut, depth, reverse, start, stop, block, least_signal, at, out):
    """Put the mean retardance without noise bias (see `opticstream.compute.stokes`) at element `at`."""
    deep = max(1, depth // 20)
    for lane in range(LANES):
        n1, n2 = 0.0, 0.0
        for z in range(depth - deep, depth):
            i = _at(z, cut, depth, reverse) + lane
            n1 += first[i] * first[i] + first[i + LANES] * first[i + LANES]
            n2 += second[i] * second[i] + second[i + LANES] * second[i + LANES]
        n1, n2 = n1 / deep, n2 / deep
        z, z_last = int(start[lane]), int(stop[lane])
        total, count, total_seen, seen = 0.0, 0, 0.0, 0
        while z <= z_last:
            end = min(z + block, z_last + 1)
            s1, s2, s3, extra, power = 0.0, 0.0, 0.0, 0.0, 0.0
            for j in range(z, end):
                i = _at(j, cut, depth, reverse) + lane
                re1, im1, re2, im2 = first[i], first[i + LANES], second[i], second[i + LANES]
                p1, p2 = re1 * re1 + im1 * im1, re2 * re2 + im2 * im2
                s1 += 2 * (re1 * re2 + im1 * im2)
                s2 += 2 * (im1 * re2 - re1 * im2)
                s3 += p2 - p1
                power += p1 + p2
                extra += max(4 * (p1 * n2 + p2 * n1 - n1 * n2), 0.0)
            across = math.sqrt(max(s1 * s1 + s2 * s2 - extra, 0.0))
            angle = (end - z) * math.atan2(across, s3 - (end - z) * (n2 - n1))
            total += angle
            count += end - z
            if power > (end - z) * (1 + least_signal) * (n1 + n2):
                total_seen += angle
                seen += end - z
            z = end
        mean = total_seen / seen if seen > 0 else total / count
        out[at + lane] = _F(mean * 90 / math.pi)
