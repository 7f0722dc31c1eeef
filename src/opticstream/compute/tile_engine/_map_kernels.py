# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return, operator, arg-type"
"""Compiled kernel from the depth profiles of one B-line to its en face maps, over a window below the surface.

Windows begin at another depth in every A-line. A window is first laid out from its own beginning on, lane by lane; all
that follows is formulas on vectors of A-lines.
"""

from __future__ import annotations

import math

import numpy as np

from opticstream.compute._axial_kernels import wrapped as wrapped_angle
from opticstream.compute.lanes import (
    LANES,
    absolute,
    arctangent2,
    cosine_and_sine,
    decibel,
    lanes_maximum,
    lanes_minimum,
    load,
    log2,
    splat,
    spread_out,
    square_root,
    store,
    where_equal,
    where_less,
    where_less_equal,
    wrapped,
)
from opticstream.compute.reconstruction import LEAST_AGREEMENT, START_LIMIT_PX, START_STEP_PX, START_STIFFNESS
from opticstream.compute.tile_engine._arguments import Strip
from opticstream.compute.tile_engine._profile_kernels import (
    DEGREES,
    EPS,
    intensity_of_sample,
    place_of,
    power_at,
    power_of_sample,
    retardance_of,
)
from opticstream.system.compiled import njit

_F = np.float32
_LN2 = _F(np.log(2))
_INF = _F(np.inf)
_TINY = _F(1e-30)
_RE1, _IM1, _RE2, _IM2, _ROW = 0, LANES, 2 * LANES, 3 * LANES, 4 * LANES  # places within a row of a window


@njit(inline="always")
def _lay_out(strip, depths, start, at, window):
    """Put the windows of a strip, from element `at` of `start` on, into `window`, shape (n * 4 * LANES,).

    A window that would leave the A-line repeats its last sample.
    """
    profiles, pitch = strip.profiles, strip.pitch
    n = window.size // _ROW
    for lane in range(LANES):
        first = int(start[at + lane])
        for k in range(n):
            i = strip.base + place_of(min(first + k, depths.depth - 1), depths) + lane
            o = k * _ROW + lane
            window[o] = profiles[i]
            window[o + LANES] = profiles[i + LANES]
            if strip.channels == 2:
                window[o + 2 * LANES] = profiles[i + pitch]
                window[o + 3 * LANES] = profiles[i + pitch + LANES]


