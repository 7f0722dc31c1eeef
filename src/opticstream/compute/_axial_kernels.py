# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Functions of `opticstream.compute.axial` for single angles in single precision, for use in compiled kernels."""

from __future__ import annotations

import math

import numpy as np

from opticstream.system.compiled import njit

_F = np.float32
ARCTANGENT = (
    _F(0.0028662257), _F(-0.0161657367), _F(0.0429096138), _F(-0.0752896400),
    _F(0.1065626393), _F(-0.1420889944), _F(0.1999355085), _F(-0.3333314528),
)  # fmt: skip
"""``atan(x) / x`` on 0..1 as a polynomial of x^2 whose last coefficient is 1; error below 2e-8 (Abramowitz and Stegun,
4.4.49)."""


@njit(inline="always")
def wrapped(angle_deg):
    """Return an angle brought to (-90, 90] degrees."""
    return angle_deg - _F(180) * _F(math.ceil((angle_deg - _F(90)) / _F(180)))


@njit(cache=True, nogil=True, inline="always", error_model="numpy")
def components(angle_deg):
    """Return cos and sin of twice an angle in degrees; error below 3e-7."""
    u = angle_deg * np.float32(1 / 90)
    u = u - np.float32(2) * np.floor(u * np.float32(0.5) + np.float32(0.5))  # period 180 degrees: u in [-1, 1)
    h = u * np.float32(1.5707963267948966)  # half of the doubled angle
    q = h * h
    s = h * (
        np.float32(1)
        + q
        * (
            np.float32(-1.6666667e-1)
            + q
            * (
                np.float32(8.3333310e-3)
                + q * (np.float32(-1.9840874e-4) + q * (np.float32(2.7525562e-6) + q * np.float32(-2.3889859e-8)))
            )
        )
    )
    c = np.float32(1) + q * (
        np.float32(-0.5)
        + q
        * (
            np.float32(4.1666638e-2)
            + q * (np.float32(-1.3888378e-3) + q * (np.float32(2.4760495e-5) + q * np.float32(-2.6051615e-7)))
        )
    )
    return np.float32(1) - np.float32(2) * s * s, np.float32(2) * s * c


@njit(cache=True, nogil=True, inline="always", error_model="numpy")
def half_angle(c, s):
    """Return half of atan2(s, c) in degrees, in (-90, 90]; 0 where both are 0. Error below 2e-5 degrees.

    Without branches: a loop over it is compiled to vector instructions. Polynomial: `ARCTANGENT`.
    """
    across, along = abs(s), abs(c)
    small = across if across < along else along
    large = along if across < along else across
    large = _F(1e-37) if large < _F(1e-37) else large
    x = small / large
    q = x * x
    p = ARCTANGENT[0] * q + ARCTANGENT[1]
    p = p * q + ARCTANGENT[2]
    p = p * q + ARCTANGENT[3]
    p = p * q + ARCTANGENT[4]
    p = p * q + ARCTANGENT[5]
    p = p * q + ARCTANGENT[6]
    p = p * q + ARCTANGENT[7]
    angle = (p * q + _F(1)) * x * _F(28.64788975654116)
    angle = _F(45) - angle if across > along else angle
    angle = _F(90) - angle if c < _F(0) else angle
    angle = -angle if s < _F(0) else angle
    return _F(90) if angle <= _F(-90) else angle
