"""The doctor looks for MATLAB and Fiji."""

from __future__ import annotations

from types import SimpleNamespace

from opticstream.config import DeploymentSettings, config_from_mapping
from opticstream.flows.doctor._project import project_engines


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
