# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Compiled inner loops of the blend and of the halving, over planes (z) of a block."""

from __future__ import annotations

import numpy as np

from opticstream.compute._axial_kernels import components, half_angle
from opticstream.system.compiled import njit

_ROWS = 16
"""Rows that are done through all depths at a time: what is taken from other planes is then still in the cache."""


@njit(cache=True, nogil=True, inline="always", error_model="numpy")
def _shifted_row(data, y, depth, shift, most, a, b, row):
    """Put voxels a..b of a tile's row together, each from `depth` and its shift; return how many lie outside, as 0.

    `most` is the largest shift of the tile; none is below 0.
    """
    if depth >= 0 and depth + most < data.shape[0]:
        # Without a check for each voxel, which costs as much as the rest.
        plane = np.uint64(data.shape[1] * data.shape[2])
        voxels = data.reshape(data.size)[(depth * data.shape[1] + y) * data.shape[2] :]
        for x in range(np.uint64(a), np.uint64(b)):
            row[x] = voxels[np.uint64(shift[x]) * plane + x]
        return 0
    outside = 0
    for x in range(a, b):
        z = depth + shift[x]
        inside = 0 <= z < data.shape[0]
        row[x] = data[z, y, x] if inside else np.float32(0)
        outside += not inside
    return outside


@njit(cache=True, nogil=True, error_model="numpy")
def blend_planes(out, sine, tiles, shift, out_z0, z0, z1, missing):
    """Blend planes z0..z1 of a block; `missing` gets, by plane, how many voxels were, at least whether any was.

    Scalar data where `sine` is None; else axis angles into components, `out` takes the cosine. The choice is made when
    this is compiled: each kind has a loop of its own.
    """
    inputs, depth0, place, rows, weight = tiles
    height, width = out.shape[1], out.shape[2]
    row, most = np.empty(inputs.shape[3], np.float32), shift.max()
    missing[z0:z1] = 0
    out[z0:z1] = np.float32(0)
    if sine is not None:
        sine[z0:z1] = np.float32(0)
    for k in range(inputs.shape[0]):
        y0, x0, first = place[k, 0], place[k, 1], place[k, 2]
        a, b = max(0, -x0), min(inputs.shape[3], width - x0)
        if a >= b:
            continue
        for y1 in range(0, rows[k], _ROWS):
            for z in range(z0, z1):
                for y in range(y1, min(y1 + _ROWS, rows[k])):
                    depth = out_z0 + z - depth0
                    missing[z] += _shifted_row(inputs[k], y, depth, shift[first + y], most, a, b, row)
                    # Pieces that begin at 0: the loops below are then compiled to vector instructions.
                    source = row[a:b]
                    w = weight[k, y, a:b]
                    target = out[z, y0 + y, x0 + a : x0 + b]
                    if sine is None:
                        for x in range(b - a):
                            target[x] += w[x] * source[x]
                    else:
                        target_s = sine[z, y0 + y, x0 + a : x0 + b]
                        for x in range(b - a):
                            c, s = components(source[x])
                            target[x] += w[x] * c
                            target_s[x] += w[x] * s
    for z in range(z0, z1):
        for y in range(height):
            values = out[z, y]
            odd = 0
            for x in range(width):
                odd |= values[x] * np.float32(0) != np.float32(0)  # NaN or infinity
            missing[z] += odd


@njit(cache=True, nogil=True, error_model="numpy")
def blend_planes_partial(out, sine, tiles, shift, out_z0, z0, z1, missing, total, lost):
    """Blend planes again where voxels are missing; where one is, divide by the weights that are there.

    A voxel that lacks nothing gets the very value of `blend_planes`: results do not depend on how blocks are cut.
    """
    inputs, depth0, place, rows, weight = tiles
    height, width = out.shape[1], out.shape[2]
    for z in range(z0, z1):
        if missing[z] == 0:
            continue
        plane = out[z]
        plane[:, :] = np.float32(0)
        if sine is None:
            other = plane
        else:
            other = sine[z]
            other[:, :] = np.float32(0)
        total[:, :] = np.float32(0)
        lost[:, :] = False
        for k in range(inputs.shape[0]):
            data = inputs[k]
            y0, x0, first = place[k, 0], place[k, 1], place[k, 2]
            for y in range(rows[k]):
                for x in range(max(0, -x0), min(data.shape[2], width - x0)):
                    depth = out_z0 + z + shift[first + y, x] - depth0
                    value = data[depth, y, x] if 0 <= depth < data.shape[0] else np.float32(np.nan)
                    if not np.isfinite(value):
                        lost[y0 + y, x0 + x] = True
                        continue
                    w = weight[k, y, x]
                    total[y0 + y, x0 + x] += w
                    if sine is None:
                        plane[y0 + y, x0 + x] += w * value
                    else:
                        c, s = components(value)
                        plane[y0 + y, x0 + x] += w * c
                        other[y0 + y, x0 + x] += w * s
        for y in range(height):
            for x in range(width):
                if not lost[y, x]:
                    continue
                weights = total[y, x] if total[y, x] > np.float32(0) else np.float32(np.nan)
                plane[y, x] /= weights
                if sine is not None:
                    other[y, x] /= weights


