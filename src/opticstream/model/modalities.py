"""The table of modalities: their values, where they are made, and how they are blended, resampled and shown.

Settings, file headers, stitching, registration, the sample's stacks and pictures all use this table. An unknown
name (from other tiles) is treated like `image`. To add a modality, see `docs/how-to/add-a-modality.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Literal, NamedTuple

ValueKind = Literal["scalar", "axial", "vector", "label"]
"""Scalar values; angles of axes in degrees (180-degree periodic); unit axis vectors without sign along the last array
axis; labels (masks, flag bits), which are never averaged."""

Blend = Literal["mean", "mean axis", "main direction", "first"]
"""How several values become one, in overlaps of tiles and in the coarser levels of pyramids: their mean; the mean of
(cos 2O, sin 2O); the main direction of the mean of v v'; one of them."""

Resampling = Literal["linear", "axes", "nearest", "vectors"]
"""How values are resampled: interpolated; interpolated as axes and rotated with the picture; the nearest one; the
nearest vector, rotated with the picture."""

Colours = Literal["grey", "viridis", "inferno", "cividis", "wheel", "directions"]
"""Colours of pictures (`opticstream.io.pictures`). `wheel` is a full turn of hue over 180 degrees: red at 0, green at
60, blue at 120. `directions` shows |x|, |y|, |z| as red, green, blue."""


class Made(StrEnum):
    """Where a modality comes from."""

    ENFACE = "en face map of a tile"
    """Chosen in `processing.enface.modalities`; stitched to a mosaic."""
    VOLUME = "volume of a tile"
    """Chosen in `processing.reconstruction.volume_modalities`; stitched if `processing.volume.modalities` has it."""
    TILE = "by-product of a tile"
    FIELD = "map of the field of view"
    """One for each illumination."""
    MOSAIC = "map of a mosaic"
    SLICE = "result of the registration"
    HAND = "given by hand"


class KindRules(NamedTuple):
    """Properties of a kind of value."""

    blend: Blend
    resampling: Resampling
    tiles_blend: bool
    """Whether overlapping tiles of this kind can be blended."""


KINDS: Mapping[ValueKind, KindRules] = MappingProxyType(
    {
        "scalar": KindRules("mean", "linear", tiles_blend=True),
        "axial": KindRules("mean axis", "axes", tiles_blend=True),
        "vector": KindRules("main direction", "vectors", tiles_blend=False),
        "label": KindRules("first", "nearest", tiles_blend=False),
    }
)


@dataclass(frozen=True, slots=True)
class DisplayRange:
    """Values of the darkest and the brightest colour of a picture: fixed ones, or percentiles of the picture."""

    low: float | None = None
    """Fixed value of the darkest colour; None for the 1st percentile."""
    high: float | None = None
    """Fixed value of the brightest colour; None for `high_percentile`."""
    high_percentile: float = 99.0
    least_high: float | None = None
    """Smallest value of the brightest colour where `low` is fixed."""
    most_high: float | None = None
    """Largest value of the brightest colour where `low` is fixed."""

    @property
    def text(self) -> str:
        """The range in words."""
        low = "1st" if self.low is None else f"{self.low:g}"
        if self.high is not None:
            return f"{low} to {self.high:g}"
        most = "" if self.most_high is None else f", at most {self.most_high:g}"
        return f"{low} to {'the ' if self.low is not None else ''}{self.high_percentile:g}th percentile{most}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Modality:
    """One kind of map or volume.

    Raises
    ------
    ValueError
        Two of the fields exclude each other; the message names the modality.
    """

    name: str
    """As in file names: letters and digits only."""
    meaning: str
    unit: str = ""
    made: tuple[Made, ...]
    kind: ValueKind = "scalar"
    in_db: bool = False
    """The values are levels in dB."""
    intensity: bool = False
    """The values are intensities, with multiplicative speckle and shading: tiles are compared as logarithms for their
    positions, and the shading that all share can be corrected. Other maps are compared as they are."""
    channels: Literal[1, 2] = 1
    """Polarization channels needed."""
    colours: Colours = "grey"
    display: DisplayRange = DisplayRange()
    """Range of the colours in pictures of mosaics."""
    tile_range: tuple[float, float] | Literal["above noise", "whole"] | None = None
    """Range of the colours in the quality picture of a tile, the same in every tile: two values, the usual range of
    intensity above the noise, or all values of the map; None for maps that it does not show."""
    brightness_from: tuple[str, ...] = ()
    """With `wheel`: maps that may give the brightness in pictures of mosaics; the first of them that was made does."""
    resampled: Resampling | None = None
    """How it is resampled, if not like others of its kind."""
    header: str = ""
    """Description in the header of a file, if not meaning and unit."""
    in_slice: str = ""
    """Meaning of the map of that name made by the registration, if it differs."""
    engines_differ: float = 0.01
    """What the results of two engines may differ by, in the unit; for complex tiles relative to the largest value."""

    @property
    def has_pictures(self) -> bool:
        """Whether it has its own pictures; volumes and by-products of tiles have none."""
        return Made.VOLUME not in self.made and Made.TILE not in self.made

    def __post_init__(self) -> None:
        wrong = ""
        if not self.made:
            wrong = "it must be made somewhere"
        elif (Made.ENFACE in self.made or Made.VOLUME in self.made) and not KINDS[self.kind].tiles_blend:
            wrong = f"tiles of the kind {self.kind!r} cannot be blended; expected scalar or axial"
        elif self.in_db and not self.intensity:
            wrong = "levels in dB are intensities: set intensity=True as well"
        elif (self.colours == "wheel") != (self.kind == "axial" and self.has_pictures):
            wrong = (
                f"colours {self.colours!r} do not go with the kind {self.kind!r}: axes, and no others, take the wheel"
            )
        if wrong:
            raise ValueError(f"modality {self.name!r}: {wrong}")

    @property
    def blend(self) -> Blend:
        """How overlapping tiles, and the voxels of a coarser level, become one value."""
        return KINDS[self.kind].blend

    @property
    def resampling(self) -> Resampling:
        """How it is resampled to the pixels of another mosaic or slice."""
        return self.resampled or KINDS[self.kind].resampling

    @property
    def is_axial(self) -> bool:
        """Whether the values are angles of axes in degrees."""
        return self.kind == "axial"

    @property
    def tile_header(self) -> str:
        """Description in the header of a tile's file."""
        return self.header or (f"{self.meaning}, {self.unit}" if self.unit else self.meaning)

    @property
    def mosaic_header(self) -> str:
        """Description in the header of a mosaic."""
        return f"{self.name}, {self.unit}; NaN: no data"

    @property
    def slice_header(self) -> str:
        """Description in the header of a result of the registration."""
        return self.in_slice or self.tile_header


