"""Pictures as Prefect artifacts: Markdown that carries the picture itself, since a browser cannot see our files."""

from __future__ import annotations

import base64
import contextlib
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

LONGEST_PX = 1600
"""Longest side of a picture in an artifact; Prefect keeps every version of every artifact."""
_GAP_PX = 6
_NAME_PX = 16
"""Height of the line with a picture's name."""


def publish_image(key: str, path: Path, /, *, title: str, text: str = "") -> None:
    """Show a picture as an artifact of the current run.

    Parameters
    ----------
    key : str
        Key of the artifact: lower-case letters, digits and dashes. Later ones of the same key are its next versions.
    path : Path
        Any picture that Pillow reads.
    title, text : str
        Heading, and a text below the picture; shown as they are.
    """
    markdown = image_markdown(path, title=title, text=text)
    create_markdown_artifact(key=key, markdown=markdown, description=as_markdown(title))


def publish_picture_bytes(key: str, picture: bytes, /, *, title: str, text: str = "") -> None:
    """Show the bytes of a JPEG file as an artifact of the current run; the rest as in `publish_image`."""
    create_markdown_artifact(key=key, markdown=_markdown(picture, title, text), description=as_markdown(title))


def as_markdown(text: str, /) -> str:
    r"""Return Markdown that shows a text as it is, whatever a project's or a file's name holds.

    Examples
    --------
    >>> print(as_markdown("I55 [left] <2024_05>"))
    I55 \[left\] \<2024\_05\>
    """
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", text.replace("\n", " "))


def image_markdown(path: Path, /, *, title: str, text: str = "", longest_px: int = LONGEST_PX) -> str:
    """Return Markdown that shows a picture with heading and text, reduced to `longest_px` and held in the text itself.

    Raises
    ------
    FileNotFoundError
        There is no picture at `path`.
    """
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # Pillow's limit is for pictures of strangers; these are our own, however large
    with Image.open(path) as image:
        picture = image.convert("RGB")
    picture.thumbnail((longest_px, longest_px))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=88)
    return _markdown(stream.getvalue(), title, text)


def contact_sheet(pictures: Sequence[tuple[str, Path]], /, *, longest_px: int = LONGEST_PX) -> bytes | None:
    """Return pictures side by side with their names, as a JPEG file; None without any that can be read.

    Parameters
    ----------
    pictures : sequence of (str, Path)
        Name and file of each.
    longest_px : int
        Width of the sheet; each picture is reduced accordingly.
    """
    from PIL import Image, ImageDraw

    columns = max(1, math.ceil(math.sqrt(len(pictures))))
    side = longest_px // columns
    found: list[tuple[str, Image.Image]] = []
    for name, path in pictures:
        with contextlib.suppress(OSError), Image.open(path) as image:  # withdrawn, or being written again
            image.draft("RGB", (side, side))
            small = image.convert("RGB")
            small.thumbnail((side - _GAP_PX, side - _GAP_PX - _NAME_PX))
            found.append((name, small))
    if not found:
        return None
    row_px = max(small.height for _, small in found) + _NAME_PX + _GAP_PX
    sheet = Image.new("RGB", (side * columns, row_px * math.ceil(len(found) / columns)))
    draw = ImageDraw.Draw(sheet)
    for place, (name, small) in enumerate(found):
        x, y = side * (place % columns), row_px * (place // columns)
        draw.text((x + 2, y + 2), name, fill=(230, 230, 230))
        sheet.paste(small, (x, y + _NAME_PX))
    stream = io.BytesIO()
    sheet.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def _markdown(picture: bytes, title: str, text: str) -> str:
    data = base64.b64encode(picture).decode()
    heading = as_markdown(title)
    parts = [f"## {heading}", f"![{heading}](data:image/jpeg;base64,{data})", as_markdown(text)]
    return "\n\n".join(part for part in parts if part) + "\n"
