"""The code in the explanations runs."""

import doctest
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs" / "explanation"


@pytest.mark.parametrize("name", ["facts.md", "project-state.md"])
def test_the_code_of_an_explanation_runs(name):
    result = doctest.testfile(str(DOCS / name), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 5
    assert result.failed == 0
