"""Pictures as Prefect artifacts: Markdown that carries the picture itself, since a browser cannot see our files."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

LONGEST_PX = 1600
"""Longest side of a picture in an artifact; Prefect keeps every version of every artifact."""


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
    data = base64.b64encode(stream.getvalue()).decode()
    heading = as_markdown(title)
    parts = [f"## {heading}", f"![{heading}](data:image/jpeg;base64,{data})", as_markdown(text)]
    return "\n\n".join(part for part in parts if part) + "\n"
