"""Choices of the scientist: how spectra become volumes, maps, mosaics and axes. Changing one invalidates exactly the
results that depend on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from opticstream.config.base import Settings
from opticstream.config.coordinates import CoordinateSettings, NativeCoordinates
from opticstream.config.engines import Engine, NativeEngine
from opticstream.config.modality_names import (
    EnfaceModality,
    LevelModality,
    VolumeModality,
)


def _surface(value: int | str) -> int | str:
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"the depth index of a flat surface must be 0 or more, got {value}")
        return value
    if value not in {"find", "gradient", "gradient_threshold", "robust"} and not value.endswith((".nii", ".nii.gz")):
        raise ValueError(
            f"expected a depth index, a NIfTI file, or one of find, gradient, gradient_threshold, robust; got {value!r}"
        )
    return value


class ReconstructionSettings(Settings):
    """From spectra to complex data and volumes."""

    background: Literal["mean", "file", "none"] = "mean"
    """Background spectrum: the mean over each B-line, a recorded one (`scan.calibration.background_file`), or none."""
    residual_background: bool = True
    """Subtract the median over the A-lines after k-linearization; turn this off for single A-lines."""
    flip_channel2: bool = True
    """The second channel is read out reversed."""
    zero_padding: int = Field(default=1, ge=1, le=16)
    """Factor by which spectra are padded with zeros before the Fourier transform."""
    window: Literal["none", "hann", "gaussian"] = "none"
    """Spectral window."""
    fft: Literal["native", "numpy", "scipy", "pyfftw"] = "native"
    """Library of the Fourier transform, for tiles of every size. `native` is OpticStream's own, the fastest that was
    measured; small tiles, which load no compiled code, use NumPy instead."""
    cut: int | None = Field(default=None, ge=0)
    """Depth samples to drop next to zero delay; default: 24 x zero_padding."""
    flip_phase: bool = False
    """Negate the phase difference of the channels (mirror-image orientation)."""
    phase_offset_deg: float = 100.0
    """Orientation offset of the instrument, in degrees."""
    flip_z: bool = True
    """Complex tile files store depth in reverse order; undo this when volumes are made."""
    save_complex: bool = False
    """Write the complex tile (in `complex/`), the exchange format of the rigs."""
    save_volumes: bool = True
    """Write the volumes of each tile; without them no volumes are stitched."""
    volume_modalities: tuple[VolumeModality, ...] = ("dBI", "R3D", "O3D")
    """Volumes to make."""
    volume_type: Literal["float32", "int16"] = "float32"
    """Numbers in the files of a tile's volumes. `int16`: half the bytes, with slope and intercept in the header; steps
    of 0.005 dB, 0.0025 degrees of retardance and 0.005 degrees of orientation. Both types can be stitched together."""
    memory_budget_gb: float = Field(default=1.0, gt=0)
    """Memory that one tile may use, in GB."""
    threads: int = Field(default=0, ge=0)
    """Threads for one tile; 0: all cores that the process may use."""


class EnfaceSettings(Settings):
    """Surface and en face maps of a tile."""

    surface: Annotated[int | str, AfterValidator(_surface)] = "robust"
    """Surface: `robust` (a smooth sheet, insensitive to bubbles and speckle), `find` (the same as `gradient`),
    `gradient_threshold`, a constant depth index, or a NIfTI file."""
    surface_threshold_db: float = 55.0
    """Level from which a sample counts as tissue, for `gradient_threshold`; it depends on the camera's counts."""
    offset: int = Field(default=0, ge=-10_000, le=10_000)
    """Start of the en face window below the surface, in depth samples."""
    depth: int = Field(default=80, ge=1)
    """Length of the en face window, in depth samples."""
    modalities: tuple[EnfaceModality, ...] = ("aip", "mip", "ret", "ori", "biref", "surf")
    """Maps to make."""
    orientation_method: Literal["stokes", "mean", "histogram"] = "stokes"
    """How orientation is found: `stokes`, the axis about which the polarization state rotates with depth; `mean`, the
    axial mean over the window; `histogram`, the most frequent 1-degree bin."""
    birefringence_method: Literal["stokes", "slope", "unwrap"] = "stokes"
    """How birefringence is found: `stokes`, the rate at which the polarization state rotates with depth; `slope`, the
    slope of retardance over depth; `unwrap`, the slope of retardance unwrapped past the 90-degree fold."""
    retardance_method: Literal["stokes", "mean"] = "stokes"
    """How retardance is found: `stokes`, the mean from averaged polarization states, without noise bias; `mean`, the
    mean of R3D."""

    @model_validator(mode="after")
    def _has_surface(self) -> Self:
        if len(set(self.modalities)) != len(self.modalities):
            raise ValueError(f"a modality is listed twice: {self.modalities}")
        return self


