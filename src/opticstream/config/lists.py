"""Lists of tables in an environment variable, as JSON or TOML."""

from __future__ import annotations

import json
import tomllib
from typing import Any


def list_from_text(value: Any, /, *, expected: str) -> Any:
    """Return the list that an environment variable holds, as JSON or TOML; what is no text is returned as it is.

    Parameters
    ----------
    value
        The text.
    expected : str
        What should stand there, with an example, for the error.

    Raises
    ------
    ValueError
        It is neither.

    Examples
    --------
    >>> list_from_text('[{ kind = "log" }]', expected="a list")
    [{'kind': 'log'}]
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        pass
    try:
        tables = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        tables = {}
    if set(tables) != {"value"}:
        raise ValueError(f"expected {expected}")
    return tables["value"]
