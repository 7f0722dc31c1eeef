"""The files that make an archive tree a BIDS microscopy data set: tables of participants and samples, descriptions.

The raw tiles are a data set, and the results are a derivative data set inside it, each with all of these files. Several
projects may share an archive, and several processes may publish at once, so a table is updated under a lock: rows are
added, kept in order, and never removed, and columns that people have added stay. A file whose content does not change
is not written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opticstream.config.publish_layout import BidsLayout
from opticstream.io.archive_names import DERIVATIVES, WHOLE_SAMPLE
from opticstream.io.atomic import write_text
from opticstream.io.packed import PACKED_SUFFIXES
from opticstream.model.errors import FileFormatError
from opticstream.system.locks import locked

BIDS_VERSION = "1.11.1"
_LOCK = ".opticstream.lock"
_LOCK_PATIENCE_S = 120.0
_MISSING = "n/a"
_RAW_IGNORED = (
    *(f"**/*_OCT.{raw}{suffix}" for raw in ("nii", "raw") for suffix in PACKED_SUFFIXES),
    *("**/*_OCT.json", "**/*.sha256", "rawdata/", "derivative/"),
)
"""BIDS knows neither NIfTI nor zip files in microscopy. The folders are those of the other layout."""
_RESULTS_IGNORED = ("**/*_map.*", "**/*_data.*", "**/*.sha256")
_TABLES = {"participants.tsv": 1, "samples.tsv": 2}
"""Number of columns that identify a row."""


@dataclass(frozen=True)
class BidsDataset:
    """The data set of one archive tree, as one project sees it."""

    root: Path
    """Folder of the archive."""
    subject_id: str
    name: str
    """Name of the data set."""
    version: str
    """Version of this package."""
    settings: BidsLayout

    def update(self, sample: str, /) -> None:
        """Have both data sets be complete, with this subject and a sample of it.

        Raises
        ------
        FileFormatError
            A table or description that is there cannot be read; it is not changed.
        TimeoutError
            Another process has held the lock for two minutes.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root / _LOCK, timeout_s=_LOCK_PATIENCE_S):
            self._update_one(self.root, None if sample == WHOLE_SAMPLE else sample, "raw", _RAW_IGNORED)
            self._update_one(self.root / DERIVATIVES, sample, "derivative", _RESULTS_IGNORED)

    def files(self, *, results: bool) -> Iterator[Path]:
        """Yield the files that exist, of the data set of raw tiles and, with `results`, of that of results."""
        folders = [self.root, self.root / DERIVATIVES] if results else [self.root]
        names = ("dataset_description.json", "README.md", ".bidsignore", *_TABLES)
        yield from (folder / name for folder in folders for name in names if (folder / name).is_file())

    def _update_one(self, folder: Path, sample: str | None, kind: str, ignored: Sequence[str]) -> None:
        settings = self.settings
        participant = {"participant_id": f"sub-{self.subject_id}"}
        described = participant | ({"species": settings.species} if settings.species else {})
        _add_row(folder / "participants.tsv", described)
        if sample is not None:
            _add_row(folder / "samples.tsv", {"sample_id": sample, **participant, "sample_type": settings.sample_type})
        own: dict[str, Any] = {
            "Name": self.name if kind == "raw" else f"{self.name}: results",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": kind,
            "GeneratedBy": [{"Name": "OpticStream", "Version": self.version}],
        }
        if settings.authors:
            own["Authors"] = list(settings.authors)
        if settings.license:
            own["License"] = settings.license
        _describe(folder / "dataset_description.json", own)
        _ignore(folder / ".bidsignore", ignored)
        if not (folder / "README.md").exists():
            write_text(folder / "README.md", _readme(self.name, kind))


def write_sidecar(file: Path, content: Mapping[str, Any], /) -> Path:
    """Write the sidecar of a file of the data set and return its path."""
    return _write_if_new(sidecar_of(file), json.dumps(dict(content), indent=1) + "\n")


