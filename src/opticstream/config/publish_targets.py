"""Settings of the remote targets of a project's results: one class for each kind of target.

The kind is also the name of the module that implements it: `opticstream.publish.s3` is the target of kind ``s3``.
Credentials are never part of the settings, only the name under which they are found.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from opticstream.config.base import Settings
from opticstream.config.publish_layout import OpticStreamLayout, PublishLayout

What = Literal["raw", "derivatives"]


class PublishTargetSettings(Settings):
    """Settings that every kind of remote target has."""

    kind: str
    """Kind of the target."""
    name: str = Field(default="", pattern=r"^[a-z0-9_]*$")
    """Name under which the project records what the target holds; default: the kind. Lower-case letters, digits and
    `_`."""
    what: Annotated[tuple[What, ...], Field(min_length=1)] = ("raw", "derivatives")
    """What it receives: `raw` (archive copies of raw tiles), `derivatives` (maps, volumes, slices), or both."""
    credentials: str = Field(default="", pattern=r"^[a-z0-9-]*$")
    """Name of the secret with its credentials, as in `opticstream secrets set NAME`: lower-case letters, digits and
    `-`. Never the credentials themselves."""

    @property
    def target_name(self) -> str:
        """Name of the target, unique in the project."""
        return self.name or self.kind

    @property
    def key_variable(self) -> str:
        """Environment variable, known to the kind's own tools, that has the credentials if no secret has; or empty."""
        return ""

    @property
    def page(self) -> str:
        """Address of the page on which people see what the target holds; empty where there is none."""
        return ""


class S3TargetSettings(PublishTargetSettings):
    """Objects in a bucket of Amazon S3 or of any server that speaks its protocol.

    The secret is `ACCESS_KEY:SECRET_KEY`. Without `credentials`, boto3 finds them as usual (`AWS_ACCESS_KEY_ID`,
    `~/.aws/credentials`).
    """

    kind: Literal["s3"] = "s3"
    """Kind of the target."""
    endpoint: str = ""
    """Address of the server, such as `https://s3.example.org`; default: Amazon."""
    region: str = "us-east-1"
    """Region of the bucket."""
    bucket: str = Field(min_length=3, max_length=255, pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the bucket, which must exist."""
    prefix: str = ""
    """Folder in the bucket, such as `i80/dandiset`; default: the bucket itself."""

    @field_validator("endpoint")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        return _address(value, "https://s3.example.org") if value else value

    @field_validator("prefix")
    @classmethod
    def _is_a_folder(cls, value: str) -> str:
        folder = value.strip("/")
        if any(part in ("", ".", "..") for part in folder.split("/")) and folder:
            raise ValueError("expected a folder such as i80/dandiset, without empty parts, `.` and `..`")
        return folder


class ArchiveTargetSettings(PublishTargetSettings):
    """A dandiset of an archive that speaks DANDI's protocol.

    The secret is the key that the archive's page shows to its user.
    """

    dandiset: str = Field(pattern=r"^[0-9]{6}$")
    """Number of the dandiset, which must exist, such as `"000123"`. Files go to its draft version."""
    api: str
    """Address of the archive's API."""

    @field_validator("api")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        return _address(value, "https://api.dandiarchive.org/api")

    @property
    def key_variable(self) -> str:
        """Variable in which the `dandi` client looks for the key."""
        return f"{self.kind.upper()}_API_KEY"

    @property
    def page(self) -> str:
        """Address of the dandiset's page; empty where that does not follow from the address of the API.

        Examples
        --------
        >>> DandiTargetSettings(dandiset="000123").page
        'https://dandiarchive.org/dandiset/000123/draft/files'
        """
        address = urlsplit(self.api)
        if not address.netloc.startswith("api."):
            return ""
        return f"{address.scheme}://{address.netloc.removeprefix('api.')}/dandiset/{self.dandiset}/draft/files"


class DandiTargetSettings(ArchiveTargetSettings):
    """A dandiset of the DANDI archive, or of another instance of it. A store (`.ome.zarr`) is one asset.

    The secret is the key that the archive's page shows to its user. Without `credentials`, it is in `DANDI_API_KEY`.
    """

    kind: Literal["dandi"] = "dandi"
    """Kind of the target."""
    api: str = "https://api.dandiarchive.org/api"
    """Address of the archive's API; `https://api.sandbox.dandiarchive.org/api` is the one for trials."""


class LincTargetSettings(ArchiveTargetSettings):
    """A dandiset of the LINC archive, which speaks DANDI's protocol. A store (`.ome.zarr`) is one asset.

    The secret is the key that the archive's page shows to its user. Without `credentials`, it is in `LINC_API_KEY`.
    """

    kind: Literal["linc"] = "linc"
    """Kind of the target."""
    api: str = "https://api.lincbrain.org/api"
    """Address of the archive's API."""


PublishTarget = Annotated[S3TargetSettings | DandiTargetSettings | LincTargetSettings, Field(discriminator="kind")]
"""The settings of one target."""


class PublishSettings(Settings):
    """Where results are uploaded, besides the local archive tree, which always has them."""

    layout: PublishLayout = OpticStreamLayout()
    """Names in the archive tree: `opticstream` (`rawdata/`, `derivative/`) or `bids` (BIDS microscopy)."""
    targets: tuple[PublishTarget, ...] = ()
    """Remote targets; a result is `uploaded` when every one that receives it holds it."""

    clean_up: bool = False
    """Remove maps, volumes and complex data of tiles once every target holds the mosaic and its raw tiles, verified.
    Raw tiles and the archive tree are never touched. `opticstream upload clean-up` does it once."""

    @model_validator(mode="after")
    def _with_names_of_their_own(self) -> Self:
        names = [target.target_name for target in self.targets]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"{names.count(repeated[0])} targets have the name {repeated[0]!r}; give each a `name` of its own"
            )
        return self

    def receiving(self, what: What, /) -> tuple[PublishTarget, ...]:
        """Return the targets that receive raw tiles, or derivatives."""
        return tuple(target for target in self.targets if what in target.what)


def _address(value: str, example: str) -> str:
    """Return an address of a server without a slash at its end; raise ValueError if it is none."""
    try:
        parts = urlsplit(value)
        user, host, _port = parts.username or parts.password, parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"expected an address such as {example}") from None
    if user:  # the value is not repeated: it has a secret in it
        raise ValueError("must not contain a user or a password; use `credentials`")
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"expected an address such as {example}")
    return value.rstrip("/")