@njit(inline="always")
def _intensity_maps(window, length, channels, at, aip, mip):
    zero, one, eps = splat(_F(0)), splat(_F(1)), splat(EPS)
    total, top = zero, zero
    for k in range(window.size // _ROW):
        inside = where_less(splat(_F(k)), length, one, zero)
        power = power_at(window, k * _ROW)
        if channels == 2:
            power = power + power_at(window, k * _ROW + _RE2)
        power = where_less(power, eps, eps, power)
        total = total + inside * decibel(power)
        seen = power * inside
        top = where_less(top, seen, seen, top)
    store(aip, at, total / length)
    store(mip, at, decibel(where_less(top, eps, eps, top)))


@njit(inline="always")
def _mean_maps(window, length, orientation, slope_scale, at, ret, ori, biref):
    """Put mean retardance, axial mean and slope; maps of size 0 are not wanted."""
    zero, one = splat(_F(0)), splat(_F(1))
    middle = length * splat(_F(0.5))
    sum_r, sum_c, sum_s = zero, zero, zero
    alive, m, sz, szz, sy, szy = one, zero, zero, zero, zero, zero
    for k in range(window.size // _ROW):
        kv = splat(_F(k))
        inside = where_less(kv, length, one, zero)
        i = k * _ROW
        re1, im1, re2, im2 = load(window, i), load(window, i + _IM1), load(window, i + _RE2), load(window, i + _IM2)
        r = retardance_of(re1 * re1 + im1 * im1, re2 * re2 + im2 * im2)
        sum_r = sum_r + inside * r
        c, s = re1 * re2 + im1 * im2, im1 * re2 - re1 * im2
        size = square_root(c * c + s * s)
        none = where_less(zero, size, zero, one)
        scale = inside / (size + none)
        sum_c = sum_c + (c + none) * scale
        sum_s = sum_s + s * scale
        alive = where_equal(r * inside + (one - inside), zero, zero, alive)
        w = inside * alive
        zc = w * (kv - middle)
        m = m + w
        sz = sz + zc
        szz = szz + zc * (kv - middle)
        sy = sy + w * r
        szy = szy + zc * r
    if ret.size > 0:
        store(ret, at, sum_r / length)
    if ori.size > 0:
        angle = arctangent2(sum_s, sum_c)
        store(ori, at, wrapped(splat(_F(orientation.sign) * _F(0.5) * DEGREES) * angle + splat(orientation.offset_deg)))
    if biref.size > 0:
        safe = where_less(m, one, one, m)
        spread = szz - sz * sz / safe
        slope = (szy - sz * sy / safe) / where_less(zero, spread, spread, one)
        store(biref, at, where_less(m, splat(_F(3)), zero, slope * splat(slope_scale)))


@njit(inline="always")
def _axis_modes(window, length, orientation, at, out):
    """Put the centre of the fullest 1-degree bin of orientation over the window."""
    bins = np.empty(180, np.int32)
    for lane in range(LANES):
        bins[:] = 0
        for k in range(int(length[lane])):
            i = k * _ROW + lane
            re1, im1, re2, im2 = window[i], window[i + _IM1], window[i + _RE2], window[i + _IM2]
            angle = _F(math.atan2(im1 * re2 - re1 * im2, re1 * re2 + im1 * im2))
            value = wrapped_angle(_F(orientation.sign) * _F(0.5) * DEGREES * angle + orientation.offset_deg)
            bins[min(179, max(0, math.floor(value + _F(90))))] += 1
        out[at + lane] = _F(np.argmax(bins)) - _F(89.5)


@njit(inline="always")
def _attenuation(strip, depths, start, length, step_mm, at, out):
    """Put the mean attenuation coefficient (1/mm) over the window."""
    zero, one = splat(_F(0)), splat(_F(1))
    depth = depths.depth
    stop = start + length
    deep = max(1, depth // 20)
    floor = zero
    for z in range(depth - deep, depth):
        i = strip.base + place_of(z, depths)
        floor = floor + power_at(strip.profiles, i)
        if strip.channels == 2:
            floor = floor + power_at(strip.profiles, i + strip.pitch)
    floor = floor * splat(_F(1.0 / deep))
    below, total = zero, zero
    for back in range(depth):
        z = depth - 1 - back
        power = power_of_sample(strip, z, depths)
        signal = where_less(power, floor, zero, power - floor)
        safe = where_less(zero, below, below, one)
        mu = where_less(zero, below, log2(one + signal / safe), zero)
        zv = splat(_F(z))
        inside = where_less_equal(start, zv, where_less(zv, stop, one, zero), zero)
        total = total + inside * mu
        below = below + signal
    store(out, at, total / length * splat(_LN2 / (_F(2) * _F(step_mm))))


@njit(inline="always")
def _edges_near(strip, depths, near_surface, padded, at, surface):
    """Put the depth of the strongest rise within `reach_px` of `centre`."""
    taps, reach_px, depth = near_surface.taps, near_surface.reach_px, depths.depth
    centre = load(near_surface.centre, at)
    reach, half = taps.size, 5
    z_first = max(half, int(lanes_minimum(centre)) - reach_px)
    z_last = min(depth - half, int(lanes_maximum(centre)) + reach_px)
    for z in range(z_first - reach, z_last + reach):
        intensity = intensity_of_sample(strip, min(max(z, 0), depth - 1), depths)
        store(padded, (z - z_first + reach) * LANES, intensity)
    best, where, near = splat(-_INF), centre, splat(_F(reach_px))
    for z in range(z_first, z_last + 1):
        i = (z - z_first + reach) * LANES
        rise = splat(_F(0))
        for k in range(reach):
            rise = rise + spread_out(taps, k) * (load(padded, i + k * LANES) - load(padded, i - (1 + k) * LANES))
        zv = splat(_F(z))
        rise = where_less_equal(absolute(zv - centre), near, rise, splat(-_INF))
        where = where_less(best, rise, zv, where)
        best = where_less(best, rise, rise, best)
    store(surface, at, where)


@njit(inline="always")
def _circles(window, length, circles, orientation, scratch, at, ori, biref):
    """Fit axis and birefringence as `axis_and_birefringence` does; maps of size 0 are not wanted."""
    n_rates, n = circles.cosine.shape
    cosines, sines = circles.cosine.reshape(-1), circles.sine.reshape(-1)
    states, sums = scratch.states, scratch.sums
    zero, one, two = splat(_F(0)), splat(_F(1)), splat(_F(2))
    total = zero
    for k in range(n):
        i, o = k * _ROW, 3 * k * LANES
        inside = where_less(splat(_F(k)), length, one, zero)
        re1, im1, re2, im2 = load(window, i), load(window, i + _IM1), load(window, i + _RE2), load(window, i + _IM2)
        s1, s2 = inside * two * (re1 * re2 + im1 * im2), inside * two * (im1 * re2 - re1 * im2)
        s3 = inside * (re2 * re2 + im2 * im2 - re1 * re1 - im1 * im1)
        store(states, o, s1)
        store(states, o + LANES, s2)
        store(states, o + 2 * LANES, s3)
        total = total + square_root(s1 * s1 + s2 * s2 + s3 * s3)
    best, where = splat(-_INF), zero
    for w in range(n_rates):
        s3_cos, s3_sin, s1_cos, s1_sin, s2_cos, s2_sin = zero, zero, zero, zero, zero, zero
        for k in range(n):
            c, s = spread_out(cosines, w * n + k), spread_out(sines, w * n + k)
            o = 3 * k * LANES
            s1, s2, s3 = load(states, o), load(states, o + LANES), load(states, o + 2 * LANES)
            s3_cos, s3_sin = s3_cos + c * s3, s3_sin + s * s3
            s1_cos, s1_sin = s1_cos + c * s1, s1_sin + s * s1
            s2_cos, s2_sin = s2_cos + c * s2, s2_sin + s * s2
        o = 6 * w * LANES
        store(sums, o, s3_cos)
        store(sums, o + LANES, s3_sin)
        store(sums, o + 2 * LANES, s1_cos)
        store(sums, o + 3 * LANES, s1_sin)
        store(sums, o + 4 * LANES, s2_cos)
        store(sums, o + 5 * LANES, s2_sin)
        value = s3_cos + square_root(s1_sin * s1_sin + s2_sin * s2_sin)
        where = where_less(best, value, splat(_F(w)), where)
        best = where_less(best, value, value, best)
    last = splat(_F(n_rates - 2))
    middle = where_less(where, one, one, where_less(last, where, last, where))
    near = 6 * n_rates * LANES  # behind the sums of all rates, those of three rates, other ones in every lane
    store(states, 0, middle)  # these are not needed any more
    for lane in range(LANES):
        o = 6 * (int(states[lane]) - 1) * LANES + lane
        for i in range(0, 18 * LANES, LANES):
            sums[near + i + lane] = sums[o + i]
    some = where_less(total, splat(_TINY), splat(_TINY), total)
    least = splat(_F(LEAST_AGREEMENT))
    agreement = best / some
    agreement = where_less(agreement, least, least, agreement)
    price = splat(_F(START_STIFFNESS)) * total / (agreement * agreement)
    shift, axis_1, axis_2 = _circle_near(sums, near, middle, circles.step, price)
    if biref.size > 0:
        rate = middle + shift
        store(biref, at, where_less(rate, zero, zero, rate) * splat(circles.scale))
    if ori.size > 0:
        angle = arctangent2(axis_2, axis_1)
        store(ori, at, wrapped(splat(_F(orientation.sign) * _F(0.5) * DEGREES) * angle + splat(orientation.offset_deg)))


@njit(inline="always")
def _circle_near(sums, near, middle, step, price):
    """Return the best rate as a shift in steps and the azimuth as two components, as `axis_and_birefringence` does."""
    apart = splat(_F(START_STEP_PX))
    before = _best_circle(sums, near, middle, step, splat(_F(0)) - apart)[0]
    here = _best_circle(sums, near, middle, step, splat(_F(0)))[0]
    after = _best_circle(sums, near, middle, step, apart)[0]
    gain = (after - before) * splat(_F(0.5 / START_STEP_PX))
    bend = (before - splat(_F(2)) * here + after) * splat(_F(1 / START_STEP_PX**2))
    stiffness = price - bend
    start = gain / where_less(stiffness, splat(_TINY), splat(_TINY), stiffness)
    low, high = splat(_F(-START_LIMIT_PX)), splat(_F(START_LIMIT_PX))
    start = where_less(start, low, low, where_less(high, start, high, start))
    _, shift, axis_1, axis_2 = _best_circle(sums, near, middle, step, start)
    return shift, axis_1, axis_2


@njit(inline="always")
def _match(sums, at, angle):
    """Return match and azimuth, as two components, of a circle that starts `angle` before the surface."""
    c, s = cosine_and_sine(angle)
    axis_1 = c * load(sums, at + 3 * LANES) + s * load(sums, at + 2 * LANES)
    axis_2 = c * load(sums, at + 5 * LANES) + s * load(sums, at + 4 * LANES)
    along = c * load(sums, at) - s * load(sums, at + LANES)
    return along + square_root(axis_1 * axis_1 + axis_2 * axis_2), axis_1, axis_2


@njit(inline="always")
def _best_circle(sums, near, middle, step, start):
    """Return match, shift of the rate in steps, and azimuth of the best circle from one start."""
    zero, one, half = splat(_F(0)), splat(_F(1)), splat(_F(0.5))
    turn = splat(_F(step)) * start
    left = _match(sums, near, (middle - one) * turn)[0]
    here, axis_1, axis_2 = _match(sums, near + 6 * LANES, middle * turn)
    right = _match(sums, near + 12 * LANES, (middle + one) * turn)[0]
    slope, bend = half * (right - left), left - splat(_F(2)) * here + right
    shift = (zero - slope) / where_less(bend, zero, bend, splat(_F(-1)))
    shift = where_less(shift, zero - one, zero - one, where_less(one, shift, one, shift))
    shift = where_less(bend, zero, shift, zero)
    return here + shift * (slope + half * shift * bend), shift, axis_1, axis_2


@njit(inline="always")
def _clean_retardance(window, length, strip, depths, block, least_signal, at, out):
    """Put the mean retardance without noise bias, see `retardance_without_noise`."""
    zero, one, two, four = splat(_F(0)), splat(_F(1)), splat(_F(2)), splat(_F(4))
    depth = depths.depth
    deep = max(1, depth // 20)
    n1, n2 = zero, zero
    for z in range(depth - deep, depth):
        i = strip.base + place_of(z, depths)
        n1 = n1 + power_at(strip.profiles, i)
        n2 = n2 + power_at(strip.profiles, i + strip.pitch)
    n1, n2 = n1 / splat(_F(deep)), n2 / splat(_F(deep))
    floor = (n1 + n2) * splat(_F(1) + _F(least_signal))
    total, total_seen, seen = zero, zero, zero
    n = window.size // _ROW
    for begin in range(0, n, block):
        s1, s2, s3, extra, power, count = zero, zero, zero, zero, zero, zero
        for k in range(begin, min(begin + block, n)):
            i = k * _ROW
            inside = where_less(splat(_F(k)), length, one, zero)
            re1, im1, re2, im2 = load(window, i), load(window, i + _IM1), load(window, i + _RE2), load(window, i + _IM2)
            p1, p2 = re1 * re1 + im1 * im1, re2 * re2 + im2 * im2
            s1 = s1 + inside * two * (re1 * re2 + im1 * im2)
            s2 = s2 + inside * two * (im1 * re2 - re1 * im2)
            s3 = s3 + inside * (p2 - p1)
            power = power + inside * (p1 + p2)
            bias = four * (p1 * n2 + p2 * n1 - n1 * n2)
            extra = extra + inside * where_less(bias, zero, zero, bias)
            count = count + inside
        across = s1 * s1 + s2 * s2 - extra
        across = square_root(where_less(across, zero, zero, across))
        angle = count * arctangent2(across, s3 - count * (n2 - n1))
        total = total + angle
        strong = count * floor
        total_seen = total_seen + where_less(strong, power, angle, zero)
        seen = seen + where_less(strong, power, count, zero)
    some = where_less(zero, seen, seen, one)
    mean = where_less(zero, seen, total_seen / some, total / length)
    store(out, at, mean * splat(_F(90 / math.pi)))


@njit(nogil=True, cache=True)
def maps_of_line(profiles, depths, windows, near_surface, circles, orientation, constants, scratch, maps):
    """Put the maps of one B-line.

    Parameters
    ----------
    profiles : array, shape (n_strips, channels, bins * 2 * LANES)
        Complex profiles.
    depths, windows : Depths, Windows
        Which bins are depth samples, and which of these the maps are made of.
    near_surface, circles, orientation, constants : RiseNear, Circles, Orientation, MapConstants
        For single maps.
    scratch : MapScratch
        Memory.
    maps : LineMaps, output
        What is wanted.
    """
    n_strips, channels, pitch = profiles.shape
    flat = profiles.reshape(-1)
    window = scratch.window
    lengths = np.empty(LANES, np.float32)
    for number in range(n_strips):
        strip, at = Strip(flat, number * channels * pitch, pitch, channels), number * LANES
        low = load(windows.start, at)
        length = load(windows.stop, at) - low + splat(_F(1))
        store(lengths, 0, length)
        if maps.surface.size > 0:
            _edges_near(strip, depths, near_surface, scratch.padded, at, maps.surface)
        _lay_out(strip, depths, windows.start, at, window)
        if maps.aip.size > 0:
            _intensity_maps(window, length, channels, at, maps.aip, maps.mip)
        if maps.mean_ret.size > 0 or maps.mean_ori.size > 0 or maps.slope.size > 0:
            scale = constants.slope_scale
            _mean_maps(window, length, orientation, scale, at, maps.mean_ret, maps.mean_ori, maps.slope)
        if maps.mode_ori.size > 0:
            _axis_modes(window, lengths, orientation, at, maps.mode_ori)
        if maps.circle_ori.size > 0 or maps.circle_biref.size > 0:
            _circles(window, length, circles, orientation, scratch, at, maps.circle_ori, maps.circle_biref)
        if maps.clean_ret.size > 0:
            block, least = constants.block, constants.least_signal
            _clean_retardance(window, length, strip, depths, block, least, at, maps.clean_ret)
        if maps.mus.size > 0:
            _attenuation(strip, depths, low, length, constants.step_mm, at, maps.mus)