@njit(cache=True, nogil=True, error_model="numpy")
def blank_planes(out, covered, z0, z1):
    for z in range(z0, z1):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                if not covered[y, x]:
                    out[z, y, x] = np.float32(np.nan)


@njit(cache=True, nogil=True, error_model="numpy")
def angles_of_planes(cosine, sine, z0, z1):
    """Replace components by the angle, in the array of the cosine; NaN where both are 0."""
    for z in range(z0, z1):
        for y in range(cosine.shape[1]):
            along, across = cosine[z, y], sine[z, y]
            for x in range(along.shape[0]):
                c, s = along[x], across[x]
                angle = half_angle(c, s)
                along[x] = np.float32(np.nan) if (c == np.float32(0)) & (s == np.float32(0)) else angle


@njit(cache=True, nogil=True, error_model="numpy")
def halve_planes(volume, result, z0, z1):
    """Write means over 2 x 2 x 2 voxels, NaN left out, to planes z0..z1 of `result`."""
    depth, height, width = volume.shape
    for z in range(z0, z1):
        for y in range(result.shape[1]):
            inside = 2 * z + 1 < depth and 2 * y + 1 < height
            whole = width // 2 if inside else 0
            if inside:
                a, b = volume[2 * z, 2 * y], volume[2 * z, 2 * y + 1]
                c, d = volume[2 * z + 1, 2 * y], volume[2 * z + 1, 2 * y + 1]
                row = result[z, y]
                for x in range(whole):
                    i = 2 * x
                    row[x] = (
                        (a[i] + a[i + 1]) + (b[i] + b[i + 1]) + (c[i] + c[i + 1]) + (d[i] + d[i + 1])
                    ) * np.float32(0.125)
            for x in range(result.shape[2]):
                if x < whole and result[z, y, x] == result[z, y, x]:
                    continue
                total, count = np.float32(0), np.float32(0)
                for i in range(2 * z, min(2 * z + 2, depth)):
                    for j in range(2 * y, min(2 * y + 2, height)):
                        for m in range(2 * x, min(2 * x + 2, width)):
                            value = volume[i, j, m]
                            if value == value:
                                total += value
                                count += np.float32(1)
                result[z, y, x] = total / count if count > 0 else np.float32(np.nan)


@njit(cache=True, nogil=True, error_model="numpy")
def resample_planes(source, first_source_row, out, first_row, axial, below_y, below_x, part_y, part_x):
    """Fill `out` with values between the samples of `source`, linearly interpolated in every plane.

    `below_*` are the rows and columns of the tile next below each pixel of the tile, `part_*` how far beyond. Angles of
    axes are interpolated as doubled-angle components.
    """
    for z in range(out.shape[0]):
        for row in range(out.shape[1]):
            for x in range(out.shape[2]):
                y = first_row + row
                j, i = below_y[y, x] - first_source_row, below_x[y, x]
                v, u = part_y[y, x], part_x[y, x]
                a, b, c, d = source[z, j, i], source[z, j, i + 1], source[z, j + 1, i], source[z, j + 1, i + 1]
                w00, w01 = (np.float32(1) - v) * (np.float32(1) - u), (np.float32(1) - v) * u
                w10, w11 = v * (np.float32(1) - u), v * u
                if not axial:
                    out[z, row, x] = w00 * a + w01 * b + w10 * c + w11 * d
                    continue
                cosine_a, sine_a = components(a)
                cosine_b, sine_b = components(b)
                cosine_c, sine_c = components(c)
                cosine_d, sine_d = components(d)
                out[z, row, x] = half_angle(
                    w00 * cosine_a + w01 * cosine_b + w10 * cosine_c + w11 * cosine_d,
                    w00 * sine_a + w01 * sine_b + w10 * sine_c + w11 * sine_d,
                )
