"""The doctor looks for MATLAB, Fiji and a graphics card."""

from __future__ import annotations

from types import SimpleNamespace

import opticstream.engines
from opticstream.config import DeploymentSettings, config_from_mapping
from opticstream.flows.doctor._project import project_engines
from opticstream.model.errors import CardError


def test_the_doctor_says_where_a_program_that_the_project_uses_is_missing(tmp_path):
    def found(pools, **overrides):
        project = {"project": {"project_name": "p", "project_base_path": str(tmp_path)}}
        scene = SimpleNamespace(
            config=config_from_mapping(project, overrides=overrides),
            settings=DeploymentSettings(matlab_command=str(tmp_path / "matlab"), fiji_command=str(tmp_path / "fiji")),
            pools=pools,
        )
        return [(one.result, one.found.split(" ")[0]) for one in project_engines(scene)]

    everything = {"processing.engine": {"kind": "matlab"}, "processing.coordinates": {"method": "fiji"}}
    assert found(("tile", "stitch")) == []
    assert found(("upload",), **everything) == []
    assert found(("tile", "stitch"), **everything) == [
        ("problem", "OPTICSTREAM_MATLAB_COMMAND"),
        ("problem", "OPTICSTREAM_FIJI_COMMAND"),
    ]


def test_the_doctor_says_what_makes_the_tiles_where_a_project_asks_for_a_card(tmp_path, monkeypatch):
    def found(pools=("tile",), **engine):
        project = {"project": {"project_name": "p", "project_base_path": str(tmp_path)}}
        project["processing"] = {"engine": {"kind": "cuda", **engine}}
        scene = SimpleNamespace(config=config_from_mapping(project), settings=DeploymentSettings(), pools=pools)
        return [(one.result, one.found) for one in project_engines(scene)]

    monkeypatch.setattr(opticstream.engines, "check_card", lambda: "CuPy 14, a card, 8.0 GB free")
    assert found() == [("ok", "tiles are made on a graphics card: CuPy 14, a card, 8.0 GB free")]
    assert found(("upload",)) == []

    def none():
        raise CardError("CuPy 14 finds no graphics card")

    monkeypatch.setattr(opticstream.engines, "check_card", none)
    assert found() == [("warning", "CuPy 14 finds no graphics card; our compiled code makes the tiles here")]
    assert found(required=True) == [("problem", "CuPy 14 finds no graphics card")]
