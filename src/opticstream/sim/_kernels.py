# mypy: disable-error-code="untyped-decorator"
"""Compiled loops of the simulator: light down an A-line and back, the lateral point spread, and the camera."""

from __future__ import annotations

from typing import Any

import numpy as np

from opticstream.system.compiled import njit


@njit(cache=True, nogil=True, error_model="numpy")
def round_trip_fields(
    scatterers: Any,
    first_bin: Any,
    surface_bin: Any,
    depth_step_um: Any,
    layer_step_um: Any,
    half_retardance: Any,
    angle: Any,
    amplitude: Any,
    attenuation: Any,
    lumen: Any,
    shadow: Any,
    vessel_depth_um: Any,
    vessel_half_um: Any,
    vessel_radius_um: Any,
    bubble_bins: Any,
    bubble_amplitude: Any,
    bubble_shadow: Any,
    layer_table: Any,
    layer_table_step_um: Any,
    layer_shift_um: Any,
    surface_gain: Any,
    focus_bin: Any,
    rayleigh_um: Any,
    offset_rad: Any,
    first_field: Any,
    second_field: Any,
) -> None:
    """Fill the fields of both channels from scatterers, in place.

    Shapes: `scatterers`, `first_field`, `second_field` (lines, A-lines, depth) complex64; per-layer maps
    (layers, lines, A-lines); the other maps (lines, A-lines). `half_retardance` is half of the single-pass retardance
    of one depth sample, in radians. In the basis of the incoming circular state and its mirror image the way in is the
    unitary matrix ((a, -b*), (b, a*)); the way in and out sends (1, 0) to (|a|^2 - |b|^2, 2 a b).
    """
    lines, a_lines, depth = scatterers.shape
    layers = half_retardance.shape[0]
    turn = -1j * np.exp(-2j * offset_rad)
    cos_full = np.empty(layers)
    sin_full = np.empty(layers)
    twist = np.empty(layers, np.complex128)
    loss = np.empty(layers)
    for line in range(lines):
        for column in range(a_lines):
            for k in range(layers):
                cos_full[k] = np.cos(half_retardance[k, line, column])
                sin_full[k] = np.sin(half_retardance[k, line, column])
                twist[k] = 1j * np.exp(2j * angle[k, line, column])
                loss[k] = np.exp(-attenuation[k, line, column] * depth_step_um)
            a = 1.0 + 0.0j
            b = 0.0 + 0.0j
            transmission = 1.0
            surface = surface_bin[line, column]
            half = vessel_half_um[line, column]
            centre = vessel_depth_um[line, column]
            below_vessel = 1.0
            if half > 0:
                below_vessel = 1.0 + (shadow - 1.0) * half / vessel_radius_um
            bubble = bubble_bins[line, column]
            if bubble > 0:
                transmission = bubble_shadow
            for z in range(depth):
                offset = first_bin + z - surface
                if offset <= -0.5:
                    value = 0.0
                    if bubble > 0 and abs(offset + bubble) <= 0.5:
                        value = bubble_amplitude
                    first_field[line, column, z] = 0.0
                    second_field[line, column, z] = value * scatterers[line, column, z]
                    continue
                fraction = min(offset + 0.5, 1.0)
                below_um = max(offset, 0.0) * depth_step_um
                k = min(int(below_um / layer_step_um), layers - 1)
                if offset > 0:
                    if offset < 1.0:
                        c = np.cos(half_retardance[k, line, column] * offset)
                        s = np.sin(half_retardance[k, line, column] * offset)
                        transmission *= loss[k] ** offset
                    else:
                        c = cos_full[k]
                        s = sin_full[k]
                        transmission *= loss[k]
                    forward = s * twist[k]
                    # i exp(-2 i angle) is minus the conjugate of i exp(2 i angle)
                    a, b = c * a - np.conj(forward) * b, forward * a + c * b
                value = amplitude[k, line, column] * transmission * fraction
                if fraction < 1.0:
                    value *= surface_gain
                where = int((below_um + layer_shift_um[line, column]) / layer_table_step_um)
                value *= layer_table[where % layer_table.shape[0]]
                if half > 0:
                    if abs(below_um - centre) < half:
                        value *= lumen
                    if below_um > centre:
                        value *= below_vessel
                distance = (first_bin + z - focus_bin[line, column]) * depth_step_um / rayleigh_um
                value /= np.sqrt(1.0 + distance * distance)
                scattered = value * scatterers[line, column, z]
                copolar = a.real * a.real + a.imag * a.imag - b.real * b.real - b.imag * b.imag
                first_field[line, column, z] = scattered * (turn * (2.0 * a * b))
                second_field[line, column, z] = scattered * copolar


@njit(cache=True, nogil=True, error_model="numpy")
def spread_laterally(
    field: Any,
    weights: Any,
    along_lines: Any,
    out: Any,
) -> None:
    """Convolve `field` (lines + 2 r, A-lines + 2 r, depth) with separable `weights` (2 r + 1), without rims."""
    width = weights.shape[0]
    lines, a_lines, depth = out.shape
    wide = a_lines + width - 1
    for line in range(lines):
        for column in range(wide):
            for z in range(depth):
                along_lines[column, z] = weights[0] * field[line, column, z]
            for tap in range(1, width):
                for z in range(depth):
                    along_lines[column, z] += weights[tap] * field[line + tap, column, z]
        for column in range(a_lines):
            for z in range(depth):
                out[line, column, z] = weights[0] * along_lines[column, z]
            for tap in range(1, width):
                for z in range(depth):
                    out[line, column, z] += weights[tap] * along_lines[column + tap, z]


