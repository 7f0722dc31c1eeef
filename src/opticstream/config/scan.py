"""Facts about instrument and sample: the shape of a tile, the order of the grid, the size of a pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from opticstream.config.base import DataReference, Settings
from opticstream.model.layout import AcquisitionLayout, IlluminationLayout, ScanOrder, ScanPattern, ScanStart

DEFAULT_GAMMA_DEG = -15.0
"""Default tilt of the illumination named `tilted`, in degrees."""


class NoLinearization(Settings):
    """The spectra are linear in wavenumber already."""

    method: Literal["none"] = "none"
    """Name of this choice."""


class WavelengthFit(Settings):
    """Wavelength as a straight line over the pixel number, per channel."""

    method: Literal["wavelength-fit"] = "wavelength-fit"
    """Name of this choice."""
    coefficients_nm: tuple[tuple[float, float], ...] | None = None
    """Per channel [wavelength at pixel 0, wavelength step per pixel], in nm; one entry is shared by both channels."""
    files: tuple[DataReference, ...] = ()
    """Files with the two coefficients instead, one per channel or one shared."""

    @model_validator(mode="after")
    def _one_source(self) -> WavelengthFit:
        if (self.coefficients_nm is None) == (not self.files):
            raise ValueError("expected either coefficients_nm or files")
        return self


class WavelengthVector(Settings):
    """Wavelength of every pixel, per channel."""

    method: Literal["wavelengths"] = "wavelengths"
    """Name of this choice."""
    files: tuple[DataReference, ...] = Field(min_length=1, max_length=2)
    """One vector per channel (or one shared), in nm or any unit: only ratios matter."""


class PhaseVectors(Settings):
    """Measured phase of each pixel and the phase of a linear ramp (`dphase` and `linPhase` on several rigs)."""

    method: Literal["phase"] = "phase"
    """Name of this choice."""
    measured_files: tuple[DataReference, ...] = Field(min_length=1, max_length=2)
    """Measured phase (rad) at each pixel, one vector per channel or one shared."""
    linear_files: tuple[DataReference, ...] = Field(min_length=1, max_length=2)
    """Phases (rad) at which the spectrum is to be sampled, one vector per channel or one shared."""


class KLinearPositions(Settings):
    """Fractional pixel positions at which the spectrum is linear in wavenumber."""

    method: Literal["klinear"] = "klinear"
    """Name of this choice."""
    files: tuple[DataReference, ...] = Field(min_length=1, max_length=2)
    """Positions in pixels, one vector per channel or one shared."""


class Chirp(Settings):
    """Linear-wavenumber index of each pixel (a factory "chirp"), which is inverted to sample the spectrum."""

    method: Literal["chirp"] = "chirp"
    """Name of this choice."""
    files: tuple[DataReference, ...] = Field(min_length=1, max_length=2)
    """Index vectors, one per channel or one shared."""


Linearization = Annotated[
    NoLinearization | WavelengthFit | WavelengthVector | PhaseVectors | KLinearPositions | Chirp,
    Field(discriminator="method"),
]


class CalibrationSettings(Settings):
    """How raw spectra become spectra that are linear in wavenumber and free of dispersion."""

    linearization: Linearization = NoLinearization()
    """Mapping from camera pixel to wavenumber, in the form that `method` names."""
    dispersion_files: tuple[DataReference, ...] = Field(default=(), max_length=2)
    """Dispersion phase (rad) over the linear-wavenumber samples, one vector per channel or one shared; empty: none."""
    background_file: DataReference | None = None
    """Reference spectrum (counts) to subtract if `processing.reconstruction.background = "file"`; shape
    (channels, samples) or (samples,)."""


class IlluminationSettings(Settings):
    """One illumination: its own grid, line length and beam direction."""

    name: str = Field(pattern=r"^[a-z][a-z0-9]*$")
    """Name used in file names: lower-case letters and digits."""
    columns: int = Field(ge=1, le=10_000)
    """Number of columns of tiles, which are the batches of a mosaic (the design's grid_size_x_{name})."""
    rows: int | None = Field(default=None, ge=1, le=10_000)
    """Number of tiles in a column, if it differs from `scan.grid_size_y`."""
    a_lines: int = Field(ge=1, le=100_000)
    """A-lines per B-line (x) of a tile."""
    tilt_deg: float = Field(default=0.0, gt=-80, lt=80)
    """Angle between the beam inside the tissue and the normal, in degrees; default: 0, or -15 for the illumination
    named `tilted` (the design's gamma)."""
    tilt_axis_deg: float = Field(default=90.0, ge=-180, le=180)
    """Direction of the axis about which the beam is tilted, in degrees in the image plane; 90 is the y axis."""

    @model_validator(mode="before")
    @classmethod
    def _gamma(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("name") == "tilted" and "tilt_deg" not in data:
            return {**data, "tilt_deg": DEFAULT_GAMMA_DEG}
        return data


class ScanSettings(Settings):
    """Facts about the instrument and the acquisition."""

    samples: int = Field(default=2048, ge=32, le=65_536)
    """Spectral samples per A-line."""
    channels: Literal[1, 2] = 2
    """Polarization channels in the raw file; with 1, there are no polarization results."""
    b_lines: int = Field(default=350, ge=1, le=100_000)
    """B-lines (y) of a tile."""
    grid_size_y: int = Field(default=28, ge=1, le=10_000)
    """Number of tiles in a column, which are the tiles of a batch; `rows` overrides it for one illumination."""
    illuminations: tuple[IlluminationSettings, ...] = Field(
        default=(
            IlluminationSettings(name="normal", columns=19, a_lines=350),
            IlluminationSettings(name="tilted", columns=24, a_lines=200),
        ),
        min_length=1,
    )
    """The illuminations of every slice, in the order in which they are acquired."""
    scan_order: ScanPattern = ScanPattern.SNAKE_BY_COLUMNS
    """Order in which the stage visits the grid."""
    scan_start: ScanStart = ScanStart.RIGHT_UP
    """Directions in which the stage moves, x first: `right` is towards +x, `up` towards +y."""
    tile_overlap: float = Field(default=20.0, ge=0)
    """Overlap of neighbouring tiles, in the unit of `tile_overlap_unit`."""
    tile_overlap_unit: Literal["percent", "pixels"] = "percent"
    """Unit of `tile_overlap`."""
    raw_format: Literal["nifti", "packed12", "complex"] = "nifti"
    """Format of the raw files: uint16 NIfTI, 12-bit packed without header, or complex tiles (float32 NIfTI)."""
    file_name: str = "mosaic_{mosaic:03d}_image_{tile:04d}_spectral_{n:04d}.nii"
    """Template of raw file names. Fields: project, subject, slice, mosaic, illumination or acq, batch, tile, running
    (a number that counts over all mosaics), n (the camera's own counter, ignored)."""
    spectral_file_name: str | None = None
    """With `raw_format = "complex"`: template of the spectral files that the rig writes beside the complex tiles.
    OpticStream waits for both; it processes the complex tile and archives the spectra, which are the raw data."""
    spectral_format: Literal["nifti", "packed12"] = "nifti"
    """Format of the spectral files."""
    scan_resolution_3d: tuple[float, float, float] = (0.01, 0.01, 0.0025)
    """Voxel size [x, y, z] in mm."""
    slice_thickness_um: float = Field(default=500.0, gt=0)
    """Distance between consecutive block faces, in micrometres."""
    wavelength_um: float = Field(default=1.3, gt=0)
    """Centre wavelength, in micrometres; it scales birefringence."""
    line_rate_hz: float = Field(default=76_000.0, gt=0)
    """A-lines per second of the camera; used only by the virtual rig and by reports."""
    calibration: CalibrationSettings = CalibrationSettings()
    """Mapping from camera pixel to wavenumber, and dispersion."""

    @model_validator(mode="after")
    def _consistent(self) -> ScanSettings:
        names = [i.name for i in self.illuminations]
        if len(set(names)) != len(names):
            raise ValueError(f"illuminations must have different names, got {names}")
        if any(step <= 0 for step in self.scan_resolution_3d):
            raise ValueError(f"scan_resolution_3d must be three positive sizes in mm, got {self.scan_resolution_3d}")
        shortest = min(min(i.a_lines for i in self.illuminations), self.b_lines)
        limit = 100.0 if self.tile_overlap_unit == "percent" else shortest
        if self.tile_overlap >= limit:
            raise ValueError(
                f"tile_overlap = {self.tile_overlap:g} {self.tile_overlap_unit} leaves no distance between tiles; "
                f"expected less than {limit:g}"
            )
        if self.archived_format == "packed12" and (self.samples * self.channels) % 2:
            raise ValueError(f"packed12 stores samples in pairs, but samples = {self.samples} is odd")
        if self.spectral_file_name is not None and self.raw_format != "complex":
            raise ValueError(
                f'spectral_file_name = {self.spectral_file_name!r} needs raw_format = "complex", '
                f"got {self.raw_format!r}, whose tiles are spectra already"
            )
        if self.spectral_file_name == self.file_name:
            raise ValueError(f"file_name and spectral_file_name are the same: {self.file_name!r}")
        return self

    @property
    def archived_format(self) -> Literal["nifti", "packed12", "complex"]:
        """Format of the files that are archived: the spectra, if the rig writes them."""
        return self.raw_format if self.spectral_file_name is None else self.spectral_format

    def rows(self, illumination: int, /) -> int:
        """Return the number of tiles in a column of the `illumination`-th (0-based) illumination."""
        return self.illuminations[illumination].rows or self.grid_size_y

    @property
    def layout(self) -> AcquisitionLayout:
        """The grids and the scan order, which map ids to positions."""
        return AcquisitionLayout(
            tuple(
                IlluminationLayout(i.name, columns=i.columns, rows=self.rows(k))
                for k, i in enumerate(self.illuminations)
            ),
            ScanOrder(self.scan_order, self.scan_start),
        )

    def tile_shape(self, illumination: int, /) -> tuple[int, int]:
        """Return (A-lines, B-lines) of a tile of the `illumination`-th (0-based) illumination."""
        return self.illuminations[illumination].a_lines, self.b_lines

    def raw_values_of_tile(self, illumination: int, /) -> int:
        """Return how many raw values a tile of an illumination has, in all its spectra."""
        a_lines, b_lines = self.tile_shape(illumination)
        return a_lines * b_lines * self.samples * self.channels

    def overlap_px(self, illumination: int, /) -> tuple[float, float]:
        """Return the nominal overlap of neighbouring tiles in pixels, along x and along y.

        Examples
        --------
        >>> ScanSettings().overlap_px(1)
        (40.0, 70.0)
        """
        width, height = self.tile_shape(illumination)
        if self.tile_overlap_unit == "pixels":
            return self.tile_overlap, self.tile_overlap
        return width * self.tile_overlap / 100, height * self.tile_overlap / 100