def sidecar_of(file: Path, /) -> Path:
    """Return the path of the sidecar of a file.

    Examples
    --------
    >>> sidecar_of(Path("sub-1_sample-a_desc-dBI_OCT.ome.zarr")).name
    'sub-1_sample-a_desc-dBI_OCT.json'
    """
    return file.with_name(file.name.partition(".")[0] + ".json")


def pixel_size(size_um: Sequence[float], /) -> dict[str, Any]:
    """Return the fields of a sidecar for a voxel size along x, y and z in micrometres."""
    return {"PixelSize": [float(f"{size:.6g}") for size in size_um], "PixelSizeUnits": "um"}


def place_of_chunk(offset_um: Sequence[float], /) -> dict[str, Any]:
    """Return the fields of a sidecar for the place of a tile in its sample, along x, y and z in micrometres."""
    matrix = [[float(row == column) for column in range(4)] for row in range(4)]
    for row, offset in zip(matrix, offset_um, strict=False):
        row[3] = float(f"{offset:.9g}")
    return {"ChunkTransformationMatrix": matrix, "ChunkTransformationMatrixAxis": ["X", "Y", "Z"]}


def _add_row(path: Path, row: Mapping[str, str]) -> None:
    """Add a row to a table unless it is there; a row that is there keeps what people have filled in."""
    columns, rows = _read_table(path)
    columns += [name for name in row if name not in columns]
    identity = list(row)[: _TABLES[path.name]]
    known = {tuple(one.get(name, _MISSING) for name in identity): one for one in rows}
    found = known.setdefault(tuple(row[name] for name in identity), {})
    for name, value in row.items():
        if found.get(name, _MISSING) == _MISSING:
            found[name] = value
    lines = ["\t".join(columns)]
    lines += ["\t".join(one.get(name, _MISSING) for name in columns) for _, one in sorted(known.items())]
    _write_if_new(path, "\n".join(lines) + "\n")


def _read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    text = _text_of(path)
    if not text.strip():
        return [], []
    header, *lines = (line.rstrip("\r").split("\t") for line in text.rstrip("\n").split("\n"))
    for number, line in enumerate(lines, start=2):
        if len(line) != len(header):
            raise FileFormatError(f"{path}, line {number}: has {len(line)} columns, expected {len(header)}: {header}")
    return header, [dict(zip(header, line, strict=True)) for line in lines]


def _describe(path: Path, own: Mapping[str, Any]) -> None:
    """Write a description; fields that people have added stay."""
    text = _text_of(path)
    try:
        known = json.loads(text) if text.strip() else {}
        content = {**known, **own}
    except (ValueError, TypeError) as error:
        raise FileFormatError(f"{path}: is no JSON object ({error}); mend or remove it") from error
    _write_if_new(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _ignore(path: Path, patterns: Sequence[str]) -> None:
    known = _text_of(path).splitlines()
    _write_if_new(path, "\n".join([*known, *(one for one in patterns if one not in known)]) + "\n")


def _readme(name: str, kind: str) -> str:
    method = "polarization-sensitive optical coherence tomography (OCT)"
    if kind == "raw":
        what = (
            f"Raw tiles of {method}: one file for each tile, with its SHA-256. Tiles are chunks of a sample, which is "
            "one slice of the subject; `acq` names the illumination."
        )
    else:
        what = (
            f"Results of {method}, made by OpticStream from the raw tiles: volumes (`_OCT.ome.zarr`), maps (`_map`) "
            "and further data (`_data`) of each slice; `sample-all` is all slices."
        )
    return f"# {name}\n\n{what}\n"


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: is not UTF-8 text ({error}); mend or remove it") from error


def _write_if_new(path: Path, text: str) -> Path:
    try:
        same = path.read_bytes() == text.encode()
    except FileNotFoundError:
        same = False
    return path if same else write_text(path, text)
