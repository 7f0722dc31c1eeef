"""Slack on this machine, and a picture to send."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from opticstream.io.pictures import write_jpeg
from opticstream.testing.slack_server import SlackServer


@pytest.fixture
def slack() -> Iterator[SlackServer]:
    with SlackServer() as server:
        yield server


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture larger than a message takes."""
    return write_jpeg(tmp_path / "mosaic_001_aip.jpg", np.full((40, 2000, 3), 99, np.uint8))