SURFACE = "surf"
"""The map that every tile has: the surface, found first, because the other maps use a window below it."""

_LEVELS = DisplayRange(high_percentile=99.8)

_ENTRIES = (
    Modality(
        name="complex",
        meaning="Re J1, Im J1, Re J2, Im J2 along x, depth reversed",
        made=(Made.TILE,),
        channels=1,
        engines_differ=1e-4,
    ),
    Modality(name="dBI", meaning="intensity", unit="dB", made=(Made.VOLUME,), in_db=True, intensity=True),
    Modality(name="R3D", meaning="retardance", unit="degrees 0..90", made=(Made.VOLUME,), channels=2),
    Modality(
        name="O3D",
        meaning="optic axis orientation",
        unit="degrees (-90..90]",
        made=(Made.VOLUME,),
        kind="axial",
        channels=2,
    ),
    Modality(
        name="aip",
        meaning="average intensity projection",
        unit="dB",
        made=(Made.ENFACE,),
        in_db=True,
        intensity=True,
        display=_LEVELS,
        tile_range="above noise",
    ),
    Modality(
        name="mip",
        meaning="maximum intensity projection",
        unit="dB",
        made=(Made.ENFACE,),
        in_db=True,
        intensity=True,
        display=_LEVELS,
    ),
    Modality(
        name="surf",
        meaning="tissue surface",
        unit="depth index from 0",
        made=(Made.ENFACE,),
        colours="cividis",
        tile_range="whole",
        engines_differ=1.0,
    ),
    Modality(
        name="surfraw",
        meaning="tissue surface before filtering",
        unit="depth index from 0",
        made=(Made.TILE,),
        engines_differ=1.0,
    ),
    Modality(
        name="ori",
        meaning="optic axis orientation",
        unit="degrees (-90..90]",
        made=(Made.ENFACE,),
        kind="axial",
        channels=2,
        colours="wheel",
        display=DisplayRange(-90.0, 90.0),
        tile_range=(-90.0, 90.0),
        brightness_from=("ret", "aip", "mip"),
    ),
    Modality(
        name="ret",
        meaning="mean retardance",
        unit="degrees",
        made=(Made.ENFACE,),
        channels=2,
        colours="viridis",
        display=DisplayRange(0.0, 90.0),
        tile_range=(0.0, 90.0),
    ),
    Modality(
        name="biref",
        meaning="apparent birefringence",
        unit="dimensionless",
        made=(Made.ENFACE, Made.SLICE),
        channels=2,
        colours="inferno",
        display=DisplayRange(low=0.0, least_high=1e-6, most_high=0.01),
        tile_range=(0.0, 3e-3),
        in_slice="true birefringence",
        engines_differ=1e-5,
    ),
    Modality(name="mus", meaning="attenuation coefficient", unit="1/mm", made=(Made.ENFACE,), colours="inferno"),
    Modality(
        name="mask",
        meaning="tissue mask",
        unit="1: tissue",
        made=(Made.MOSAIC, Made.HAND),
        kind="label",
        display=DisplayRange(0.0, 1.0),
    ),
    Modality(
        name="focus",
        meaning="depth shift of the A-lines of a tile",
        unit="depth samples",
        made=(Made.FIELD,),
        colours="cividis",
        header="focus: depth shift in samples",
    ),
    Modality(name="image", meaning="image", unit="as in the tiles", made=(Made.HAND,), intensity=True),
    Modality(
        name="axis",
        meaning="fibre axis",
        unit="unit vector along the image's x, y, z",
        made=(Made.SLICE,),
        kind="vector",
        channels=2,
        colours="directions",
    ),
    Modality(
        name="inplane",
        meaning="in-plane angle",
        unit="degrees",
        made=(Made.SLICE,),
        kind="axial",
        channels=2,
        colours="wheel",
        display=DisplayRange(-90.0, 90.0),
    ),
    Modality(
        name="thruplane",
        meaning="through-plane angle",
        unit="degrees",
        made=(Made.SLICE,),
        kind="axial",
        channels=2,
        colours="wheel",
        display=DisplayRange(-90.0, 90.0),
        resampled="nearest",  # it is not an angle in the image plane, and does not rotate with it
    ),
    Modality(name="uncertainty", meaning="axis standard deviation", unit="degrees", made=(Made.SLICE,), channels=2),
    Modality(name="flags", meaning="sum of AxisFlag bits", made=(Made.SLICE,), kind="label", channels=2),
)


