"""Keys of earlier versions: they are still read, with a note that names the new keys."""

from __future__ import annotations

import logging
from typing import Any

from opticstream.model.errors import ConfigurationError

_log = logging.getLogger("opticstream.config")
_told: set[tuple[str, str]] = set()
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}

STITCHING_MASK = "processing.mask.mask_file_type"
USE_MASK = "processing.registration.use_mask"
ALIGN_LEASH = "processing.sample.align_leash"
COORDINATES = "processing.coordinates"
OLD_FUNCTION = "processing.engine.functions.thruplane_registration"


def with_new_keys(data: Any, /, *, source: str) -> Any:
    """Replace keys of earlier versions in nested tables by those of today, in place, and return the tables.

    `processing.mask.mask_file_type` chose the map for the mask of the stitched results, which the registration used as
    well; `processing.registration.use_mask` said whether it did. `processing.sample.align_leash` is now
    `align_pullback`, `processing.engine.functions.thruplane_registration` is `fibre_axes`.
    `processing.coordinates.method = "fiji"` with a `tile_configuration` took positions from that file, as `"file"` does
    today. If a file has both an old key and its new one, the new one is used.
    """
    processing = data.get("processing") if isinstance(data, dict) else None
    if not isinstance(processing, dict):
        return data
    sample = processing.get("sample")
    if isinstance(sample, dict) and "align_leash" in sample:
        value = sample.pop("align_leash")
        sample.setdefault("align_pullback", value)
        _note(source, f"{ALIGN_LEASH} has a new name: align_pullback in [processing.sample]")
    engine = processing.get("engine")
    functions = engine.get("functions") if isinstance(engine, dict) else None
    if isinstance(functions, dict) and "thruplane_registration" in functions:
        value = functions.pop("thruplane_registration")
        functions.setdefault("fibre_axes", value)
        _note(source, f"{OLD_FUNCTION} has a new name: fibre_axes")
    _with_new_coordinates(processing.get("coordinates"), source)
    registration = processing.get("registration", {})
    if isinstance(registration, dict) and "use_mask" in registration:
        used = _truth(registration.pop("use_mask"), source)
        if not used:
            registration.setdefault("mask_file_type", "")
        now = "remove it" if used else 'write mask_file_type = "" in [processing.registration] instead'
        _note(source, f"{USE_MASK} is a key of earlier versions: {now}")
    mask = processing.get("mask")
    if isinstance(mask, dict) and "mask_file_type" in mask:
        value = mask.pop("mask_file_type")
        mask.setdefault("made_from", value)
        registration = processing.setdefault("registration", {})
        if isinstance(registration, dict):
            registration.setdefault("mask_file_type", value)
        shown = f'"{value}"' if isinstance(value, str) else repr(value)
        _note(
            source,
            f"{STITCHING_MASK} = {shown} is a key of earlier versions and still works; write "
            f"made_from = {shown} in [processing.mask] (the mask of the stitched results) and "
            f"mask_file_type = {shown} in [processing.registration] (the mask for the registration) instead",
        )
    return data


def _with_new_coordinates(coordinates: Any, source: str) -> None:
    if not isinstance(coordinates, dict) or "tile_configuration" not in coordinates:
        return
    method = coordinates.get("method", "native")
    if method == "fiji":
        coordinates["method"] = "file"
        _note(
            source,
            f'{COORDINATES}.method = "fiji" now runs Fiji; to take positions from tile_configuration write '
            'method = "file"',
        )
    elif method in ("native", "nominal"):
        del coordinates["tile_configuration"]
        _note(source, f'{COORDINATES}.tile_configuration is not used with method = "{method}": remove it')


def _truth(value: Any, source: str) -> bool:
    text = str(value).strip().lower()
    if text in _TRUE | _FALSE:
        return text in _TRUE
    raise ConfigurationError(f"{source}: {USE_MASK}: expected true or false (got {value!r})")


def _note(source: str, text: str) -> None:
    """Log a note on an old key, once for each file and process."""
    if (source, text) not in _told:
        _told.add((source, text))
        _log.warning("%s: %s", source, text)
