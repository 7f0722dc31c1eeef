"""Why a tile cannot be processed: a kind, and a text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, model_validator

from opticstream.model.errors import DuplicateTileError, InputError, MissingInputError
from opticstream.model.ids import TileId

TileProblemKind = Literal["missing", "duplicate", "unusable"]

_ERRORS: dict[TileProblemKind, type[InputError]] = {
    "missing": MissingInputError,
    "duplicate": DuplicateTileError,
    "unusable": InputError,
}


class TileProblem(BaseModel):
    """A tile that cannot be processed.

    A plain string is read as a problem of the kind `unusable`, because earlier versions announced no kind; so is an
    unknown kind.

    Examples
    --------
    >>> TileProblem.model_validate("two files")
    TileProblem(kind='unusable', text='two files')
    """

    model_config = ConfigDict(frozen=True)

    kind: TileProblemKind
    """`missing`: it has no file; `duplicate`: it has several files; `unusable`: anything else."""
    text: str
    """What is wrong, where, and what to do."""

    @model_validator(mode="before")
    @classmethod
    def _of_other_versions(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"kind": "unusable", "text": value}
        if isinstance(value, dict) and value.get("kind") not in get_args(TileProblemKind):
            return value | {"kind": "unusable"}
        return value

    @classmethod
    def of_claimants(cls, tile: TileId, names: Iterable[str], keep_one: str, /) -> TileProblem:
        """Return the problem of a tile with several files; `keep_one` says where, and by which setting."""
        claimed = sorted(names)
        text = f"tile {tile.tile_id} of {tile.mosaic}: {len(claimed)} files have its name: {', '.join(claimed)}; "
        return cls(kind="duplicate", text=text + f"keep one in {keep_one}")

    def __str__(self) -> str:
        return self.text

    def error(self) -> InputError:
        """Return the error to raise when the tile is processed."""
        return _ERRORS[self.kind](self.text)
