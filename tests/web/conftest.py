"""A project that tests let grow."""

from __future__ import annotations

import warnings

import pytest

from opticstream.testing.shown_project import ShownProject

with warnings.catch_warnings():  # it warns that it uses httpx, which Prefect needs in any case
    warnings.simplefilter("ignore")
    import starlette.testclient  # noqa: F401


@pytest.fixture
def shown(tmp_path) -> ShownProject:
    return ShownProject(tmp_path)
