"""The grammar of raw file names: a template with named fields maps names to tile ids, and back."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, field

from opticstream.model.errors import ConfigurationError, FileNameError
from opticstream.model.ids import MosaicId, SliceId, TileId
from opticstream.model.layout import AcquisitionLayout

_NUMBERS = frozenset({"slice", "mosaic", "batch", "tile", "running", "n"})
_WORDS = frozenset({"project", "subject", "illumination", "acq"})


@dataclass(frozen=True)
class FileNameGrammar:
    """Reads and writes raw file names by a template.

    Fields: `tile` (in its mosaic), `mosaic`, `slice`, `batch`, `illumination` (or `acq`), `running` (1-based over all
    mosaics), `n` (any number, ignored), `project` and `subject` (any word, ignored). A format such as ``:03d`` sets the
    padding when writing; reading takes any number of digits.

    Parameters
    ----------
    template : str
        For example ``mosaic_{mosaic:03d}_image_{tile:04d}_spectral_{n:04d}.nii``.
    layout : AcquisitionLayout
        Grids, which map fields to ids and limit them.

    Examples
    --------
    >>> from opticstream.model.layout import IlluminationLayout
    >>> layout = AcquisitionLayout((IlluminationLayout("normal", 4, 3), IlluminationLayout("tilted", 4, 3)))
    >>> grammar = FileNameGrammar("sub-{subject}_slice{slice}_chunk-{tile}_acq-{acq}_spectral.nii", layout)
    >>> grammar.tile_from_name("sub-I55_slice2_chunk-7_acq-tilted_spectral.nii")
    TileId(mosaic_id=4, tile_id=7)
    >>> grammar.tile_from_name("notes.txt") is None
    True
    """

    template: str
    layout: AcquisitionLayout
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _fields: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            parts = list(string.Formatter().parse(self.template))
        except ValueError as error:
            raise ConfigurationError(f"scan.file_name: {self.template!r} is not a valid template: {error}") from error
        pattern, seen = "", set[str]()
        for literal, name, _format, _conversion in parts:
            pattern += re.escape(literal)
            if name is None:
                continue
            if name not in _NUMBERS | _WORDS:
                raise ConfigurationError(
                    f"scan.file_name: {self.template!r} has the field {{{name}}}; expected one of "
                    f"{sorted(_NUMBERS | _WORDS)}"
                )
            if name in seen:
                pattern += f"(?P={name})"
            else:
                pattern += f"(?P<{name}>{r'[0-9]+' if name in _NUMBERS else r'[A-Za-z0-9.+-]+?'})"
            seen.add(name)
        fields = frozenset(seen)
        one_mosaic_known = "mosaic" in fields or (
            "slice" in fields and (fields & {"illumination", "acq"} or len(self.layout.illuminations) == 1)
        )
        if "running" not in fields and not ("tile" in fields and one_mosaic_known):
            raise ConfigurationError(
                f"scan.file_name: {self.template!r} does not identify a tile; it needs {{running}}, or {{tile}} with "
                f"{{mosaic}}, or {{tile}} with {{slice}} and {{acq}}"
            )
        object.__setattr__(self, "_pattern", re.compile(pattern))
        object.__setattr__(self, "_fields", fields)

    def tile_from_name(self, name: str, /) -> TileId | None:
        """Return the tile that a file name means, or None if the name does not match the template.

        Raises
        ------
        FileNameError
            The name matches the template but contradicts the layout: a tile outside the grid, an unknown
            illumination, or fields that contradict each other.
        """
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        value = match.groupdict()
        number = {key: int(text) for key, text in value.items() if key in _NUMBERS}
        try:
            tile = self._tile(number, value.get("illumination") or value.get("acq"))
            self._check(tile, number, value)
        except ValueError as error:
            raise FileNameError(f"{name}: {error} (scan.file_name = {self.template!r})") from error
        return tile

    def _tile(self, number: dict[str, int], illumination: str | None) -> TileId:
        if "running" in number:
            return self.layout.tile_from_running_number(number["running"])
        if "mosaic" in number:
            return TileId(number["mosaic"], number["tile"])
        index = 0 if illumination is None else self._illumination_index(illumination)
        return TileId(self.layout.mosaic(SliceId(number["slice"]), index).mosaic_id, number["tile"])

    def _illumination_index(self, name: str) -> int:
        names = [i.name for i in self.layout.illuminations]
        if name not in names:
            raise ValueError(f"unknown illumination {name!r}; expected one of {names}")
        return names.index(name)

    def _check(self, tile: TileId, number: dict[str, int], value: dict[str, str]) -> None:
        grid = self.layout.illumination_of(tile.mosaic)
        if tile.tile_id > grid.tiles:
            raise ValueError(
                f"tile {tile.tile_id} is outside the {grid.columns} x {grid.rows} grid of the {grid.name} illumination"
            )
        facts = self._values(tile)
        for key, stated in number.items():
            if key != "n" and stated != facts[key]:
                raise ValueError(f"{key} {stated} contradicts {tile}, which has {key} {facts[key]}")
        for key in ("illumination", "acq"):
            if value.get(key, facts[key]) != facts[key]:
                raise ValueError(f"{key} {value[key]!r} contradicts {tile}, which is {facts[key]!r}")

    def _values(self, tile: TileId) -> dict[str, int | str]:
        name = self.layout.illumination_of(tile.mosaic).name
        return {
            "slice": self.layout.slice_of(tile.mosaic).slice_id,
            "mosaic": tile.mosaic_id,
            "batch": self.layout.batch_of(tile).batch_id,
            "tile": tile.tile_id,
            "running": self.layout.running_number(tile),
            "illumination": name,
            "acq": name,
        }

    def name_from_tile(self, tile: TileId, /, *, n: int = 0, project: str = "project", subject: str = "01") -> str:
        """Return the file name of a tile.

        Raises
        ------
        FileNameError
            The tile is outside the grid.
        """
        if tile.tile_id > self.layout.illumination_of(MosaicId(tile.mosaic_id)).tiles:
            raise FileNameError(f"{tile} lies outside the grid of {self.layout.illumination_of(tile.mosaic)}")
        return self.template.format(**self._values(tile), n=n, project=project, subject=subject)
