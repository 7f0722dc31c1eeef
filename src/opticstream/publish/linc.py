"""A dandiset of the LINC archive, which speaks DANDI's protocol; see `opticstream.publish.dandi`."""

from __future__ import annotations

from opticstream.publish.dandi import open_target

__all__ = ["open_target"]