class QualitySettings(Settings):
    """Limits beyond which a tile, mosaic or slice is flagged for review; a limit never changes a result.

    The verdict is `look` where a limit is exceeded, and `bad` where that is so by more than `bad_factor`.
    """

    bad_factor: float = Field(default=5.0, ge=1)
    """How many times a figure exceeds its limit where the result is bad, and not only to be looked at."""

    saturated_fraction: float = Field(default=1e-3, ge=0, le=1)
    """Largest share of samples at the camera's full scale, where spectra are distorted."""
    signal_db: float | None = None
    """Lowest median of the average intensity over tissue, in dB; none by default, because levels depend on the
    camera's counts."""
    surface_roughness_px: float = Field(default=20.0, gt=0)
    """Largest median step of the unfiltered surface between neighbouring A-lines of tissue, in depth samples."""
    surface_confidence: float = Field(default=0.5, ge=0, le=1)
    """Lowest median confidence of the surface over tissue; at 0.5, another depth has an edge that is just as strong."""
    blank_fraction: float = Field(default=1.0, ge=0, le=1)
    """Largest share of A-lines without tissue; at 1, blank tiles are never flagged, as they are normal at the edge of a
    mosaic."""
    nan_fraction: float = Field(default=0.01, ge=0, le=1)
    """Largest share of A-lines of tissue without a value in a map."""
    missing_fraction: float = Field(default=0.02, ge=0, le=1)
    """Share of missing tiles of a mosaic from which it is bad; a single one is always to be looked at."""
    seam_ncc: float = Field(default=0.2, ge=-1, le=1)
    """Lowest median correlation of neighbouring tiles in their overlaps, in the first map."""
    consistency_ncc: float = Field(default=0.0, ge=-1, le=1)
    """Lowest median correlation of neighbouring tiles in every other map, where they agree in the first map: below it
    the maps do not belong together."""
    mask_coverage: float = Field(default=0.01, ge=0, le=1)
    """Smallest share of a mosaic that its mask keeps."""
    mask_coverage_most: float = Field(default=1.0, ge=0, le=1)
    """Largest share of a mosaic that its mask keeps; at 1, a mask of everything is never flagged."""
    mask_contrast_db: float = 3.0
    """Lowest difference between the median levels inside and outside the mask, in dB: below it the threshold divides
    noise, or tissue."""
    mask_parts: int = Field(default=20, ge=1)
    """Largest number of separate parts of the mask."""
    focus_residual_px: float = Field(default=10.0, gt=0)
    """Largest scatter of the surface in the overlaps after the focus correction, in depth samples."""
    axis_uncertainty_deg: float = Field(default=20.0, gt=0)
    """Largest median uncertainty of the fibre axes of a slice, in degrees."""
    axis_share: float = Field(default=0.05, ge=0, le=1)
    """Smallest share of the tissue of a slice that has a fibre axis."""
    slice_focus_db: float = Field(default=3.0, gt=0)
    """Largest loss of fine structure of a slice against its neighbours in the sample, in dB."""
    slice_signal_db: float = Field(default=6.0, gt=0)
    """Largest loss of signal of a slice against its neighbours in the sample, in dB."""
    slice_agreement: float = Field(default=0.25, ge=0, le=1)
    """Lowest confidence of the best comparison of a slice with a neighbour that agrees with its place, 0 to 1."""


class ArchiveSettings(Settings):
    """The compressed copy of the raw tiles."""

    enabled: bool = True
    """Make the archive copy (with SHA-256)."""
    format: Literal["nii.gz", "zarr"] = "nii.gz"
    """`nii.gz`: gzip (`.nii.gz`, `.raw.gz`); `zarr`: Zarr arrays in a zip file (`.zarr.zip`), for spectra, half the
    size. `opticstream archive unpack` gives the raw file back, byte for byte. Copies that exist keep their form."""
    level: int = Field(default=1, ge=0, le=9)
    """Compression effort: 0 fastest, 9 smallest."""


class FocusSettings(Settings):
    """Depth shift of the A-lines over the field of view."""

    method: Literal["overlap", "none"] = "overlap"
    """`overlap`: measure the shift from the surfaces in the overlaps of the first slice; `none`: no correction."""
    degree: Literal[1, 2, 3] = 2
    """Degree of the polynomial."""
    force_refresh: bool = False
    """Determine the focus map for every slice, not only for the first slice of each illumination."""


