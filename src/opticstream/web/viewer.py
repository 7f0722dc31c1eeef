"""The files of the viewer of volumes: the client of Neuroglancer's Python package as it was built."""

from __future__ import annotations

CLIENT = "neuroglancer-2.41.2"
"""Folder of the viewer among the static files."""
STYLE = "main.8608d1fc21b22785.css"
SCRIPTS = (
    "822.a6ba03f3494c48e3.js", "213.57c390ab08d910be.js", "205.6bc228e2e1fdba68.js", "191.746a2dd720c8bead.js",
    "main.8608d1fc21b22785.js",
)  # fmt: skip
"""What the page loads, in this order; these load the rest."""
DECODERS = frozenset({f"/static/{CLIENT}/790.ccf548b371b08271.js", f"/static/{CLIENT}/412.4af3eaa266e16091.js"})
"""Scripts that run as workers, without the page, and decompress; the decompressor makes functions from text."""
