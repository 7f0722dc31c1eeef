"""Settings of the phantom: sample, instrument, stage and the seed from which everything follows.

Settings describe a world, the project configuration describes how it is scanned; the virtual rig needs both. Every
random number is drawn from `seed` and the item it belongs to, so that no order of work changes a byte.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from opticstream.config.base import Settings
from opticstream.model.errors import ConfigurationError, FileFormatError
from opticstream.model.text import text_from_bytes

Corner = Literal["left-down", "left-up", "right-down", "right-up"]


class GeneratedFibres(Settings):
    """Fibre directions that follow the level lines of smooth random functions."""

    source: Literal["generated"] = "generated"
    """Name of this choice."""
    bundle_scale_um: float = Field(default=1500.0, gt=0)
    """Typical size of a bundle."""
    bend: float = Field(default=0.6, ge=0, lt=2)
    """How far fibres swing around the main direction of their bundle; 0 gives straight fibres."""
    directions_deg: tuple[float, float] = (20.0, 105.0)
    """Main in-plane direction of each of the two bundles, in degrees from +x towards +y."""
    crossing_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the area in which both bundles interleave."""
    crossing_period_um: float = Field(default=160.0, gt=0)
    """Width of a pair of interleaved fascicles where bundles cross."""


class ImageFibres(Settings):
    """Fibre directions from an image of degrees (0..180), such as a scattered-light measurement."""

    source: Literal["image"] = "image"
    """Name of this choice."""
    directions_file: Path
    """TIFF or NumPy image of in-plane directions in degrees from +x towards +y; negative where there is none."""
    second_directions_file: Path | None = None
    """Second, crossing direction; negative where there is none."""
    mask_file: Path | None = None
    """Image of mean brightness; directions are not used where it is dark."""
    mask_above: float = 0.0
    """Brightness of the mask from which directions are used."""
    crossing_period_um: float = Field(default=160.0, gt=0)
    """Width of a pair of interleaved fascicles where two directions cross."""
    pixel_um: float | None = Field(default=None, gt=0)
    """Size of an image pixel; default: the image spans the sample."""


Fibres = Annotated[GeneratedFibres | ImageFibres, Field(discriminator="source")]


class VesselSettings(Settings):
    """Vessels: dark lumen, shadow below."""

    radius_um: float = Field(default=22.0, ge=0)
    """Radius; 0 for none."""
    spacing_um: float = Field(default=900.0, gt=0)
    """Typical distance between vessels."""
    depth_um: float = Field(default=70.0, ge=0)
    """Mean depth of their centre below the block face."""
    lumen_db: float = Field(default=-18.0, le=0)
    """Scattering of the lumen against the tissue."""
    shadow_db: float = Field(default=-5.0, le=0)
    """Loss of everything below, both passes together."""


class BubbleSettings(Settings):
    """Bubbles on the surface: a bright dome above it, a shadow below."""

    per_mm2: float = Field(default=0.0, ge=0)
    """Number per square millimetre."""
    radius_um: float = Field(default=80.0, gt=0)
    """Mean radius."""
    reflection_db: float = 30.0
    """Reflection of the dome against white matter."""
    shadow_db: float = Field(default=-12.0, le=0)
    """Loss of everything below, both passes together."""


