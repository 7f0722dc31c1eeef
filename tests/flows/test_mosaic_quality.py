"""Quality pictures of a mosaic become artifacts, with the verdict and the tiles that were stitched around."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from opticstream.flows import picture
from opticstream.model.ids import MosaicId


@pytest.mark.parametrize(
    ("missing", "told"), [([], "No tile is missing."), ([3, 7], "Stitched around tiles 3, 7.")], ids=["all", "two lost"]
)
def test_every_quality_picture_that_is_there_is_shown(tmp_path: Path, monkeypatch, missing, told) -> None:
    for kind in ("qc_overlap", "qc_coordinates"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"mosaic_002_{kind}.jpg")
    detail = {"coordinates": {"sentence": "good: 17 of 17 links hold"}, "missing_tiles": missing}
    project = SimpleNamespace(
        config=SimpleNamespace(name="brain-1"),
        facts=SimpleNamespace(read=lambda item, fact: SimpleNamespace(detail=detail)),
        paths=SimpleNamespace(
            mosaic_product=lambda mosaic, kind, suffix: tmp_path / f"mosaic_{mosaic.mosaic_id:03d}_{kind}{suffix}",
            readable=lambda path: path,
        ),
    )
    shown = {}
    monkeypatch.setattr(picture, "publish_image", lambda key, path, *, title, text: shown.update({key: (path, text)}))
    event = SimpleNamespace(mosaic=MosaicId(2), mosaic_id=2, template="tilemap-normal.j2")
    keys = picture.publish_mosaic_quality(project, event)
    assert keys == list(shown) == ["brain-1--mosaic-2-qc-overlap", "brain-1--mosaic-2-qc-coordinates"]
    for path, text in shown.values():
        assert path.exists()
        assert "good: 17 of 17 links hold" in text
        assert told in text
