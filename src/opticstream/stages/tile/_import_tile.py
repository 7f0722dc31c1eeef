"""Import a recording of raw spectra, kept as plain arrays, as a raw tile with the project's file name."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opticstream.config import ProjectConfig
from opticstream.io.atomic import write_text
from opticstream.io.names import FileNameGrammar
from opticstream.io.nifti import read_nifti, write_nifti
from opticstream.io.spectra_files import Recording
from opticstream.model.errors import ConfigurationError, FileFormatError, InputError, TileSizeError
from opticstream.model.ids import TileId

LARGEST_COUNT = 65535
SIDECAR = ".import.json"


@dataclass(frozen=True, slots=True)
class Counts:
    """How values become counts: ``count = round((value - offset) / scale)``, a whole number from 0 to 65535."""

    scale: float = 1.0
    offset: float = 0.0

    def of(self, values: NDArray[np.generic], /, *, name: str = "") -> NDArray[np.uint16]:
        """Return the counts of values.

        Raises
        ------
        FileFormatError
            A count lies outside 0..65535; the message names the value.
        """
        if self == Counts() and values.dtype.kind in "iu":
            numbers = values
        else:
            numbers = np.rint((np.asarray(values, np.float64) - self.offset) / self.scale)
        low, high = numbers.min(), numbers.max()
        if low < 0 or high > LARGEST_COUNT:
            wrong = values.min() if low < 0 else values.max()
            raise FileFormatError(
                f"{name}: the value {wrong} becomes the count {int(low if low < 0 else high)} with the scale "
                f"{self.scale:g} and the offset {self.offset:g}; counts go from 0 to {LARGEST_COUNT}"
            )
        return numbers.astype(np.uint16)


@dataclass(frozen=True, slots=True)
class ImportedTile:
    """What an import made: the raw tile, and a file beside it that says where its counts come from."""

    tile: Path
    sidecar: Path
    counts: Counts
    largest_error: float
    """Largest difference between a value and what its count stands for, in the unit of the values."""


@dataclass(frozen=True, slots=True)
class RecordingFacts:
    """Size and range of a recording."""

    b_scans: int
    channels: int
    a_lines: int
    samples: int
    dtype: str
    lowest: float
    highest: float

    def counts(self) -> Counts:
        """Return how the values become counts: as they are, or spread over 0..65535 where they are no counts."""
        if np.dtype(self.dtype).kind in "iu" and self.lowest >= 0 and self.highest <= LARGEST_COUNT:
            return Counts()
        span = self.highest - self.lowest
        return Counts(span / LARGEST_COUNT if span else 1.0, self.lowest)


def facts_of_recording(recording: Recording, /) -> RecordingFacts:
    """Return size and range of a recording, which is read once.

    Raises
    ------
    FileFormatError
        A value is not finite; the message names file and place.
    """
    lowest, highest, count, shape, dtype = np.inf, -np.inf, 0, (0, 0, 0), "uint16"
    for name, scan in recording.b_scans():
        if scan.dtype.kind == "f" and not np.isfinite(scan).all():
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(scan))[0])
            raise FileFormatError(f"{name}: holds {scan[place]} at {place} (channel, A-line, sample)")
        lowest, highest = min(lowest, float(scan.min())), max(highest, float(scan.max()))
        count, shape, dtype = count + 1, scan.shape, str(scan.dtype)
    return RecordingFacts(count, *shape, dtype, lowest, highest)


def import_tile(
    recording: Recording,
    config: ProjectConfig,
    tile: TileId,
    raw_folder: Path,
    /,
    *,
    facts: RecordingFacts | None = None,
    counts: Counts | None = None,
) -> ImportedTile:
    """Write a recording as a NIfTI raw tile of counts, with a file beside it that says how they were made.

    Parameters
    ----------
    recording : Recording
        Only read.
    config : ProjectConfig
        Gives the size that the recording must have, and the file name.
    tile : TileId
        Place in the acquisition.
    raw_folder : Path
        Folder that the tile appears in, when it is complete.
    facts : RecordingFacts, optional
        Of this recording, where they are known already.
    counts : Counts, optional
        Scale and offset; by default whole numbers from 0 to 65535 stay as they are, and other values are spread over
        that range.

    Raises
    ------
    FileFormatError, TileSizeError
        The recording cannot be read, holds no numbers that can be counts, or has another size than the settings say.
    InputError
        Another raw tile stands there already; it is left as it is.
    ConfigurationError
        `scan.raw_format` is not `nifti`.
    """
    scan = config.scan
    if scan.raw_format != "nifti":
        raise ConfigurationError(f'importing writes NIfTI tiles, but scan.raw_format = "{scan.raw_format}"')
    facts = facts or facts_of_recording(recording)
    index = scan.layout.illumination_index(tile.mosaic)
    a_lines, b_lines = scan.tile_shape(index)
    expected = (b_lines, scan.channels, a_lines, scan.samples)
    found = (facts.b_scans, facts.channels, facts.a_lines, facts.samples)
    if found != expected:
        turned = (facts.b_scans, facts.channels, facts.samples, facts.a_lines) == expected
        raise TileSizeError(
            f"{recording.source} holds an array of shape {found}, expected {expected}: scan.b_lines, scan.channels, "
            f"scan.illuminations[{index}].a_lines, scan.samples" + ("; --transpose turns it" if turned else "")
        )
    chosen = counts or facts.counts()
    # On disk the sample varies fastest, as (samples, A-lines, channels, B-lines) does in NIfTI's order.
    array = np.empty(expected, np.uint16)
    largest_error = 0.0
    for number, (name, values) in enumerate(recording.b_scans()):
        array[number] = chosen.of(values, name=name)
        told = array[number] * chosen.scale + chosen.offset
        largest_error = max(largest_error, float(np.abs(told - np.asarray(values, np.float64)).max()))
    grammar = FileNameGrammar(scan.file_name, scan.layout)
    target = raw_folder / grammar.name_from_tile(tile, project=config.name, subject=config.project.subject_id)
    if not _stands_already(target, array):
        write_nifti(target, array.T, description="raw spectra, counts")
    sidecar = target.with_name(target.name + SIDECAR)
    content = {
        "source": os.path.abspath(recording.source),
        "files": [path.name for path in recording.files],
        "recording": asdict(facts),
        "count": "round((value - offset) / scale)",
        "scale": chosen.scale,
        "offset": chosen.offset,
        "largest_error": largest_error,
    }
    write_text(sidecar, json.dumps(content, indent=1) + "\n")
    return ImportedTile(target, sidecar, chosen, largest_error)


def _stands_already(target: Path, array: NDArray[np.uint16]) -> bool:
    """Return whether the tile is there with these very counts; a tile with others is refused, not replaced."""
    if not target.exists():
        return False
    present = read_nifti(target)
    if present.shape == array.T.shape and np.array_equal(present, array.T):
        return True
    raise InputError(f"{target}: another raw tile stands there and is left as it is; give another folder or --tile")
