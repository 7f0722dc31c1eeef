"""Settings of the names in the archive tree: the lab's own, or those of a BIDS microscopy data set."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from opticstream.config.base import Settings

SampleType = Literal[
    "cell line",
    "in vitro differentiated cells",
    "primary cell",
    "cell-free sample",
    "cloning host",
    "tissue",
    "whole organisms",
    "organoid",
    "technical sample",
]


class OpticStreamLayout(Settings):
    """`rawdata/` and `derivative/`, a file for each result."""

    kind: Literal["opticstream"] = "opticstream"
    """Name of this choice."""


class BidsLayout(Settings):
    """A BIDS microscopy data set (`micr/`) of the raw tiles, and one of the results in `derivatives/opticstream/`."""

    kind: Literal["bids"] = "bids"
    """Name of this choice."""
    dataset_name: str = ""
    """Name of the data set; default: that of the project."""
    authors: tuple[str, ...] = ()
    """Authors of the data set."""
    license: str = ""
    """Licence of the data set, such as `CC-BY-4.0`."""
    species: str = ""
    """Species of the subject, such as `homo sapiens`."""
    sample_type: SampleType = "tissue"
    """What the sample is, in the words of BIDS."""


def _from_its_kind(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


PublishLayout = Annotated[
    Annotated[OpticStreamLayout | BidsLayout, Field(discriminator="kind")], BeforeValidator(_from_its_kind)
]
"""The settings of one layout; its kind alone stands for its defaults."""
