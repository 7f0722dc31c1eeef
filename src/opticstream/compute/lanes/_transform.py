# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return, operator, arg-type"
"""Fourier transform of many A-lines at once: every lane of a vector holds one A-line.

A Stockham transform (radix 8, 4, 2, 3, 5; no bit reversal) on arrays of shape (n, 2, LANES), real and imaginary rows
alternating. The last pass computes the bins below half the length only, which are all that a depth profile needs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.lanes._vectors import LANES, load, splat, spread_out, store
from opticstream.system.compiled import njit

_R2 = np.float32(np.sqrt(0.5))
_S3 = np.float32(np.sqrt(0.75))
_HALF = np.float32(0.5)
_C1, _C2 = np.float32(np.cos(2 * np.pi / 5)), np.float32(np.cos(4 * np.pi / 5))
_S1, _S2 = np.float32(np.sin(2 * np.pi / 5)), np.float32(np.sin(4 * np.pi / 5))


def radices_of(length: int, /) -> tuple[int, ...] | None:
    """Return the passes of a transform of even length, the last of them even; None where the length does not factor.

    Examples
    --------
    >>> radices_of(2048), radices_of(1152), radices_of(2 * 7)
    ((4, 8, 8, 8), (3, 3, 4, 4, 8), None)
    """
    rest, odd = length, []
    for radix in (5, 3):
        while rest % radix == 0:
            rest //= radix
            odd.append(radix)
    if rest < 2 or rest & (rest - 1):
        return None
    power = rest.bit_length() - 1
    even = {0: [], 1: [4, 4] if power >= 4 else [2], 2: [4]}[power % 3]
    used = sum(r.bit_length() - 1 for r in even)
    return (*odd, *even, *[8] * ((power - used) // 3))


def twiddles_of(radices: tuple[int, ...], /) -> NDArray[np.float32]:
    """Return the factors of all passes but the last, (re, im) pairs, in the order in which the passes use them."""
    length = int(np.prod(radices))
    rest, parts = length, []
    for radix in radices:
        m = rest // radix
        angle = -2 * np.pi * np.outer(np.arange(m), np.arange(1, radix)) / rest
        parts.append(np.stack([np.cos(angle), np.sin(angle)], axis=-1).ravel())
        rest = m
    return np.concatenate(parts).astype(np.float32)


@njit(inline="always")
def _put(dst, at, re, im):
    store(dst, at, re)
    store(dst, at + LANES, im)


@njit(inline="always")
def _put_turned(dst, at, re, im, tw, t):
    c = spread_out(tw, t)
    s = spread_out(tw, t + 1)
    store(dst, at, re * c - im * s)
    store(dst, at + LANES, re * s + im * c)


@njit(inline="always")
def _dft4(r0, i0, r1, i1, r2, i2, r3, i3):
    ar, ai, br, bi = r0 + r2, i0 + i2, r0 - r2, i0 - i2
    cr, ci, dr, di = r1 + r3, i1 + i3, r1 - r3, i1 - i3
    return ar + cr, ai + ci, br + di, bi - dr, ar - cr, ai - ci, br - di, bi + dr


@njit(inline="always")
def _dft8(r0, i0, r1, i1, r2, i2, r3, i3, r4, i4, r5, i5, r6, i6, r7, i7):
    h = splat(_R2)
    e = _dft4(r0 + r4, i0 + i4, r1 + r5, i1 + i5, r2 + r6, i2 + i6, r3 + r7, i3 + i7)
    ur, ui = r1 - r5, i1 - i5
    vr, vi = r3 - r7, i3 - i7
    o = _dft4(
        r0 - r4,
        i0 - i4,
        h * (ur + ui),
        h * (ui - ur),
        i2 - i6,
        r6 - r2,
        h * (vi - vr),
        splat(np.float32(0)) - h * (vr + vi),
    )
    return e[0], e[1], o[0], o[1], e[2], e[3], o[2], o[3], e[4], e[5], o[4], o[5], e[6], e[7], o[6], o[7]


@njit(inline="always")
def _dft8_at(src, i, s):
    return _dft8(
        load(src, i), load(src, i + LANES),
        load(src, i + s), load(src, i + s + LANES),
        load(src, i + 2 * s), load(src, i + 2 * s + LANES),
        load(src, i + 3 * s), load(src, i + 3 * s + LANES),
        load(src, i + 4 * s), load(src, i + 4 * s + LANES),
        load(src, i + 5 * s), load(src, i + 5 * s + LANES),
        load(src, i + 6 * s), load(src, i + 6 * s + LANES),
        load(src, i + 7 * s), load(src, i + 7 * s + LANES),
    )  # fmt: skip


@njit(inline="always")
def _pass8(src, dst, m, done, tw, t):
    w = 2 * LANES
    stride = m * done * w
    for j in range(m):
        at = t + 14 * j
        for k in range(done):
            i = (j * done + k) * w
            y = _dft8_at(src, i, stride)
            o = (j * 8 * done + k) * w
            s = done * w
            _put(dst, o, y[0], y[1])
            _put_turned(dst, o + s, y[2], y[3], tw, at)
            _put_turned(dst, o + 2 * s, y[4], y[5], tw, at + 2)
            _put_turned(dst, o + 3 * s, y[6], y[7], tw, at + 4)
            _put_turned(dst, o + 4 * s, y[8], y[9], tw, at + 6)
            _put_turned(dst, o + 5 * s, y[10], y[11], tw, at + 8)
            _put_turned(dst, o + 6 * s, y[12], y[13], tw, at + 10)
            _put_turned(dst, o + 7 * s, y[14], y[15], tw, at + 12)


@njit(inline="always")
def _pass4(src, dst, m, done, tw, t):
    w = 2 * LANES
    stride = m * done * w
    for j in range(m):
        at = t + 6 * j
        for k in range(done):
            i = (j * done + k) * w
            y = _dft4(
                load(src, i), load(src, i + LANES),
                load(src, i + stride), load(src, i + stride + LANES),
                load(src, i + 2 * stride), load(src, i + 2 * stride + LANES),
                load(src, i + 3 * stride), load(src, i + 3 * stride + LANES),
            )  # fmt: skip
            o = (j * 4 * done + k) * w
            s = done * w
            _put(dst, o, y[0], y[1])
            _put_turned(dst, o + s, y[2], y[3], tw, at)
            _put_turned(dst, o + 2 * s, y[4], y[5], tw, at + 2)
            _put_turned(dst, o + 3 * s, y[6], y[7], tw, at + 4)


@njit(inline="always")
def _pass2(src, dst, m, done, tw, t):
    w = 2 * LANES
    stride = m * done * w
    for j in range(m):
        for k in range(done):
            i = (j * done + k) * w
            ar, ai = load(src, i), load(src, i + LANES)
            br, bi = load(src, i + stride), load(src, i + stride + LANES)
            o = (j * 2 * done + k) * w
            _put(dst, o, ar + br, ai + bi)
            _put_turned(dst, o + done * w, ar - br, ai - bi, tw, t + 2 * j)


@njit(inline="always")
def _pass3(src, dst, m, done, tw, t):
    w = 2 * LANES
    stride = m * done * w
    h, s3 = splat(_HALF), splat(_S3)
    for j in range(m):
        for k in range(done):
            i = (j * done + k) * w
            ar, ai = load(src, i), load(src, i + LANES)
            br, bi = load(src, i + stride), load(src, i + stride + LANES)
            cr, ci = load(src, i + 2 * stride), load(src, i + 2 * stride + LANES)
            sr, si = br + cr, bi + ci
            dr, di = s3 * (br - cr), s3 * (bi - ci)
            mr, mi = ar - h * sr, ai - h * si
            o = (j * 3 * done + k) * w
            _put(dst, o, ar + sr, ai + si)
            _put_turned(dst, o + done * w, mr + di, mi - dr, tw, t + 4 * j)
            _put_turned(dst, o + 2 * done * w, mr - di, mi + dr, tw, t + 4 * j + 2)


@njit(inline="always")
def _pass5(src, dst, m, done, tw, t):
    w = 2 * LANES
    stride = m * done * w
    c1, c2, s1, s2 = splat(_C1), splat(_C2), splat(_S1), splat(_S2)
    for j in range(m):
        at = t + 8 * j
        for k in range(done):
            i = (j * done + k) * w
            ar, ai = load(src, i), load(src, i + LANES)
            br, bi = load(src, i + stride), load(src, i + stride + LANES)
            cr, ci = load(src, i + 2 * stride), load(src, i + 2 * stride + LANES)
            dr, di = load(src, i + 3 * stride), load(src, i + 3 * stride + LANES)
            er, ei = load(src, i + 4 * stride), load(src, i + 4 * stride + LANES)
            pr, pi, qr, qi = br + er, bi + ei, cr + dr, ci + di
            ur, ui, vr, vi = br - er, bi - ei, cr - dr, ci - di
            xr, xi = ar + c1 * pr + c2 * qr, ai + c1 * pi + c2 * qi
            yr, yi = ar + c2 * pr + c1 * qr, ai + c2 * pi + c1 * qi
            fr, fi = s1 * ur + s2 * vr, s1 * ui + s2 * vi
            gr, gi = s2 * ur - s1 * vr, s2 * ui - s1 * vi
            o = (j * 5 * done + k) * w
            s = done * w
            _put(dst, o, ar + pr + qr, ai + pi + qi)
            _put_turned(dst, o + s, xr + fi, xi - fr, tw, at)
            _put_turned(dst, o + 2 * s, yr + gi, yi - gr, tw, at + 2)
            _put_turned(dst, o + 3 * s, yr - gi, yi + gr, tw, at + 4)
            _put_turned(dst, o + 4 * s, xr - fi, xi + fr, tw, at + 6)


@njit(inline="always")
def _last8(src, out, done):
    """Last pass, lower half of the bins, conjugated."""
    w = 2 * LANES
    s = done * w
    zero = splat(np.float32(0))
    for k in range(done):
        i = k * w
        y = _dft8_at(src, i, s)
        _put(out, i, y[0], zero - y[1])
        _put(out, i + s, y[2], zero - y[3])
        _put(out, i + 2 * s, y[4], zero - y[5])
        _put(out, i + 3 * s, y[6], zero - y[7])


@njit(inline="always")
def _last4(src, out, done):
    w = 2 * LANES
    s = done * w
    zero = splat(np.float32(0))
    for k in range(done):
        i = k * w
        y = _dft4(
            load(src, i), load(src, i + LANES),
            load(src, i + s), load(src, i + s + LANES),
            load(src, i + 2 * s), load(src, i + 2 * s + LANES),
            load(src, i + 3 * s), load(src, i + 3 * s + LANES),
        )  # fmt: skip
        _put(out, i, y[0], zero - y[1])
        _put(out, i + s, y[2], zero - y[3])


@njit(inline="always")
def _last2(src, out, done):
    w = 2 * LANES
    s = done * w
    zero = splat(np.float32(0))
    for k in range(done):
        i = k * w
        _put(out, i, load(src, i) + load(src, i + s), zero - load(src, i + LANES) - load(src, i + s + LANES))


@njit(nogil=True, cache=True)
def transform_lanes(a: Any, b: Any, out: Any, radices: Any, twiddles: Any) -> None:
    """Transform `a` (overwritten, as is `b`) and put the conjugate of its lower half into `out`.

    All are flat float32 arrays: `a` and `b` of shape (n, 2, LANES), `out` of shape (n / 2, 2, LANES).
    """
    length = a.size // (2 * LANES)
    rest, done, t = length, 1, 0
    for step in range(radices.size - 1):
        radix = radices[step]
        m = rest // radix
        if radix == 8:
            _pass8(a, b, m, done, twiddles, t)
        elif radix == 4:
            _pass4(a, b, m, done, twiddles, t)
        elif radix == 2:
            _pass2(a, b, m, done, twiddles, t)
        elif radix == 3:
            _pass3(a, b, m, done, twiddles, t)
        else:
            _pass5(a, b, m, done, twiddles, t)
        a, b = b, a
        t += 2 * m * (radix - 1)
        rest = m
        done *= radix
    if rest == 8:
        _last8(a, out, done)
    elif rest == 4:
        _last4(a, out, done)
    else:
        _last2(a, out, done)


# -- in two steps, for lengths of 64 times 8, 16, 32 or 64

_COLUMNS = 64


def split_of(length: int, /) -> int | None:
    """Return the length of the first of two steps, the second being 64; None where the length does not split so.

    Examples
    --------
    >>> split_of(2048), split_of(1152)
    (32, None)
    """
    first, rest = divmod(length, _COLUMNS)
    return first if rest == 0 and first in (8, 16, 32, 64) else None


def split_twiddles_of(length: int, /) -> NDArray[np.float32]:
    """Return the factors of `profile_of_strip`: within the first step, between the steps, within the second."""
    first = length // _COLUMNS
    angles = (
        np.outer(np.arange(8), np.arange(first // 8)) / first,
        np.outer(np.arange(_COLUMNS), np.arange(first)) / length,
        np.outer(np.arange(8), np.arange(8)) / _COLUMNS,
    )
    turn = np.exp(-2j * np.pi * np.concatenate([angle.ravel() for angle in angles]))
    return np.stack([turn.real, turn.imag], axis=-1).ravel().astype(np.float32)


def split_rows(length: int, /) -> int:
    """Return the rows of scratch that `profile_of_strip` needs, of 2 * LANES elements each."""
    return _COLUMNS * (length // _COLUMNS + 1) + _COLUMNS


@njit(inline="always")
def _turned_input(strip, p, samples, phasor_re, phasor_im):
    if p >= samples:
        zero = splat(np.float32(0))
        return zero, zero
    x = load(strip, p * LANES)
    return x * spread_out(phasor_re, p), x * spread_out(phasor_im, p)


@njit(inline="always")
def _put_column(dst, o, s, y, tw, t, d):
    """Put the eight outputs `y` in steps of `s` from `o` on, each turned by its factor."""
    _put_turned(dst, o, y[0], y[1], tw, t)
    _put_turned(dst, o + s, y[2], y[3], tw, t + d)
    _put_turned(dst, o + 2 * s, y[4], y[5], tw, t + 2 * d)
    _put_turned(dst, o + 3 * s, y[6], y[7], tw, t + 3 * d)
    _put_turned(dst, o + 4 * s, y[8], y[9], tw, t + 4 * d)
    _put_turned(dst, o + 5 * s, y[10], y[11], tw, t + 5 * d)
    _put_turned(dst, o + 6 * s, y[12], y[13], tw, t + 6 * d)
    _put_turned(dst, o + 7 * s, y[14], y[15], tw, t + 7 * d)


@njit(nogil=True, cache=True)
def profile_of_strip(strip, phasor_re, phasor_im, work, twiddles, out):
    """Multiply real spectra by a phasor, transform, and put the conjugate of the lower half into `out`.

    Both steps work on columns that fit the innermost cache, so that `work` is written once and read once.

    Parameters
    ----------
    strip : array, shape (samples * LANES, or more)
        Real spectra, of as many samples as the phasor has; zeros follow up to the length of the transform.
    phasor_re, phasor_im : arrays, shape (samples,)
        Window and dispersion.
    work : array, shape (split_rows(length) * 2 * LANES,)
        Scratch.
    twiddles : array
        From `split_twiddles_of`.
    out : array, shape (length / 2 * 2 * LANES,)
        Bins as (bin, re/im, lane).
    """
    w = 2 * LANES
    samples = phasor_re.size
    first = out.size // (w * _COLUMNS // 2)
    inner = first // 8  # the first step is itself done as `inner` times 8
    pitch = (first + 1) * w  # columns one row apart, so that they do not fall into the same places of the cache
    column = _COLUMNS * pitch  # scratch of one column
    between = 2 * first  # where the factors between the steps begin, and those of the second
    second = between + 2 * first * _COLUMNS
    for j in range(_COLUMNS):
        for q in range(8):
            p = j + _COLUMNS * q
            o = column + q * w
            t = 2 * q * inner
            s = 8 * w
            if inner == 4:
                r0, i0 = _turned_input(strip, p, samples, phasor_re, phasor_im)
                r1, i1 = _turned_input(strip, p + 8 * _COLUMNS, samples, phasor_re, phasor_im)
                r2, i2 = _turned_input(strip, p + 16 * _COLUMNS, samples, phasor_re, phasor_im)
                r3, i3 = _turned_input(strip, p + 24 * _COLUMNS, samples, phasor_re, phasor_im)
                y = _dft4(r0, i0, r1, i1, r2, i2, r3, i3)
                _put(work, o, y[0], y[1])
                _put_turned(work, o + s, y[2], y[3], twiddles, t + 2)
                _put_turned(work, o + 2 * s, y[4], y[5], twiddles, t + 4)
                _put_turned(work, o + 3 * s, y[6], y[7], twiddles, t + 6)
            elif inner == 8:
                r0, i0 = _turned_input(strip, p, samples, phasor_re, phasor_im)
                r1, i1 = _turned_input(strip, p + 8 * _COLUMNS, samples, phasor_re, phasor_im)
                r2, i2 = _turned_input(strip, p + 16 * _COLUMNS, samples, phasor_re, phasor_im)
                r3, i3 = _turned_input(strip, p + 24 * _COLUMNS, samples, phasor_re, phasor_im)
                r4, i4 = _turned_input(strip, p + 32 * _COLUMNS, samples, phasor_re, phasor_im)
                r5, i5 = _turned_input(strip, p + 40 * _COLUMNS, samples, phasor_re, phasor_im)
                r6, i6 = _turned_input(strip, p + 48 * _COLUMNS, samples, phasor_re, phasor_im)
                r7, i7 = _turned_input(strip, p + 56 * _COLUMNS, samples, phasor_re, phasor_im)
                _put_column(
                    work, o, s, _dft8(r0, i0, r1, i1, r2, i2, r3, i3, r4, i4, r5, i5, r6, i6, r7, i7), twiddles, t, 2
                )
            elif inner == 2:
                r0, i0 = _turned_input(strip, p, samples, phasor_re, phasor_im)
                r1, i1 = _turned_input(strip, p + 8 * _COLUMNS, samples, phasor_re, phasor_im)
                _put(work, o, r0 + r1, i0 + i1)
                _put_turned(work, o + s, r0 - r1, i0 - i1, twiddles, t + 2)
            else:
                r0, i0 = _turned_input(strip, p, samples, phasor_re, phasor_im)
                _put(work, o, r0, i0)
        for k in range(inner):
            y = _dft8_at(work, column + 8 * k * w, w)
            _put_column(work, j * pitch + k * w, inner * w, y, twiddles, between + 2 * (j * first + k), 2 * inner)
    zero = splat(np.float32(0))
    for k in range(first):
        for q in range(8):
            y = _dft8_at(work, q * pitch + k * w, 8 * pitch)
            _put_column(work, column + q * w, 8 * w, y, twiddles, second + 16 * q, 2)
        for r in range(8):
            y = _dft8_at(work, column + 8 * r * w, w)
            o, s = (k + first * r) * w, 8 * first * w
            _put(out, o, y[0], zero - y[1])
            _put(out, o + s, y[2], zero - y[3])
            _put(out, o + 2 * s, y[4], zero - y[5])
            _put(out, o + 3 * s, y[6], zero - y[7])
