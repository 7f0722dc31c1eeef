"""Captions of quality pictures: text on a dark strip of its own, so that no pixel of the picture is covered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opticstream.io.pictures import Picture

Colour = tuple[int, int, int]
Words = tuple[str, Colour]

TEXT: Colour = (230, 230, 230)
_STRIP: Colour = (24, 24, 24)
_SIZE_PX = 13
_LINE_PX = 18
_EDGE_PX = 6


def with_lines_below(picture: Picture, lines: Sequence[Sequence[Words]], /) -> Picture:
    """Return a picture (rows, columns, 3) with lines of text below it, each of words in their colours."""
    return np.concatenate(_of_one_width([picture, _strip(lines)]))


def with_title(picture: Picture, title: str, /) -> Picture:
    """Return a picture (rows, columns, 3) with a line of text above it."""
    return np.concatenate(_of_one_width([_strip([[(title, TEXT)]]), picture]))


def _strip(lines: Sequence[Sequence[Words]]) -> Picture:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=_SIZE_PX)
    width = max(sum(int(font.getlength(text)) + 1 for text, _ in line) for line in lines) + 2 * _EDGE_PX
    strip = Image.new("RGB", (width, len(lines) * _LINE_PX + _EDGE_PX), _STRIP)
    draw = ImageDraw.Draw(strip)
    for row, line in enumerate(lines):
        x = float(_EDGE_PX)
        for text, colour in line:
            draw.text((x, row * _LINE_PX + _EDGE_PX / 2), text, fill=colour, font=font)
            x += font.getlength(text)
    return np.asarray(strip)


def _of_one_width(parts: Sequence[Picture]) -> list[Picture]:
    width = max(part.shape[1] for part in parts)
    wide = []
    for part in parts:
        whole = np.full((part.shape[0], width, 3), _STRIP, np.uint8)
        whole[:, : part.shape[1]] = part
        wide.append(whole)
    return wide