class MaskSettings(Settings):
    """Tissue mask of a mosaic."""

    made_from: LevelModality = "aip"
    """Map from which the mask of the stitched maps and volumes is made; empty: no mask. The registration has its own
    setting, `processing.registration.mask_file_type`."""
    threshold_db: dict[str, float] = Field(default={"normal": 60.0, "tilted": 55.0})
    """Threshold per illumination, in dB (the design's mask_threshold_{name}); other illuminations use that of
    `normal`."""
    sigma_px: float = Field(default=2.0, ge=0)
    """Gaussian smoothing before the threshold, in pixels."""
    min_fraction: float = Field(default=0.01, ge=0, le=1)
    """Connected parts smaller than this fraction of the largest one are removed."""

    def threshold_for(self, illumination: str, /) -> float:
        """Return the threshold in dB of the named illumination."""
        return self.threshold_db.get(illumination, self.threshold_db.get("normal", 60.0))


class StitchSettings(Settings):
    """2-D mosaics."""

    interpolation: Literal["nearest", "linear"] = "nearest"
    """How tiles are resampled at fractional positions."""
    shading_correction: bool = False
    """Correct the shading that all tiles share."""
    formats: tuple[Literal["nifti", "tiff", "jpeg"], ...] = ("nifti", "tiff", "jpeg")
    """File formats of the stitched maps; NIfTI is always written."""


class VolumeSettings(Settings):
    """3-D mosaics."""

    enabled: bool = True
    """Stitch volumes (needs `reconstruction.save_volumes`)."""
    modalities: tuple[VolumeModality, ...] = ("dBI", "R3D", "O3D")
    """Volumes to stitch."""
    crop_offset: int = Field(default=0, ge=0)
    """Samples to keep above the focal plane when cropping."""
    crop_depth: int | None = Field(default=None, ge=1)
    """Samples to keep after the focus shift; default: all."""
    format: Literal["0.5", "0.4"] = "0.5"
    """OME-NGFF version: 0.5 (Zarr v3, sharded) or 0.4 (Zarr v2)."""
    interpolation: Literal["nearest", "linear"] = "nearest"
    """`nearest`: tiles are placed at the nearest pixel; `linear`: they are interpolated at their exact positions, which
    takes about twice as long."""
    memory_budget_gb: float = Field(default=4.0, gt=0)
    """Memory that stitching may use, in GB."""
    apply_mask: bool = True
    """Blank the voxels outside the mask."""


class RegistrationSettings(Settings):
    """Registration of the illuminations of a slice, and the fibre axis."""

    smoothing_sigma_px: float = Field(default=3.0, ge=0)
    """Gaussian smoothing of the birefringence maps before registration, in pixels."""
    transform: Literal["translation", "rigid", "affine"] = "affine"
    """Kind of transform."""
    bend_sigma_px: float = Field(default=0.0, ge=0)
    """Also deform the moving mosaic (deformable registration), smoothly over at least this many pixels; 0: do not."""
    min_overlap: float = Field(default=0.25, ge=0, le=1)
    """Smallest share of the smaller mosaic that the other one must cover; below it the registration fails."""
    min_confidence: float = Field(default=0.5, ge=0, le=1)
    """Smallest share of the parts of the mosaics that must agree after registration; below it the registration
    fails."""
    max_residual_px: float = Field(default=3.0, gt=0)
    """Largest median remaining shift of the parts, in pixels; above it the registration fails."""
    axis_smoothing_sigma_px: float = Field(default=1.0, ge=0)
    """Gaussian smoothing of orientation (as axes) and birefringence before the fibre axis is computed, in pixels."""
    branch_sigma: float = Field(default=2.0, ge=0)
    """Two solutions for the axis whose misfits differ by less than this many standard deviations count as equal: the
    one with the lower birefringence is used, and the pixel is flagged as ambiguous."""
    max_uncertainty_deg: float = Field(default=30.0, gt=0)
    """Axes with a larger uncertainty are flagged, in degrees."""
    min_birefringence: float = Field(default=1e-5, ge=0)
    """Birefringence below which no axis is computed."""
    mask_file_type: LevelModality = "aip"
    """Map from which the mask for the registration is made, with the threshold of `processing.mask`: mosaics are
    compared only where both masks contain tissue. Empty: no mask."""
    resample_volumes: bool = False
    """Also resample the moving volumes onto the fixed ones; the registration then waits until they are stitched."""
    file_name: str = "slice_{slice:03d}_{product}"
    """Template of the names of results in `registered/`, without suffix."""


