"""How well slices on both sides of a missing one can be placed at best: the Cramér-Rao bound of linear comparisons.

python benchmarks/sample_bound.py [--planes 44] [--section 40]

The tissue of `opticstream.sim.cut_sample` is made of Gaussian fields of known covariance, and of the white matter and
vessels that are functions of such fields, whose covariance follows from their Hermite series. So for each lateral wave
the covariance between all planes of the slices is known, shadows and speckle included. Its canonical correlations r
say what a shift does to the likelihood: each independent wave adds ``k^2 / 2 * sum 2 r^2 / (1 - r^2)`` to the
information on a shift along either axis (Carter 1987, "Coherence and time delay estimation", for a pair of signals).
No comparison that is linear in the pictures can do better; one that can tell vessels from spots may.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SHAPE = (420, 380)
SPECKLE_DB2_PX2 = 5.3
"""Spectral density of the speckle of 4 looks in one plane: its variance in dB, over pixels of area 1."""
SHADOW_DB = 0.217
"""What a plane of white matter takes away more than one of grey matter, there and back."""
WHITE_DB = 5.0


@dataclass(frozen=True)
class Part:
    """A Gaussian field: standard deviations of its kernel across (px) and along depth (planes), and its variance."""

    across: float
    along: float
    variance: float

    def covariance(self, k: float, apart: Array) -> Array:
        """Return the covariance of a lateral wave between planes, for distances along depth."""
        density = self.variance * 4 * np.pi * self.across**2 * np.exp(-((k * self.across) ** 2))
        return np.asarray(density * np.exp(-(apart**2) / (4 * self.along**2)))


def of_function(values: Callable[[Array], Array], across: float, along: float, scale: float, terms: int) -> list[Part]:
    """Return the parts of a function of a Gaussian field of variance 1, from its Hermite series."""
    n = np.linspace(-8, 8, 160_001)
    weighted = values(n) * np.exp(-(n**2) / 2) / np.sqrt(2 * np.pi) * (n[1] - n[0])
    before, now, parts = np.ones_like(n), n.copy(), []
    for m in range(1, terms + 1):
        share = float(now @ weighted)
        if share**2 > 1e-8:
            parts.append(Part(across / np.sqrt(m), along / np.sqrt(m), (scale * share) ** 2))
        before, now = now, (n * now - np.sqrt(m) * before) / np.sqrt(m + 1)
    return parts


FINE, SPOTS, TRACTS = Part(3.5, 6.0, 1.6**2), Part(9.0, 12.0, 1.2**2), Part(18.0, 50.0, 2.0**2)
VESSELS = of_function(lambda n: np.exp(-((n / 0.06) ** 2)), 12.0, 15.0, 7.0, 400)
WHITE = of_function(lambda n: 1 / (1 + np.exp(-8 * (n + 0.3))), 45.0, 40.0, 1.0, 60)


def covariance(
    k: float, planes: Array, faces: Array, direct: Sequence[Part], white: Sequence[Part], *, shadows: bool
) -> Array:
    """Return the covariance of a lateral wave between planes at given depths of slices with given faces."""
    apart = planes[:, None] - planes[None]
    total = SPECKLE_DB2_PX2 * np.eye(len(planes)) + sum(part.covariance(k, apart) for part in direct)
    depth = np.arange(int(planes.max()) + 1.0)
    sees = np.where(depth == planes[:, None], WHITE_DB, 0.0)
    if shadows:
        above = (depth >= faces[:, None]) & (depth < planes[:, None])
        sees -= SHADOW_DB * (above + 0.5 * (depth == planes[:, None]))
    inner: Any = sum(part.covariance(k, depth[:, None] - depth[None]) for part in white)
    return np.asarray(total + (sees @ inner @ sees.T if len(white) else 0.0))


def bound_px(
    before: Sequence[int],
    after: Sequence[int],
    planes: int,
    *,
    band: int | None = None,
    direct: Sequence[Part] = (FINE, SPOTS, TRACTS, *VESSELS),
    white: Sequence[Part] = tuple(WHITE),
    shadows: bool = True,
) -> float:
    """Return the smallest standard deviation along an axis between slices whose faces lie at given depths in planes.

    Of slices with a `band`, only as many planes on either side of the gap are seen.
    """
    area = np.pi * 0.42 * SHAPE[0] * 0.42 * SHAPE[1]
    sides = [np.concatenate([face + np.arange(planes) for face in part]).astype(float) for part in (before, after)]
    faces = [np.repeat(np.array(part, float), planes) for part in (before, after)]
    if band is not None:
        sides, faces = ([part[0][-band:], part[1][:band]] for part in (sides, faces))
    here = len(sides[0])
    waves, information = np.linspace(0.01, 0.5, 60), 0.0
    for k in waves:
        whole = covariance(float(k), np.concatenate(sides), np.concatenate(faces), direct, white, shadows=shadows)
        lower = [np.linalg.cholesky(part) for part in (whole[:here, :here], whole[here:, here:])]
        between = np.linalg.solve(lower[0], np.linalg.solve(lower[1], whole[here:, :here]).T)
        alike = np.clip(np.linalg.svd(between, compute_uv=False), 0, 1 - 1e-9) ** 2
        count = area * 2 * np.pi * k * (waves[1] - waves[0]) / (4 * np.pi**2) / 2
        information += float(count * k**2 / 2 * (2 * alike / (1 - alike)).sum())
    return float(information**-0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planes", type=int, default=44, help="planes that are imaged")
    parser.add_argument("--section", type=int, default=40, help="planes that are cut")
    args = parser.parse_args()
    far, cut = 2 * args.section, args.section
    nearest, four = ([0], [far]), ([0, cut], [far + cut, far + 2 * cut])
    plain = (FINE, SPOTS, TRACTS)
    for what, px in (
        ("twelve planes on either side", bound_px(*nearest, args.planes, band=12)),
        ("all planes of the two slices", bound_px(*nearest, args.planes)),
        ("all planes of two slices on either side", bound_px(*four, args.planes)),
        ("two slices, no shadows", bound_px(*nearest, args.planes, shadows=False)),
        ("two slices, vessels and white matter known", bound_px(*nearest, args.planes, direct=plain, white=())),
        ("two slices, spots known, too", bound_px(*nearest, args.planes, direct=(FINE, TRACTS), white=())),
    ):
        print(f"{what}: {px:.2f} px along either axis", flush=True)


if __name__ == "__main__":
    main()