class SampleSettings(Settings):
    """The block of tissue."""

    fibres: Fibres = GeneratedFibres()
    """Where fibre directions come from."""
    white_fraction: float = Field(default=0.7, ge=0, le=1)
    """Share of white matter; the border to grey matter is sharp."""
    region_scale_um: float = Field(default=1300.0, gt=0)
    """Typical size of white and grey regions."""
    isotropic_fraction: float = Field(default=0.04, ge=0, lt=1)
    """Share of the area without any birefringence."""
    birefringence_white: float = Field(default=8e-4, ge=0)
    """True birefringence of white matter (mean)."""
    birefringence_grey: float = Field(default=1.2e-4, ge=0)
    """True birefringence of grey matter (mean)."""
    birefringence_variation: float = Field(default=0.12, ge=0, lt=0.5)
    """Relative standard deviation of birefringence within a region."""
    inclination_max_deg: float = Field(default=80.0, ge=0, le=90)
    """Through-plane angles fill the range from minus to plus this evenly, in smooth patches."""
    inclination_scale_um: float = Field(default=1400.0, gt=0)
    """Typical size of such a patch."""
    depth_scale_um: float | None = Field(default=None, gt=0)
    """Distance over which the fields change along depth; none: constant along every A-line (but not between slices)."""
    layer_step_um: float = Field(default=20.0, gt=0)
    """Thickness of the sub-layers in which a depth-varying sample is evaluated."""
    scattering_grey_db: float = -5.0
    """Back-scattering of grey matter against white."""
    attenuation_white_per_mm: float = Field(default=5.0, ge=0)
    """Attenuation coefficient of white matter (one pass, intensity)."""
    attenuation_grey_per_mm: float = Field(default=2.5, ge=0)
    """Attenuation coefficient of grey matter (one pass, intensity)."""
    texture_db: float = Field(default=2.2, ge=0)
    """Standard deviation of the fibre-like brightness texture, in dB."""
    texture_scale_um: float = Field(default=70.0, gt=0)
    """Typical width of its stripes."""
    layer_contrast_db: float = Field(default=1.5, ge=0)
    """Standard deviation of horizontal layers, in dB."""
    layer_period_um: float = Field(default=90.0, gt=0)
    """Typical distance between layers."""
    vessels: VesselSettings = VesselSettings()
    """Vessels."""
    bubbles: BubbleSettings = BubbleSettings()
    """Bubbles."""
    embedding_db: float | None = None
    """Back-scattering of what surrounds the tissue, against white matter; none: empty."""
    outline: Literal["notched", "ellipse", "full"] = "notched"
    """Shape of the tissue: the whole field less the corners below, an ellipse that fills it, or the whole field."""
    blank_corners: tuple[Corner, ...] = ("left-down", "left-up")
    """Corners of the field (x, y growing right and up) that hold no tissue over a whole tile, for `notched`."""
    surface_depth_px: float = Field(default=36.0, ge=0)
    """Mean depth of the surface below the first depth sample that a default reconstruction keeps."""
    surface_slope_px_per_mm: tuple[float, float] = (3.0, -2.0)
    """Slope of the block face along x and y."""
    surface_wave_px: float = Field(default=2.0, ge=0)
    """Standard deviation of its waves."""
    surface_wave_um: float = Field(default=1800.0, gt=0)
    """Typical length of its waves."""
    surface_reflection_db: float = 6.0
    """Extra reflection of the first tissue sample."""


class SourceSettings(Settings):
    """Light source and camera."""

    peak_counts: tuple[float, float] = (2100.0, 1900.0)
    """Reference arm at the middle of the spectrum, per channel, in counts."""
    fwhm_fraction: float = Field(default=0.62, gt=0)
    """Full width at half maximum of the (Gaussian) spectrum, as a share of the common wavenumber range."""
    bits: int = Field(default=12, ge=4, le=16)
    """Bits of the camera; counts saturate."""
    dark_counts: float = Field(default=60.0, ge=0)
    """Offset of the camera."""
    read_noise_counts: float = Field(default=1.5, ge=0)
    """Standard deviation of read noise."""
    electrons_per_count: float | None = Field(default=40.0, gt=0)
    """Gain, which sets shot noise; none: no shot noise."""
    rin_line: float = Field(default=0.002, ge=0)
    """Relative intensity noise common to all samples and channels of an A-line (standard deviation)."""
    rin_sample: float = Field(default=0.0015, ge=0)
    """Relative intensity noise independent between samples (standard deviation)."""
    fixed_pattern: float = Field(default=0.01, ge=0)
    """Relative gain differences between camera pixels (standard deviation)."""
    etalon: float = Field(default=0.006, ge=0)
    """Relative depth of a parasitic fringe in the reference light."""
    hot_pixels: bool = True
    """The first pixels of a line read high, as on real cameras."""


class InstrumentSettings(Settings):
    """From the sample's field to counts."""

    source: SourceSettings = SourceSettings()
    """Light source and camera."""
    k_map: Literal["linear-wavelength", "quadratic", "strong", "chirp-file"] = "quadratic"
    """How wavelength runs over the camera: a straight line, a gently bent one, a strongly bent one, or from
    `chirp_file`. A project that states its wavelength fit in numbers overrides this."""
    chirp_file: Path | None = None
    """Pixel -> linear-wavenumber index (`.mat` or `.npy`) for `chirp-file`."""
    channel_shift_nm: float = 1.5
    """Wavelength offset of the second channel's camera."""
    dispersion_rad: tuple[tuple[float, float], tuple[float, float]] = ((14.0, -5.0), (11.0, 6.0))
    """Per channel, phase of 2nd and 3rd order at the ends of the spectrum."""
    channel_imbalance_db: float = 0.0
    """Power by which fringes of the first channel are stronger than those of the second. A rig is adjusted (or its data
    scaled) to 0; what is left becomes a systematic error of retardance."""
    scattering_db: float = -39.0
    """Power that one depth sample of white matter returns, against the reference."""
    autocorrelation: bool = True
    """Interference of the sample with itself, near zero delay."""
    lateral_fwhm_px: float = Field(default=1.3, ge=0)
    """Lateral point spread function (amplitude, full width at half maximum); 0 for none."""
    focus_depth_px: float | None = 60.0
    """Depth of the focus below the first depth sample, before field curvature; none: no confocal gate."""
    rayleigh_um: float = Field(default=350.0, gt=0)
    """Distance from the focus at which the confocal gate halves the power."""
    curvature_px: tuple[float, float, float] = (5.0, 4.0, 1.0)
    """Field curvature of the normal illumination over half a tile: x^2, y^2, and xy coefficients."""
    gate_tilt_px: tuple[float, float] = (3.0, -2.0)
    """Tilt of its coherence gate over half a tile, along x and y."""
    gate_tilt_px_per_deg: float = 0.6
    """Further gate tilt over half a tile, across the tilt axis, for every degree of beam tilt."""
    walk_off: bool = False
    """Tilted beams move sideways with depth."""
    phase_offset_deg: float = 100.0
    """Orientation offset of the instrument."""