@njit(cache=True, nogil=True, error_model="numpy")
def counts_from_fringes(
    fringes: Any,
    quadrature: Any,
    line_gain: Any,
    reference: Any,
    dark: Any,
    noise: Any,
    shot: Any,
    read_variance: Any,
    rin_sample: Any,
    full_scale: Any,
    reverse: Any,
    out: Any,
) -> None:
    """Fill `out` (A-lines, samples) uint16 with what the camera counts.

    `fringes` is ``Re e`` of the sample's field e against the reference field, and `quadrature` ``Im e``, or empty where
    interference of the sample with itself is left out; `noise` holds standard normal numbers, `shot` is
    1 / (electrons per count).
    """
    a_lines, samples = fringes.shape
    both = quadrature.shape[1] > 0
    for a in range(a_lines):
        for p in range(samples):
            field = fringes[a, p]
            itself = field * field + quadrature[a, p] ** 2 if both else 0.0
            light = reference[p] * line_gain[a] * (1.0 + 2.0 * field + itself)
            variance = read_variance + shot * max(light, 0.0) + (rin_sample * light) ** 2
            value = light + dark[p] + np.sqrt(variance) * noise[a, p]
            value = min(max(np.rint(value), 0.0), full_scale)
            out[a, samples - 1 - p if reverse else p] = np.uint16(value)


@njit(cache=True, nogil=True, error_model="numpy")
def visible_maps(
    first_bin: Any,
    bins: Any,
    surface_bin: Any,
    depth_step_um: Any,
    layer_step_um: Any,
    half_retardance: Any,
    angle: Any,
    window_start: Any,
    window_length: Any,
    wavelength_um: Any,
    retardance_deg: Any,
    orientation_rad: Any,
    birefringence: Any,
    at_bins: Any,
    retardance_at_deg: Any,
    orientation_at_rad: Any,
) -> None:
    """Fill en face maps (lines, A-lines) of what a noise-free single-input instrument sees below the surface.

    Inputs as in `round_trip_fields`. Samples are taken at whole bins, from the first one at or below the surface plus
    `window_start`, `window_length` of them; the state above it is followed but not counted. The last two arrays
    (lines, A-lines, depths) receive the state at `at_bins` below the surface, rising whole numbers.
    """
    layers, lines, a_lines = half_retardance.shape
    for line in range(lines):
        for column in range(a_lines):
            a = 1.0 + 0.0j
            b = 0.0 + 0.0j
            surface = surface_bin[line, column]
            n, sum_z, sum_zz, sum_r, sum_zr = 0, 0.0, 0.0, 0.0, 0.0
            mean_angle = 0.0 + 0.0j
            reached = 0
            c, forward = 1.0, 0.0j
            turned_for = -1  # the layer whose whole step `c` and `forward` are
            for z in range(bins):
                if n >= window_length and reached == at_bins.shape[0]:
                    break
                offset = first_bin + z - surface
                if offset < 0:
                    continue
                below_um = offset * depth_step_um
                k = min(int(below_um / layer_step_um), layers - 1)
                if k != turned_for or offset <= 1.0:
                    step = half_retardance[k, line, column] * min(offset, 1.0)
                    c = np.cos(step)
                    forward = np.sin(step) * 1j * np.exp(2j * angle[k, line, column])
                    turned_for = k if offset >= 1.0 else -1
                a, b = c * a - np.conj(forward) * b, forward * a + c * b
                copolar = a.real * a.real + a.imag * a.imag - b.real * b.real - b.imag * b.imag
                cross = -1j * 2.0 * a * b
                retardance = np.arctan2(abs(cross), abs(copolar))
                if reached < at_bins.shape[0] and offset >= at_bins[reached]:
                    turned = cross * copolar
                    retardance_at_deg[line, column, reached] = np.rad2deg(retardance)
                    orientation_at_rad[line, column, reached] = 0.5 * np.arctan2(turned.imag, turned.real)
                    reached += 1
                if offset < window_start or n >= window_length:
                    continue
                n += 1
                sum_z += below_um
                sum_zz += below_um * below_um
                sum_r += retardance
                sum_zr += below_um * retardance
                if abs(cross) > 0 and copolar != 0:
                    mean_angle += cross * copolar / abs(cross * copolar)
            if n > 0:
                retardance_deg[line, column] = np.rad2deg(sum_r / n)
                orientation_rad[line, column] = 0.5 * np.arctan2(mean_angle.imag, mean_angle.real)
            spread = n * sum_zz - sum_z * sum_z
            if n > 2 and spread > 0:
                slope = (n * sum_zr - sum_z * sum_r) / spread
                birefringence[line, column] = slope * wavelength_um / (2.0 * np.pi)
