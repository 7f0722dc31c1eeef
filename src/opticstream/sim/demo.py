"""The demo's project and phantom: small enough for two minutes on a laptop, complete enough to exercise every stage."""

from __future__ import annotations

from pathlib import Path

from opticstream.config.loading import config_from_mapping
from opticstream.config.project import ProjectConfig
from opticstream.io.atomic import write_text
from opticstream.sim.settings import InstrumentSettings, PhantomSettings, SampleSettings, StageSettings

PROJECT_FILE = "project.toml"
PHANTOM_FILE = "phantom.json"

_PROJECT = """\
# A phantom of {slices} slices, seen by a straight and by a tilted beam.

[project]
project_name = "{name}"
project_base_path = "project"
subject_id = "phantom"

[scan]
samples = {samples}
b_lines = {b_lines}
grid_size_y = {rows}
tile_overlap = 25.0             # percent
scan_resolution_3d = [0.01, 0.01, 0.0025]  # mm
slice_thickness_um = 300.0
wavelength_um = 1.3
illuminations = [
    {{ name = "normal", columns = {columns}, a_lines = {a_lines} }},
    {{ name = "tilted", columns = {columns}, a_lines = {a_lines_tilted}, tilt_deg = -15.0 }},
]

[scan.calibration]
dispersion_files = ["calibration/dispersion_1.npy", "calibration/dispersion_2.npy"]

[scan.calibration.linearization]
method = "wavelengths"
files = ["calibration/wavelength_1.npy", "calibration/wavelength_2.npy"]

[processing.enface]
depth = 80

[processing.mask]
threshold_db = {{ normal = {threshold}, tilted = {threshold} }}  # levels follow samples and camera counts

[processing.volume]
memory_budget_gb = 0.5
"""

_ONE_CHANNEL = """\
# A phantom of {slices} slices, seen by a straight beam with one channel: intensity, without polarization.

[project]
project_name = "{name}"
project_base_path = "project"
subject_id = "phantom"

[scan]
samples = {samples}
channels = 1
b_lines = {b_lines}
grid_size_y = {rows}
tile_overlap = 25.0             # percent
scan_resolution_3d = [0.01, 0.01, 0.0025]  # mm
slice_thickness_um = 300.0
wavelength_um = 1.3
illuminations = [{{ name = "normal", columns = {columns}, a_lines = {a_lines} }}]

[scan.calibration]
dispersion_files = ["calibration/dispersion_1.npy"]

[scan.calibration.linearization]
method = "wavelengths"
files = ["calibration/wavelength_1.npy"]

[processing.enface]
depth = 80
modalities = ["aip", "mip", "surf"]

[processing.reconstruction]
volume_modalities = ["dBI"]

[processing.mask]
threshold_db = {{ normal = {threshold} }}  # levels follow samples and camera counts

[processing.volume]
modalities = ["dBI"]
memory_budget_gb = 0.5
"""


def project_text(
    *,
    name: str = "demo",
    slices: int = 2,
    samples: int = 512,
    b_lines: int = 96,
    a_lines: int = 96,
    a_lines_tilted: int = 80,
    columns: int = 4,
    rows: int = 3,
    threshold_db: float = 54.0,
    channels: int = 2,
) -> str:
    """Return the text of a project file for a phantom.

    One channel sees no polarization: such a project has the straight beam only, and the maps and volumes of intensity.
    """
    if channels == 1:
        return _ONE_CHANNEL.format(
            name=name, slices=slices, samples=samples, b_lines=b_lines, a_lines=a_lines, columns=columns, rows=rows,
            threshold=threshold_db,
        )  # fmt: skip
    return _PROJECT.format(
        name=name, slices=slices, samples=samples, b_lines=b_lines, a_lines=a_lines, a_lines_tilted=a_lines_tilted,
        columns=columns, rows=rows, threshold=threshold_db,
    )  # fmt: skip


def small_project_text(*, name: str = "demo", slices: int = 2, channels: int = 2) -> str:
    """Return the text of a project file of the quicker demo: fewer and smaller tiles of the same depth.

    With half of the samples the en face window of 80 would reach below what a tile holds, and the birefringence over it
    could not be had.
    """
    return project_text(
        name=name, slices=slices, channels=channels, b_lines=64, a_lines=64, a_lines_tilted=56, columns=3, rows=2
    )


def demo_phantom(*, seed: int = 1, slices: int = 2) -> PhantomSettings:
    """Return the phantom of the demo: every effect present, none extreme."""
    return PhantomSettings(
        seed=seed,
        slices=slices,
        sample=SampleSettings(
            white_fraction=0.75,
            isotropic_fraction=0.03,
            inclination_max_deg=60.0,
            birefringence_white=1.0e-3,
            birefringence_grey=2.5e-4,
        ),
        instrument=InstrumentSettings(scattering_db=-36.0),
        stage=StageSettings(),
    )


_ENGINE = """
[processing.engine]
kind = "{engine}"
memory_budget_gb = 0.5  # the tiles are small
"""


def write_demo(
    folder: Path, /, *, seed: int = 1, slices: int = 2, small: bool = False, engine: str = "native"
) -> tuple[Path, Path]:
    """Write the demo's project file and phantom file into `folder` and return both paths.

    The raw tiles belong into ``folder/raw``, the truth into ``folder/truth``; results come to ``folder/project``.
    """
    text = small_project_text(slices=slices) if small else project_text(slices=slices, columns=3)
    if engine != "native":
        text += _ENGINE.format(engine=engine)
    project = write_text(folder / PROJECT_FILE, text)
    phantom = write_text(folder / PHANTOM_FILE, demo_phantom(seed=seed, slices=slices).model_dump_json(indent=1) + "\n")
    return project, phantom


def demo_config(base: Path | None = None, /) -> ProjectConfig:
    """Return the demo's configuration without touching the disk; relative paths start at `base`."""
    import tomllib

    return config_from_mapping(tomllib.loads(project_text()), source="demo project", folder=base)
