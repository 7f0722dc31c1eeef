# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return, operator, arg-type"
"""Compiled kernel from the spectra of one B-line to its depth profiles, their intensity, edges and volumes.

Profiles lie as (strip, channel, bin, re/im, lane), so that all that comes after the transform is a walk down the depth
axis with one A-line per lane; a strip is done with while it is in the cache.
"""

from __future__ import annotations

import numpy as np

from opticstream.compute.lanes import (
    LANES,
    arctangent2,
    arctangent_of_ratio,
    decibel,
    lane_numbers,
    load,
    profile_of_strip,
    splat,
    spread_out,
    square_root,
    store,
    store_quarters,
    sums_of_quarters,
    transform_lanes,
    where_less,
    where_less_equal,
    wrapped,
)
from opticstream.compute.tile_engine._arguments import Strip
from opticstream.system.compiled import njit

_F = np.float32
EPS = _F(np.finfo(np.float32).eps)
DEGREES = _F(180 / np.pi)
_INF = _F(np.inf)


@njit(inline="always")
def power_at(profiles, at):
    """Return the power of one channel whose real parts begin at element `at`."""
    re, im = load(profiles, at), load(profiles, at + LANES)
    return re * re + im * im


@njit(inline="always")
def place_of(z, depths):
    """Return where, within the profiles of a strip and channel, depth sample z begins."""
    return 2 * LANES * (depths.cut + (depths.depth - 1 - z if depths.reverse else z))


@njit(inline="always")
def power_of_sample(strip, z, depths):
    """Return the power of a depth sample, both channels together."""
    at = strip.base + place_of(z, depths)
    power = power_at(strip.profiles, at)
    if strip.channels == 2:
        power = power + power_at(strip.profiles, at + strip.pitch)
    return power


@njit(inline="always")
def intensity_of_sample(strip, z, depths):
    """Return the intensity in dB of a depth sample."""
    floor = splat(EPS)
    power = power_of_sample(strip, z, depths)
    return decibel(where_less(power, floor, floor, power))


@njit(inline="always")
def _profile_by_passes(spectra, phasor_re, phasor_im, transform, scratch, out):
    """Do the same as `profile_of_strip`, for any length that `radices_of` factors."""
    work = scratch.work
    zero = splat(_F(0))
    for p in range(phasor_re.size):
        x = load(spectra, p * LANES)
        store(work, 2 * p * LANES, x * spread_out(phasor_re, p))
        store(work, (2 * p + 1) * LANES, x * spread_out(phasor_im, p))
    for i in range(2 * phasor_re.size * LANES, work.size, LANES):
        store(work, i, zero)
    transform_lanes(work, scratch.other, out, transform.radices, transform.twiddles)


@njit(inline="always")
def _intensity_of_strip(strip, depths, lanes, out, cells, cell):
    """Put the intensity in dB into `out`, and its sums over 4 A-lines into `cells` from row `cell` on."""
    depth = depths.depth
    inside = where_less(lane_numbers(), splat(_F(lanes)), splat(_F(1)), splat(_F(0)))
    row = cells.shape[1]
    sums = cells.reshape(-1)
    for z in range(0, depth, 4):  # scratch and cells have room for a few samples more
        a = intensity_of_sample(strip, z, depths)
        b = intensity_of_sample(strip, min(z + 1, depth - 1), depths)
        c = intensity_of_sample(strip, min(z + 2, depth - 1), depths)
        d = intensity_of_sample(strip, min(z + 3, depth - 1), depths)
        store(out, z * LANES, a)
        store(out, (z + 1) * LANES, b)
        store(out, (z + 2) * LANES, c)
        store(out, (z + 3) * LANES, d)
        if row > 0:
            total = sums_of_quarters(a * inside, b * inside, c * inside, d * inside)
            store_quarters(sums, cell * row + z, row, total)


