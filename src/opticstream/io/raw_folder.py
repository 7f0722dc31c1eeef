"""Find the raw files in the folder of a rig, and what their names mean. Only reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from opticstream.io.names import FileNameGrammar
from opticstream.model.errors import FileNameError, InputError, MissingInputError
from opticstream.model.ids import TileId
from opticstream.model.layout import AcquisitionLayout


class RawNames:
    """The meaning of raw file names: the tile, and whether the file holds the spectra beside a complex tile.

    Parameters
    ----------
    file_name : str
        Template of the raw files, as in `scan.file_name`.
    spectral_file_name : str or None
        Template of spectra beside complex tiles, as in `scan.spectral_file_name`.
    layout : AcquisitionLayout
        The tiles of the acquisition.

    Examples
    --------
    >>> from opticstream.model.layout import IlluminationLayout
    >>> layout = AcquisitionLayout((IlluminationLayout("normal", 4, 3),))
    >>> names = RawNames("mosaic_{mosaic:03d}_image_{tile:04d}.nii", "mosaic_{mosaic:03d}_raw_{tile:04d}.nii", layout)
    >>> names.meaning("day 2/mosaic_001_image_0007.nii"), names.meaning("mosaic_001_raw_0007.nii")
    ((TileId(mosaic_id=1, tile_id=7), False), (TileId(mosaic_id=1, tile_id=7), True))
    >>> names.meaning("notes.txt") is None
    True
    """

    def __init__(self, file_name: str, spectral_file_name: str | None, layout: AcquisitionLayout, /) -> None:
        self.grammars = {False: FileNameGrammar(file_name, layout)}
        """Grammar of the raw files, and with the key True that of the spectra, if the rig writes them."""
        if spectral_file_name is not None:
            self.grammars[True] = FileNameGrammar(spectral_file_name, layout)

    def meaning(self, name: str, /) -> tuple[TileId, bool] | None:
        """Return the tile of a file, and whether it holds the spectra beside a complex tile; None for other files.

        Parameters
        ----------
        name : str
            Path relative to the raw folder.

        Raises
        ------
        FileNameError
            The name matches a template but contradicts the layout, or is in a folder whose name events cannot contain.
        """
        for is_spectra, grammar in self.grammars.items():
            tile = grammar.tile_from_name(name.rpartition("/")[2])
            if tile is None:
                continue
            if not _is_utf8(name):
                raise FileNameError("the name of its folder is not valid UTF-8 and cannot be sent in events; rename it")
            return tile, is_spectra
        return None


def raw_files_below(
    folder: Path, /, *, on_folder: Callable[[str], object] = lambda _name: None
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield every file below a folder by its relative path, including linked folders, each folder once.

    Names that begin with a dot are skipped, and so are subfolders that cannot be read.

    Parameters
    ----------
    folder : Path
        The folder.
    on_folder : callable
        Takes the relative path of each folder below.

    Raises
    ------
    MissingInputError, InputError
        The folder does not exist, or cannot be read.
    """
    folders = [("", str(folder))]
    seen: set[tuple[int, int]] = set()
    while folders:
        prefix, path = folders.pop()
        try:
            with os.scandir(path) as entries:
                if _was_seen(path, seen):
                    continue
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        on_folder(prefix + entry.name)
                        # Links come last, so that a folder is listed with its own name rather than that of a link.
                        place = 0 if entry.is_symlink() else len(folders)
                        folders.insert(place, (f"{prefix}{entry.name}/", entry.path))
                    else:
                        yield prefix + entry.name, entry
        except FileNotFoundError:
            if not prefix:
                raise MissingInputError(f"{folder}: no such folder; expected the folder of the raw files") from None
        except OSError as error:
            if not prefix:
                raise InputError(f"{folder}: cannot be read: {error.strerror}") from error


def _was_seen(path: str, seen: set[tuple[int, int]]) -> bool:
    """Return whether a folder was already searched under another name, and note it."""
    status = os.stat(path)
    key = (status.st_dev, status.st_ino)
    if key in seen:
        return status.st_ino != 0
    seen.add(key)
    return False


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one; a loop of links is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False
