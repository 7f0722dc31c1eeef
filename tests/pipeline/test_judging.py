"""Verdicts follow from the recorded figures and the limits of today."""

from __future__ import annotations

import pytest

from opticstream.config import DeploymentSettings, ProjectConfig, load_project
from opticstream.model.ids import BatchId, MosaicId, SliceId, TileId
from opticstream.model.verdict import Verdict
from opticstream.pipeline.judging import judged
from opticstream.pipeline.project import Project
from opticstream.pipeline.quality_flags import flagged_results

TILE = {
    "signal_db": 70.0, "noise_db": 50.0, "tissue_fraction": 0.9, "nan_fraction": 0.0, "saturated_fraction": 0.002,
    "surface_roughness_px": 3.0, "surface_confidence": 0.9,
}  # fmt: skip
SATURATED = "saturated: 0.20% of the samples at full scale, limit 0.10% (processing.quality.saturated_fraction)"
MOSAIC = {
    "seam_ncc": 0.5,
    "seam_ncc_of": {"ret": 0.4},
    "tissue_fraction": 0.3,
    "mask_contrast_db": 8.0,
    "mask_parts": 4,
}


@pytest.fixture
def project(project_file) -> Project:
    return Project.open(load_project(project_file), deployment=DeploymentSettings())


def with_limits(project: Project, **limits: object) -> Project:
    plain = project.config.model_dump()
    plain["processing"]["quality"] |= limits
    return Project.open(ProjectConfig.model_validate(plain), deployment=project.deployment)


def test_another_limit_gives_another_verdict_on_what_was_measured(project):
    note = {"figures": TILE, "flags": [SATURATED], "verdict": "look"}
    tile = TileId(1, 1)
    assert judged(project, tile, note) == Verdict("look", (SATURATED,))
    assert judged(with_limits(project, saturated_fraction=0.01), tile, note) == Verdict()
    strict = judged(with_limits(project, saturated_fraction=1e-4, signal_db=75.0), tile, note)
    assert strict.grade == "bad"
    assert [reason.split(":")[0] for reason in strict.reasons] == ["saturated", "weak"]
    assert judged(with_limits(project, signal_db=75.0), tile, {"figures": TILE}).grade == "look"


def test_what_follows_from_no_figure_stays(project):
    recorded = ("coordinates are doubtful", "overlaps: neighbouring tiles correlate with 0.50, limit 0.60 "
                "(processing.quality.seam_ncc)")  # fmt: skip
    detail = {"figures": MOSAIC, "doubts": list(recorded), "verdict": "look"}
    assert judged(with_limits(project, seam_ncc=0.6), MosaicId(1), detail) == Verdict("look", recorded)
    assert judged(project, MosaicId(1), detail) == Verdict("look", recorded[:1])
    poor = judged(with_limits(project, mask_parts=2), MosaicId(1), detail)
    assert poor.reasons[0] == recorded[0]
    assert "the mask has 4 parts, limit 2" in poor.reasons[1]


def test_missing_tiles_and_the_focus_are_judged_again(project):
    detail = {
        "figures": MOSAIC, "missing_tiles": [1, 2], "doubts": ["stitched without tiles 1, 2"],
        "focus": {"reused": False, "residual_before_px": 9.0, "residual_after_px": 4.0},
    }  # fmt: skip
    patient = judged(with_limits(project, missing_fraction=1.0), MosaicId(1), detail)
    assert patient == Verdict("look", ("stitched without tiles 1, 2",))
    verdict = judged(with_limits(project, missing_fraction=0.1, focus_residual_px=1.0), MosaicId(1), detail)
    assert verdict.grade == "bad"
    assert "missing_fraction" in verdict.reasons[0]
    assert "the surfaces differ by 4.0 px" in verdict.reasons[1]


def test_slices_are_judged_again(project):
    detail = {"summary": {"axis": {"median_uncertainty_deg": 12.0, "share_of_pixels_with_axis": 0.8}}, "doubts": []}
    assert judged(project, SliceId(1), detail) == Verdict()
    (reason,) = judged(with_limits(project, axis_uncertainty_deg=5.0), SliceId(1), detail).reasons
    assert "median uncertainty 12.0" in reason


def test_without_figures_the_recorded_verdict_holds(project):
    for item, words in ((TileId(1, 1), "flags"), (MosaicId(1), "doubts"), (SliceId(1), "doubts")):
        assert judged(project, item, {words: [SATURATED], "verdict": "bad"}) == Verdict("bad", (SATURATED,))
        assert judged(project, item, {words: [SATURATED]}) == Verdict("look", (SATURATED,))
        assert judged(project, item, {}) == Verdict()
    assert judged(project, TileId(1, 1), {"figures": {"of another version": 1}, "flags": [SATURATED]}).reasons


def test_what_was_kept_of_other_limits_is_not_used(project):
    note = {"outcome": "ok", "figures": TILE, "flags": [SATURATED], "verdict": "look"}
    project.facts.record(BatchId(1, 1), "processed", {"detail": {"tiles": {"1": note}}})
    lenient = with_limits(project, saturated_fraction=0.01)

    def found(one: Project) -> list[TileId]:
        return [flagged.item for flagged in flagged_results(one, one.facts.snapshot(), keep=True)]

    for _ in range(2):
        assert found(project) == [TileId(1, 1)]
        assert found(lenient) == []