@njit(inline="always")
def _floor_of_strip(intensity, depth):
    """Return the mean intensity of the deepest twentieth."""
    deep = max(1, depth // 20)
    total = splat(_F(0))
    for z in range(depth - deep, depth):
        total = total + load(intensity, z * LANES)
    return total * splat(_F(1.0 / deep))


@njit
def _edges_of_strip(intensity, depth, edges, padded, surface, at):
    """Put the strongest rise of every A-line of a strip into `surface`, from element `at` on."""
    taps, first_samples = edges.taps, edges.first_samples
    reach = taps.size
    half = 5
    zero, one = splat(_F(0)), splat(_F(1))
    for k in range(reach):
        store(padded, k * LANES, load(intensity, 0))
        store(padded, (reach + depth + k) * LANES, load(intensity, (depth - 1) * LANES))
    positive, early, first = zero, zero, splat(_F(-1))
    level = splat(edges.threshold_db)
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
            rise = rise + spread_out(taps, k) * (
                load(padded, centre + k * LANES) - load(padded, centre - (1 + k) * LANES)
            )
            more = more + spread_out(taps, k + 1) * (
                load(padded, centre + (k + 1) * LANES) - load(padded, centre - (2 + k) * LANES)
            )
        if reach % 2:
            k = reach - 1
            rise = rise + spread_out(taps, k) * (
                load(padded, centre + k * LANES) - load(padded, centre - (1 + k) * LANES)
            )
        rise = rise + more
        where = where_less(best, rise, splat(_F(z)), where)
        best = where_less(best, rise, rise, best)
    where = where_less(positive, splat(_F(2 * half)), zero, where)
    early = early * splat(_F(1.0 / min(first_samples, depth)))
    where = where_less_equal(level, early, first, where)
    store(surface, at, where)


@njit(inline="always")
def retardance_of(power_1, power_2):
    """Return the retardance in degrees, 0..90, of the powers of both channels."""
    eps = splat(EPS)
    co = square_root(power_2)
    return splat(DEGREES) * arctangent_of_ratio(square_root(power_1), where_less(co, eps, eps, co))


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
def volumes_of_strip(strip, intensity, depths, orientation, at, step, lanes, volumes):
    """Put a strip into volumes whose depth planes are `step` elements apart, beginning at element `at`."""
    profiles, dbi, r3d, o3d = strip.profiles, volumes.dbi, volumes.r3d, volumes.o3d
    spare = np.empty(LANES, np.float32)
    half = splat(_F(orientation.sign) * _F(0.5) * DEGREES)
    offset = splat(orientation.offset_deg)
    for z in range(depths.depth):
        place = at + z * step
        if dbi.size > 0:
            _keep(dbi, place, load(intensity, z * LANES), lanes, spare)
        if r3d.size > 0 or o3d.size > 0:
            i = strip.base + place_of(z, depths)
            j = i + strip.pitch
            re1, im1, re2, im2 = (
                load(profiles, i),
                load(profiles, i + LANES),
                load(profiles, j),
                load(profiles, j + LANES),
            )
            if r3d.size > 0:
                _keep(r3d, place, retardance_of(re1 * re1 + im1 * im1, re2 * re2 + im2 * im2), lanes, spare)
            if o3d.size > 0:
                angle = arctangent2(im1 * re2 - re1 * im2, re1 * re2 + im1 * im2)
                _keep(o3d, place, wrapped(half * angle + offset), lanes, spare)


@njit(nogil=True, cache=True)
def profiles_of_line(strips, transform, profiles, a_lines, depths, edges, orientation, scratch, results, volumes):
    """Transform the spectra of a B-line, and compute everything from its profiles that needs no other B-line.

    Parameters
    ----------
    strips : array, shape (channels, n_strips, samples * LANES or more)
        Spectra; of size 0 where `profiles` holds the profiles already.
    transform : SpectralTransform
        What is done to them.
    profiles : array, shape (n_strips, channels, bins * 2 * LANES), output
        Complex profiles.
    a_lines : int
        Number of A-lines.
    depths, edges, orientation, scratch : Depths, EdgeFilter, Orientation, ProfileScratch
        Which bins are kept, how the surface is sought, convention of the orientation, memory.
    results, volumes : LineResults, LineVolumes, output
        What is made of the profiles.
    """
    n_strips, channels, pitch = profiles.shape
    flat = profiles.reshape(-1)
    intensity, depth = scratch.intensity, depths.depth
    for number in range(n_strips):
        if strips.size > 0:
            for c in range(channels):
                spectra, out = strips[c, number], profiles[number, c]
                re, im = transform.phasor_re[c], transform.phasor_im[c]
                if transform.radices.size == 0:
                    profile_of_strip(spectra, re, im, scratch.work, transform.twiddles, out)
                else:
                    _profile_by_passes(spectra, re, im, transform, scratch, out)
        strip = Strip(flat, number * channels * pitch, pitch, channels)
        first = number * LANES
        lanes = min(LANES, a_lines - first)
        _intensity_of_strip(strip, depths, lanes, intensity, results.cells, number * (LANES // 4))
        store(results.floor_db, first, _floor_of_strip(intensity, depth))
        if edges.wanted:
            _edges_of_strip(intensity, depth, edges, scratch.padded, results.surface, first)
        if results.section_x.size > 0:
            for lane in range(lanes):
                for z in range(depth):
                    results.section_x[first + lane, z] = intensity[z * LANES + lane]
        middle = a_lines // 2 - first
        if results.section_y.size > 0 and 0 <= middle < LANES:
            for z in range(depth):
                results.section_y[z] = intensity[z * LANES + middle]
        if volumes.dbi.size > 0 or volumes.r3d.size > 0 or volumes.o3d.size > 0:
            volumes_of_strip(strip, intensity, depths, orientation, first, a_lines, lanes, volumes)
