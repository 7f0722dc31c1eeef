"""Decode text with byte-order marks, other encodings and any line ends."""

from __future__ import annotations

import codecs

from opticstream.model.errors import FileFormatError

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_CONTROL = frozenset(range(32)) - frozenset(b"\t\n\r\f\v\x1a")


def text_from_bytes(content: bytes, /, *, name: str, other_encodings: bool = False) -> str:
    r"""Return the text of a file, with ``\n`` at the end of every line and no byte-order mark.

    Parameters
    ----------
    content : bytes
        The whole file.
    name : str
        Its name, for messages.
    other_encodings : bool, default False
        Also take UTF-16 and UTF-32 with a byte-order mark, and Windows-1252 (which includes Latin-1) for text that is
        not UTF-8. Otherwise UTF-8 is expected, with or without a mark.

    Raises
    ------
    FileFormatError
        The text is in another encoding, or the file is not text; the message names the encoding and what to do.

    Examples
    --------
    >>> text_from_bytes(b"\xef\xbb\xbfdim = 2\r\n", name="a.txt")
    'dim = 2\n'
    >>> text_from_bytes("Präparat".encode("latin-1"), name="a.txt", other_encodings=True)
    'Präparat'
    >>> text_from_bytes("# Präparat".encode("latin-1"), name="p.toml")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    opticstream.model.errors.FileFormatError: p.toml, line 1: is not UTF-8 text but seems to be Windows-1252 ...
    """
    encoding, spelt = next(((codec, word) for mark, codec, word in _MARKS if content.startswith(mark)), ("utf-8", ""))
    if spelt not in ("", "UTF-8") and not other_encodings:
        raise FileFormatError(f"{name}: is {spelt} text, expected UTF-8; save it as UTF-8")
    if not spelt and 0 in content:
        wide = _wide_text(content)
        if wide is None:
            raise FileFormatError(f"{name}: is not text: it contains NUL bytes")
        if not other_encodings:
            raise FileFormatError(f"{name}: is UTF-16 text without a byte-order mark, expected UTF-8; save it as UTF-8")
        return _with_plain_line_ends(wide)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if spelt:
            raise FileFormatError(f"{name}: begins like {spelt} text, but is not valid: {error.reason}") from error
        line = content[: error.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n") + 1
        if _CONTROL.intersection(content):
            raise FileFormatError(f"{name}: is not text: byte {error.start} is {content[error.start]:#04x}") from error
        if not other_encodings:
            raise FileFormatError(
                f"{name}, line {line}: is not UTF-8 text but seems to be Windows-1252 or Latin-1 "
                f"(byte {content[error.start]:#04x}); save it as UTF-8"
            ) from error
        text = "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in content)
    if "\0" in text:
        raise FileFormatError(f"{name}: is not text: it contains NUL characters")
    return _with_plain_line_ends(text)


def _with_plain_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _wide_text(content: bytes) -> str | None:
    """Return UTF-16 text without a byte-order mark, recognised by a NUL in its first character; None for other text."""
    if 0 not in content[:2]:
        return None
    encoding = "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        return None
    return None if any(ord(character) in _CONTROL for character in text) else text
