"""Secrets of a host: in a variable, or in a file that a variable names. No message and no representation shows one."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import SecretStr

from opticstream.model.errors import ConfigurationError

_MOST_CHARACTERS = 4096


def secret_in_file(path: Path, variable: str, /) -> SecretStr:
    """Return the secret in a file, without the line end that an editor has put there.

    Such a file is what systemd's ``LoadCredential`` and a container's secrets give a process.

    Raises
    ------
    ConfigurationError
        There is no such file, it cannot be read, is empty, or holds more than one line; the message names `variable`.
    """
    said = f"{variable} = {path}"
    try:
        with path.expanduser().open(encoding="utf-8") as file:
            text = file.read(_MOST_CHARACTERS + 1).strip("\r\n")
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(f"{said}: the file cannot be read ({reason}); expected one line with it") from error
    except UnicodeDecodeError:
        raise ConfigurationError(f"{said}: the file is no text; expected one line") from None
    if not text.strip():
        raise ConfigurationError(f"{said}: the file is empty; expected one line")
    if "\n" in text or "\r" in text or len(text) > _MOST_CHARACTERS:
        raise ConfigurationError(f"{said}: the file holds more than one line; expected one line")
    return SecretStr(text)


def without_password(url: str, /) -> str:
    """Return an address with stars in place of its password, for people to read.

    Examples
    --------
    >>> without_password("postgresql://optic:s3/c@ret@db:5432/prefect?password=x&ssl=require")
    'postgresql://optic:***@db:5432/prefect?password=***&ssl=require'
    >>> without_password("redis://db:6379")
    'redis://db:6379'
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    rest = re.sub(r"((?:^|[?&])[^=&?@]*password=)[^&]*", r"\1***", rest, flags=re.IGNORECASE)
    # To the last @, since a password may hold any character where somebody has not written it as %40 and the like.
    who, at, where = rest.rpartition("@")
    user, colon, _password = who.partition(":")
    return f"{scheme}://{user}{':***' if colon else ''}{at}{where}"


def has_password(url: str, /) -> bool:
    """Return whether an address holds a password.

    Examples
    --------
    >>> has_password("postgresql://optic@db/prefect"), has_password("postgresql://optic:x@db/prefect")
    (False, True)
    """
    return without_password(url) != url
