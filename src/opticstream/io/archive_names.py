"""Names of files in the archive tree, relative to it: the lab's own layout, or that of BIDS microscopy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from opticstream.model.ids import ItemId, MosaicId, SliceId
from opticstream.model.layout import AcquisitionLayout

DERIVATIVES = PurePosixPath("derivatives", "opticstream")
"""Folder of the BIDS data set of results."""
WHOLE_SAMPLE = "sample-all"
"""Name of the stacks of all slices in a BIDS data set."""
_MAPS = (".nii", ".nii.gz", ".jpg", ".png", ".tif", ".tiff", ".ome.tif", ".ome.tiff")


class ArchiveNames(Protocol):
    """Gives every file its name in the archive."""

    def tile(self, slice_id: int, tile_id: int, acq: str, suffix: str, /) -> PurePosixPath:
        """Return the name of the copy of a raw tile."""
        ...

    def result(self, item: ItemId, name: str, layout: AcquisitionLayout, /) -> PurePosixPath:
        """Return the name of a result of an item, whose file in the project is called `name`."""
        ...

    @property
    def results(self) -> PurePosixPath:
        """Folder of the subject's results."""
        ...


@dataclass(frozen=True, slots=True)
class OwnNames:
    """Names as the lab chose them.

    Examples
    --------
    >>> OwnNames("I80").tile(3, 12, "tilted", ".nii.gz").as_posix()
    'rawdata/sub-I80/sample-slice-003_chunk-0012_acq-tilted_OCT.nii.gz'
    """

    subject_id: str

    def tile(self, slice_id: int, tile_id: int, acq: str, suffix: str, /) -> PurePosixPath:
        name = f"sample-slice-{slice_id:03d}_chunk-{tile_id:04d}_acq-{acq}_OCT{suffix}"
        return PurePosixPath("rawdata", f"sub-{self.subject_id}", name)

    def result(self, item: ItemId, name: str, layout: AcquisitionLayout, /) -> PurePosixPath:
        return self.results / name

    @property
    def results(self) -> PurePosixPath:
        return PurePosixPath("derivative", f"sub-{self.subject_id}")


@dataclass(frozen=True, slots=True)
class BidsNames:
    """Names of BIDS microscopy: volumes have its suffix `OCT`; maps are called `map`, other files `data`.

    Examples
    --------
    >>> names = BidsNames("I80")
    >>> names.tile(3, 12, "tilted", ".nii.gz").as_posix()
    'sub-I80/micr/sub-I80_sample-slice003_acq-tilted_chunk-0012_OCT.nii.gz'
    """

    subject_id: str

    def tile(self, slice_id: int, tile_id: int, acq: str, suffix: str, /) -> PurePosixPath:
        stem = f"sub-{self.subject_id}_{sample_of_slice(slice_id)}_acq-{acq}_chunk-{tile_id:04d}_OCT"
        return PurePosixPath(f"sub-{self.subject_id}", "micr", f"{stem}{suffix}")

    def result(self, item: ItemId, name: str, layout: AcquisitionLayout, /) -> PurePosixPath:
        stem, dot, rest = name.partition(".")
        extension = dot + rest
        sample = self.sample(item, layout)
        acq = ""
        match item:
            case MosaicId():
                acq = f"_acq-{layout.illumination_of(item).name}"
                stem = stem.removeprefix(f"mosaic_{item.mosaic_id:03d}_")
            case SliceId():
                stem = stem.removeprefix(f"slice_{item.slice_id:03d}_")
        if extension.removesuffix(".sha256") == ".ome.zarr":
            suffix = "OCT"
        else:
            suffix = "map" if extension in _MAPS else "data"
        return self.results / f"sub-{self.subject_id}_{sample}{acq}_desc-{label(stem)}_{suffix}{extension}"

    @property
    def results(self) -> PurePosixPath:
        return DERIVATIVES / f"sub-{self.subject_id}" / "micr"

    def sample(self, item: ItemId, layout: AcquisitionLayout, /) -> str:
        """Return the sample of an item: its slice, or all of them."""
        match item:
            case MosaicId():
                return sample_of_slice(layout.slice_of(item).slice_id)
            case SliceId():
                return sample_of_slice(item.slice_id)
        return WHOLE_SAMPLE


def sample_of_slice(slice_id: int, /) -> str:
    """Return the BIDS sample of a slice.

    Examples
    --------
    >>> sample_of_slice(3)
    'sample-slice003'
    """
    return f"sample-slice{slice_id:03d}"


def label(text: str, /) -> str:
    """Return a text as a BIDS label, of letters and digits only.

    Examples
    --------
    >>> label("qc_overlap"), label("tilted_dBI"), label("focus-normal")
    ('qcOverlap', 'tiltedDBI', 'focusNormal')
    """
    first, *others = re.findall("[A-Za-z0-9]+", text) or ["result"]
    return first + "".join(one[0].upper() + one[1:] for one in others)