class StageSettings(Settings):
    """The actual positions of tiles."""

    affine_percent: float = Field(default=1.0, ge=0)
    """Standard deviation of the elements of the affine stage error, in percent of a step."""
    backlash_px: float = 0.8
    """Shift along the direction of travel between opposite directions."""
    jitter_px: float = Field(default=1.2, ge=0)
    """Standard deviation of a tile's position error, the same in every slice."""
    repeat_jitter_px: float = Field(default=0.1, ge=0)
    """Standard deviation of the further error in every slice."""
    slice_drift_px: float = Field(default=2.0, ge=0)
    """Standard deviation of the shift of a whole mosaic between slices."""
    illumination_offset_px: float = Field(default=3.0, ge=0)
    """Standard deviation of the shift between the illuminations of a slice."""
    illumination_rotation_deg: float = Field(default=0.4, ge=0)
    """Standard deviation of the rotation between the illuminations of a slice."""


class CuttingSettings(Settings):
    """What the blade, the stage and the operator do between slices; by default nothing."""

    rotation_deg: float = Field(default=0.0, ge=0)
    """Standard deviation of the rotation of a slice."""
    shift_px: float = Field(default=0.0, ge=0)
    """Largest shift of the tissue of a slice along x and y, which the stage does not know of."""
    jump_px: float = Field(default=0.0, ge=0)
    """Length of a jump of the stage that lasts (homed anew); the stage's log shows it."""
    jump_at: int = Field(default=2, ge=2)
    """First slice after the jump."""
    log_glitches: tuple[int, ...] = ()
    """Slices for which the stage's log is wrong by 200 px."""
    missing: tuple[int, ...] = ()
    """Slices that are cut but never imaged."""
    bad: tuple[int, ...] = ()
    """Slices that are imaged blurred and dark."""
    bad_blur_px: float = Field(default=4.0, ge=0)
    """Standard deviation of their blur along x and y."""
    bad_loss_db: float = Field(default=12.0, ge=0)
    """By how much they are darker."""
    incomplete: tuple[int, ...] = ()
    """Slices of which only a part of the field is imaged."""
    incomplete_share: float = Field(default=0.6, gt=0, le=1)
    """Share of the field along x that they cover."""
    wedge: tuple[int, ...] = ()
    """Slices that the blade cut as a wedge: their face is inclined against the others."""
    wedge_um: float = Field(default=0.0, ge=0)
    """By how much deeper the right edge of such a face lies than the left one."""
    gain_db: float = Field(default=0.0, ge=0)
    """Standard deviation of the brightness of a slice."""
    distortion_um: float = Field(default=0.0, ge=0, le=300)
    """Largest displacement by which the tissue of a slice is bent, smoothly."""
    distortion_scale_um: float = Field(default=2500.0, gt=0)
    """Typical length of the bends."""


class PhantomSettings(Settings):
    """Everything about the phantom and the instrument that looks at it."""

    seed: int = Field(default=1, ge=0)
    """Everything random follows from it."""
    slices: int = Field(default=2, ge=1)
    """Number of slices that are imaged."""
    sample: SampleSettings = SampleSettings()
    """The tissue."""
    instrument: InstrumentSettings = InstrumentSettings()
    """The microscope."""
    stage: StageSettings = StageSettings()
    """The stage."""
    cutting: CuttingSettings = CuttingSettings()
    """What happens between slices."""

    @model_validator(mode="after")
    def _consistent(self) -> PhantomSettings:
        if self.instrument.k_map == "chirp-file" and self.instrument.chirp_file is None:
            raise ValueError('instrument.k_map = "chirp-file" needs instrument.chirp_file, which is not set')
        return self


def load_phantom(path: Path | str, /) -> PhantomSettings:
    """Return the phantom settings in a TOML or JSON file.

    Raises
    ------
    ConfigurationError
        The file is absent or has an invalid value; the message names the key and the value.
    """
    path = Path(path)
    try:
        text = text_from_bytes(path.read_bytes(), name=str(path))
        if path.suffix == ".json":
            return PhantomSettings.model_validate_json(text)
        return PhantomSettings.model_validate(tomllib.loads(text))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, p['loc'])) or 'phantom'}: {p['msg']} (got {p['input']!r})" for p in error.errors()
        )
        raise ConfigurationError(f"{path}: {problems}") from error
    except FileFormatError as error:
        raise ConfigurationError(str(error)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: cannot be read as phantom settings: {error}") from error
