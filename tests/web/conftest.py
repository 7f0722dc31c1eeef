"""A project that tests let grow."""

from __future__ import annotations

import warnings

import pytest

from opticstream.testing.shown_project import ShownProject
from opticstream.web import app, board

with warnings.catch_warnings():  # it warns that it uses httpx, which Prefect needs in any case
    warnings.simplefilter("ignore")
    import starlette.testclient  # noqa: F401


@pytest.fixture
def shown(tmp_path) -> ShownProject:
    return ShownProject(tmp_path)


@pytest.fixture(autouse=True)
def patient(monkeypatch) -> None:
    """Pages wait until the whole project was read, however busy the machine is."""
    monkeypatch.setattr(app, "FIRST_LOOK_S", 300.0)
    monkeypatch.setattr(board, "_FIRST_READING_S", 300.0)