def _table(entries: Iterable[Modality]) -> dict[str, Modality]:
    table: dict[str, Modality] = {}
    for entry in entries:
        if not entry.name.isalnum():  # names of stacks and files end with it, after an underscore
            raise ValueError(f"modality {entry.name!r}: a name has letters and digits only")
        if entry.name in table:
            raise ValueError(f"modality {entry.name!r} has two entries")
        table[entry.name] = entry
    return table


_TABLE = _table(_ENTRIES)

MODALITIES: Mapping[str, Modality] = MappingProxyType(_TABLE)
"""Every modality by its name, in the order in which lists and pictures show them."""


def described(name: str, /) -> Modality:
    """Return a modality; one that is not in the table is treated as an intensity.

    Examples
    --------
    >>> described("O3D").blend, described("my own").unit
    ('mean axis', 'as in the tiles')
    """
    known = MODALITIES.get(name)
    return known or Modality(name=name, meaning=name, unit="as in the tiles", made=(Made.HAND,), intensity=True)


def described_stack(name: str, /) -> Modality:
    """Return the modality of a stack or file, whose name ends with it after the last underscore.

    Examples
    --------
    >>> described_stack("registered_thruplane").name, described_stack("normal_ori").kind
    ('thruplane', 'axial')
    """
    return described(name.rsplit("_", 1)[-1])


def names(*made: Made) -> tuple[str, ...]:
    """Return the modalities that are made in any of these places, in the order of the table.

    Examples
    --------
    >>> names(Made.VOLUME)
    ('dBI', 'R3D', 'O3D')
    """
    return tuple(entry.name for entry in MODALITIES.values() if any(place in entry.made for place in made))


def enface_names() -> tuple[str, ...]:
    """Return the en face maps that a tile can have."""
    return names(Made.ENFACE)


def volume_names() -> tuple[str, ...]:
    """Return the volumes that a tile can have."""
    return names(Made.VOLUME)


def mosaic_names() -> tuple[str, ...]:
    """Return the 2-D maps that a mosaic can have."""
    return names(Made.ENFACE, Made.MOSAIC)


def slice_names() -> tuple[str, ...]:
    """Return the results of the registration of a slice."""
    return names(Made.SLICE)


def level_names() -> tuple[str, ...]:
    """Return the en face maps of levels in dB, which a threshold in dB turns into a mask."""
    return tuple(name for name in enface_names() if MODALITIES[name].in_db)


def comparable_names() -> tuple[str, ...]:
    """Return the en face maps that can be compared for the positions of tiles: those that are numbers, not angles."""
    return tuple(name for name in enface_names() if MODALITIES[name].kind == "scalar")


def polarized(wanted: Iterable[str], /) -> list[str]:
    """Return those of some modalities that need two polarization channels, sorted."""
    return sorted(name for name in set(wanted) if described(name).channels == 2)
