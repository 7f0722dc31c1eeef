"""Stages bound to a project: each takes its settings from the project file and its files from the project's folders."""

from __future__ import annotations

from opticstream.stages.project._mosaic_stages import MosaicStages

__all__ = ["MosaicStages"]
