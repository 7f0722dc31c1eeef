"""Ready phantoms: the demo, one that is as hard as reality, one with measured fibre directions, and full-size tiles."""

from __future__ import annotations

from pathlib import Path

from opticstream.io.atomic import write_text
from opticstream.model.errors import ConfigurationError
from opticstream.sim.demo import PHANTOM_FILE, PROJECT_FILE, demo_phantom, project_text, small_project_text
from opticstream.sim.settings import (
    BubbleSettings,
    ImageFibres,
    InstrumentSettings,
    PhantomSettings,
    SampleSettings,
    StageSettings,
)

PRESETS = ("demo", "hard", "optic-tract", "full-size")
"""Names of the presets."""


def hard_phantom(*, seed: int = 1, slices: int = 2) -> PhantomSettings:
    """Return a phantom with what makes real data hard: depth variation, steep fibres, bubbles, low signal."""
    return PhantomSettings(
        seed=seed,
        slices=slices,
        sample=SampleSettings(
            inclination_max_deg=80.0,
            depth_scale_um=900.0,
            bubbles=BubbleSettings(per_mm2=0.6),
            embedding_db=-22.0,
        ),
        instrument=InstrumentSettings(k_map="strong", scattering_db=-40.0, walk_off=True),
        stage=StageSettings(jitter_px=2.0, affine_percent=1.5),
    )


def optic_tract_phantom(directions: Path, /, *, seed: int = 1, slices: int = 2) -> PhantomSettings:
    """Return a phantom whose fibres follow measured directions (`cluster_dir_1`, `cluster_dir_2`, `cluster_avg`)."""
    base = demo_phantom(seed=seed, slices=slices)
    fibres = ImageFibres(
        directions_file=directions / "cluster_dir_1.tiff",
        second_directions_file=directions / "cluster_dir_2.tiff",
        mask_file=directions / "cluster_avg.tiff",
        mask_above=190.0,  # counts; the glass around the tissue shines with about 160
    )
    sample = base.sample.model_copy(
        update={"fibres": fibres, "outline": "full", "white_fraction": 1.0, "isotropic_fraction": 0.0}
    )
    return base.model_copy(update={"sample": sample})


def full_size_phantom(*, seed: int = 1, slices: int = 2) -> PhantomSettings:
    """Return the demo's phantom with features sized for tiles of 3.5 mm."""
    base = demo_phantom(seed=seed, slices=slices)
    sample = base.sample.model_copy(update={"surface_slope_px_per_mm": (0.6, -0.4), "surface_depth_px": 60.0})
    return base.model_copy(update={"sample": sample})


def write_preset(
    preset: str,
    folder: Path,
    /,
    *,
    seed: int = 1,
    slices: int = 2,
    directions: Path | None = None,
    channels: int = 2,
    small: bool = False,
) -> tuple[Path, Path]:
    """Write the project file and the phantom file of a preset and return both paths.

    With one channel the project has one beam and no polarization; `small` is the size of the small demo.

    Raises
    ------
    ConfigurationError
        There is no such preset, it needs `directions`, or it comes in one size only.
    """
    if small and preset != "demo":
        raise ConfigurationError(f"the preset {preset} has only one size; use --small with the preset demo")
    make_text = small_project_text if small else project_text
    text = make_text(name=preset, slices=slices, channels=channels)
    match preset:
        case "demo":
            phantom = demo_phantom(seed=seed, slices=slices)
        case "hard":
            phantom = hard_phantom(seed=seed, slices=slices)
            text = project_text(name=preset, slices=slices, columns=6, rows=5, threshold_db=52.0, channels=channels)
        case "optic-tract":
            if directions is None:
                raise ConfigurationError("the preset optic-tract needs --directions, a folder of direction images")
            phantom = optic_tract_phantom(directions.absolute(), seed=seed, slices=slices)
        case "full-size":
            phantom = full_size_phantom(seed=seed, slices=slices)
            text = project_text(
                name=preset, slices=slices, samples=2048, b_lines=350, a_lines=350, a_lines_tilted=200, columns=3,
                threshold_db=60.0, channels=channels,
            )  # fmt: skip
        case _:
            raise ConfigurationError(f"unknown preset {preset!r}; expected one of {', '.join(PRESETS)}")
    project = write_text(folder / PROJECT_FILE, text)
    return project, write_text(folder / PHANTOM_FILE, phantom.model_dump_json(indent=1) + "\n")