class SampleIntensitySettings(Settings):
    """Brightness of the sample's intensity volume; the volumes of the slices stay as they are."""

    enabled: bool = True
    """Make one evenly bright volume of the slices; false: slices lie below each other as they were imaged."""
    gains: bool = True
    """Correct the brightness of slices against each other."""
    attenuation: bool = True
    """Correct the fall of brightness with depth: focus, and what the tissue above takes away."""
    exclude: bool = True
    """Leave out slices that are too dark, or like none of their neighbours; each is listed with its reason."""
    dark_db: float = Field(default=6.0, gt=0)
    """A slice is left out if it is darker than the others by more, in dB."""
    fill: bool = True
    """Show missing slices, and those that are left out, by deeper planes of earlier slices, as far as these reach;
    false: they stay gaps."""
    fade_planes: int = Field(default=6, ge=0)
    """Depth samples over which a slice fades out into the next one; 0: it ends at the next face."""


class SampleHookSettings(Settings):
    """A command that finds the transform from the sample to another space, for `opticstream sample register`."""

    command: tuple[str, ...] = ()
    """Program and arguments. `{image}` is the sample in cubes of 100 um as NIfTI, `{zarr}` the OME-Zarr that has it,
    `{poses}` is `poses.json`, and `{output}` an empty folder for the transform."""
    name: str = Field(default="other", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Name of the other space, also of the files in `sample/transforms/`."""
    time_limit_s: float = Field(default=3600.0, gt=0)
    """Time after which the command is ended, in seconds."""


class SampleSettings(Settings):
    """Stacks over all slices."""

    enabled: bool = True
    """Add each registered slice to the sample's stacks."""
    align: Literal["none", "translation", "rigid"] = "rigid"
    """How slices may be moved to lie over each other; `none`: they stay as they were imaged."""
    modalities: tuple[str, ...] = ("aip", "mip", "ret", "ori", "biref")
    """2-D maps of the first illumination to stack."""
    products: tuple[str, ...] = ("axis", "inplane", "thruplane", "biref", "uncertainty", "flags")
    """Results of the registration to stack; their stacks are named `registered_{product}`."""
    formats: tuple[Literal["nifti", "zarr"], ...] = ("nifti", "zarr")
    """Formats of the 2-D stacks: a NIfTI file and a multiscale OME-Zarr for each."""
    volumes: bool = True
    """Also combine the stitched volumes of the first illumination into one OME-Zarr for each modality."""
    align_on: str = "aip"
    """Map that is compared where a slice has no volume."""
    align_on_volume: str = "dBI"
    """Volume of which the depths that two slices both saw are compared; empty: maps alone are compared."""
    bends: Literal["auto", "off"] = "auto"
    """Where slices are bent against each other: `auto` brings their tissue together in the stacks, `off` leaves it."""
    stage_log: Path | None = None
    """CSV file with the columns `slice`, `x_um`, `y_um`: where the stage stood, in the axes of the pictures, when each
    slice was imaged. It is read again for every slice, and wrong entries are left out where pictures contradict."""
    align_pullback: float = Field(default=0.0, ge=0, lt=1)
    """Share of the displacement that is undone at every slice; 0: slices lie where the pictures place them."""
    intensity: SampleIntensitySettings = SampleIntensitySettings()
    """Brightness of the intensity volume."""
    hook: SampleHookSettings = SampleHookSettings()
    """Command that registers the sample to another space."""
    isotropic: bool = True
    """Also write each volume in cubes of 25, 50 and 100 um (`sample/isotropic/`)."""


class ProcessingSettings(Settings):
    """Choices of the scientist, by stage."""

    engine: Engine = NativeEngine()
    """What computes tiles, registration and fibre axes: `native`, `cuda` (a graphics card) or `matlab`."""
    reconstruction: ReconstructionSettings = ReconstructionSettings()
    """From spectra to volumes."""
    enface: EnfaceSettings = EnfaceSettings()
    """Surface and en face maps."""
    quality: QualitySettings = QualitySettings()
    """Limits beyond which a tile, mosaic or slice is flagged."""
    archive: ArchiveSettings = ArchiveSettings()
    """Archive copy of the raw tiles."""
    coordinates: CoordinateSettings = NativeCoordinates()
    """Positions of the tiles."""
    focus: FocusSettings = FocusSettings()
    """Focus map."""
    mask: MaskSettings = MaskSettings()
    """Tissue mask."""
    stitch: StitchSettings = StitchSettings()
    """2-D mosaics."""
    volume: VolumeSettings = VolumeSettings()
    """3-D mosaics."""
    registration: RegistrationSettings = RegistrationSettings()
    """Registration of the illuminations and the fibre axis."""
    sample: SampleSettings = SampleSettings()
    """Stacks over slices."""
