"""The model of the stage: a lattice, a backlash and a jitter, estimated from the links."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.stitching._evidence import Evidence

Array = NDArray[np.float64]
FloatArray = NDArray[np.float32]


def stage_features(nominal: Array, line_parity: ArrayLike | None) -> Array:
    """Return what a stage's error may depend on: position (an affine error), and direction of travel (backlash)."""
    centred = nominal - nominal.mean(axis=0)
    scale = max(float(np.abs(centred).max(initial=0.0)), 1.0)
    columns = [centred[:, c] / scale for c in (0, 1) if np.ptp(centred[:, c]) > 0]
    if line_parity is not None:
        columns.append(np.asarray(line_parity, np.float64))
    return np.stack(columns, axis=1) if columns else np.zeros((len(nominal), 0))


def rounding_of(evidence: Evidence, nominal: Array) -> Array:
    return nominal[evidence.pairs[:, 1]] - nominal[evidence.pairs[:, 0]] - evidence.nominal


@dataclass(frozen=True)
class StageModel:
    """Expected shift of every link, and the scatter about it."""

    features: Array
    parameters: Array
    link_sigma_px: Array  # (axis of link, component)
    rounding: Array  # what was rounded off the nominal displacement of each link

    def prediction(self, evidence: Evidence) -> tuple[Array, Array]:
        step = self.features[evidence.pairs[:, 1]] - self.features[evidence.pairs[:, 0]]
        return step @ self.parameters + self.rounding, self.link_sigma_px[evidence.axis] ** 2

    @classmethod
    def from_surfaces(cls, evidence: Evidence, nominal: Array, features: Array) -> StageModel:
        """Find the step along each axis that all links' evidence together makes likeliest, and the scatter about it.

        No link needs to be clear on its own: its likelihood for every shift is ``exp(z^2 / 2)``, or constant.
        """
        margin = np.array(evidence.margin, float)
        sigma = np.tile(np.maximum(margin / 2.5, 1.0), (2, 1))
        step = np.zeros((2, 2))
        x, y = (np.arange(-m, m + 1, dtype=float) for m in evidence.margin)
        for direction in (0, 1):
            mine = np.flatnonzero(evidence.axis == direction)
            if len(mine) == 0:
                continue
            z = np.maximum(evidence.surface[mine], 0).astype(np.float64)
            gain = np.exp(np.minimum(0.5 * z * z, 40.0))
            gain[~np.isfinite(evidence.surface[mine])] = 0
            best = -np.inf
            for spread in (1.0, 2.0, 3.5, 6.0):
                if spread > 1.0 and spread > margin.min():
                    break
                blur_x = np.exp(-0.5 * ((x[:, None] - x[None, :]) / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
                blur_y = np.exp(-0.5 * ((y[:, None] - y[None, :]) / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
                seen = blur_x @ gain @ blur_y
                # Half of the links may have no information: their likelihood ratio is 1 for every lattice.
                score = np.log(0.5 + 0.5 * seen).sum(axis=0)
                top = np.unravel_index(int(score.argmax()), score.shape)
                if score[top] > best:
                    best = float(score[top])
                    step[direction] = x[top[0]], y[top[1]]
                    sigma[direction] = max(spread, 1.0)
        ahead = features[evidence.pairs[:, 1]] - features[evidence.pairs[:, 0]]
        parameters = np.asarray(np.linalg.lstsq(ahead, step[evidence.axis], rcond=1e-6)[0], np.float64)
        rounding = rounding_of(evidence, nominal)
        return cls(features, parameters, sigma, rounding)

    @classmethod
    def from_links(
        cls, evidence: Evidence, nominal: Array, features: Array, before: StageModel | None = None
    ) -> StageModel:
        """Fit the stage to the accepted links by least absolute residuals."""
        step = features[evidence.pairs[:, 1]] - features[evidence.pairs[:, 0]]
        rounding = rounding_of(evidence, nominal)
        use = evidence.accepted
        k = features.shape[1]
        if before is not None:
            parameters = before.parameters.copy()
        else:
            parameters = np.zeros((k, 2))
        margin = np.array(evidence.margin, float)
        sigma = np.tile(np.maximum(margin / 2.5, 1.0), (2, 1))
        if use.sum() >= 3:
            design, target = step[use], evidence.shift[use] - rounding[use]
            norm = np.maximum(np.abs(design).max(axis=0), 1e-12)
            design = design / norm
            # A weak prior of "no error" matters only where no clear link does, e.g. along y if there is one row.
            ridge = 1e-3 * np.eye(k)
            fitted = np.zeros((k, 2))
            for c in (0, 1):
                weight = np.ones(len(design))
                for _ in range(30):
                    gram = (design * weight[:, None]).T @ design + ridge
                    fitted[:, c] = np.linalg.solve(gram, (design * weight[:, None]).T @ target[:, c])
                    weight = 1 / np.maximum(np.abs(target[:, c] - design @ fitted[:, c]), 0.2)
            parameters = fitted / norm[:, None]
            residual = np.abs(target - design @ fitted)
            for direction in (0, 1):
                mine = evidence.axis[use] == direction
                chosen = residual[mine] if mine.sum() >= 4 else residual
                spread = 1.4826 * np.median(chosen, axis=0) * np.sqrt(len(chosen) / max(len(chosen) - k, 1))
                # Few links give a poor estimate of their scatter: keep it wide until there are more.
                spread = spread * (1 + 3 / len(chosen)) + 1.5 / np.sqrt(len(chosen))
                sigma[direction] = np.clip(spread, 0.5, margin / 2)
        return cls(features, parameters, sigma, rounding)
