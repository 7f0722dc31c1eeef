"""Types of settings that take the name of a modality; values are checked against the table of modalities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from opticstream.model.modalities import (
    comparable_names,
    enface_names,
    level_names,
    volume_names,
)


@dataclass(frozen=True, slots=True)
class OneOf:
    """Annotation of text that must be one of some names; others are refused as by `Literal`."""

    choices: Callable[[], tuple[str, ...]]
    """Returns the accepted names."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self.choices())}

    def _checked(self, value: str) -> str:
        choices = self.choices()
        if value in choices:
            return value
        *others, last = (repr(choice) for choice in choices)
        expected = f"{', '.join(others)} or {last}" if others else last
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})


def _further_maps() -> tuple[str, ...]:
    return tuple(name for name in comparable_names() if name != FIRST_COMPARED)


def _levels_or_none() -> tuple[str, ...]:
    return (*level_names(), "")


FIRST_COMPARED = "aip"
"""The map that is always used to find the positions of tiles, before any further ones."""

EnfaceModality = Annotated[str, OneOf(enface_names)]
VolumeModality = Annotated[str, OneOf(volume_names)]
FurtherModality = Annotated[str, OneOf(_further_maps)]
LevelModality = Annotated[str, OneOf(_levels_or_none)]
"""A map of levels in dB, or empty."""
