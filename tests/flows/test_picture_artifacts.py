"""Pictures in artifacts: they are whole, small, and what was on the disk."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opticstream.flows.picture_artifacts import image_markdown


def test_the_text_holds_the_picture_reduced(tmp_path: Path) -> None:
    pixels = np.zeros((300, 900, 3), np.uint8)
    pixels[:, :450, 0] = 200
    Image.fromarray(pixels).save(tmp_path / "p.png")
    text = image_markdown(tmp_path / "p.png", title="A picture", text="Below.", longest_px=300)
    found = re.fullmatch(
        r"## A picture\n\n!\[A picture\]\(data:image/jpeg;base64,([A-Za-z0-9+/=]+)\)\n\nBelow\.\n", text
    )
    assert found
    with Image.open(io.BytesIO(base64.b64decode(found[1]))) as shown:
        assert shown.size == (300, 100)
        seen = np.asarray(shown).astype(int)
    np.testing.assert_allclose(seen[50, 20], [200, 0, 0], atol=6)
    np.testing.assert_allclose(seen[50, 280], [0, 0, 0], atol=6)


def test_a_picture_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        image_markdown(tmp_path / "none.png", title="x")


def test_a_picture_beyond_pillows_limit_is_shown_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (40, 40)).save(tmp_path / "p.png")
    assert "data:image/jpeg" in image_markdown(tmp_path / "p.png", title="A large picture")
