"""Settings of the targets of notifications: one class for each kind of target.

The kind is also the name of the module that implements it: `opticstream.notify.file` is the target of kind ``file``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from opticstream.config.base import Settings
from opticstream.config.hours import HOURS
from opticstream.config.lists import list_from_text
from opticstream.config.secrets import secret_in_file
from opticstream.model.errors import ConfigurationError

Level = Literal["info", "warning", "failure"]
"""How urgent a message is: `failure` requires action, `warning` a check."""


class NotifyTargetSettings(Settings):
    """Settings that every kind of target has."""

    kind: str
    """Kind of the target."""
    name: str = Field(default="", pattern=r"^[a-z0-9_]*$")
    """Name under which the project records what was sent to the target; default: the kind. Lower-case letters, digits
    and `_`."""
    level: Level = "info"
    """Least urgent messages that it receives: `info` all, `warning` what is to be checked, `failure` what requires
    action."""
    every_s: float = Field(default=0.0, ge=0.0, le=86_400.0)
    """Time between two messages, in seconds; what happens meanwhile comes together in the next one. 0: a message for
    each. A failure waits only for an earlier failure."""
    quiet_hours: str = Field(default="", pattern=f"{HOURS}|^$")
    """When less urgent messages wait, such as `22:00-07:00`, in the local time of the host; they come together at the
    end. Empty: never."""
    quiet_level: Literal["warning", "failure", "none"] = "failure"
    """Least urgent messages that are sent during quiet hours all the same; `none`: all wait."""

    @property
    def target_name(self) -> str:
        """Name of the target, unique on this host."""
        return self.name or self.kind


class LogTargetSettings(NotifyTargetSettings):
    """A line in the log of the flow run, and on the terminal of `run` and `watch`."""

    kind: Literal["log"] = "log"
    """Kind of the target."""


class FileTargetSettings(NotifyTargetSettings):
    """A line of JSON appended to a file, for programs that follow it."""

    kind: Literal["file"] = "file"
    """Kind of the target."""
    path: Path = Path("milestones.jsonl")
    """The file; relative paths start at the folder of the project. Several projects may share one file."""


class SlackTargetSettings(NotifyTargetSettings):
    """A channel of Slack: through an app with a bot token, which can show pictures, or through an incoming webhook.

    The app needs the scopes `chat:write` and, for pictures, `files:write`, and must be a member of the channel.
    """

    kind: Literal["slack"] = "slack"
    """Kind of the target."""
    every_s: float = Field(default=30.0, ge=0.0, le=86_400.0)
    """Time between two messages, in seconds; what happens meanwhile comes together in the next one."""
    channel: str = Field(default="", pattern=r"^([CDG][A-Z0-9]{6,20})?$")
    """ID of the channel, such as `C0123456789` (at the end of the channel's details in Slack), not its name. A webhook
    has a channel already."""
    token: SecretStr | None = None
    """Bot token (`xoxb-...`)."""
    token_file: Path | None = None
    """File that holds it instead, on one line."""
    webhook: SecretStr | None = None
    """Address of an incoming webhook, which shows no pictures."""
    webhook_file: Path | None = None
    """File that holds it instead, on one line."""
    pictures: bool = True
    """Upload the pictures of mosaics and slices (with a bot token)."""
    api_url: str = Field(default="https://slack.com/api/", pattern=r"^https?://[^@\s]+$")
    """Address of Slack's API."""

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        given = [name for name in ("token", "token_file", "webhook", "webhook_file") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "expected one of `token`, `token_file`, `webhook` and `webhook_file`, "
                f"got {' and '.join(given) or 'none of them'}"
            )
        if given[0].startswith("token") and not self.channel:
            raise ValueError("`channel` is missing; expected the ID of the channel, such as C0123456789")
        return self


class AppriseTargetSettings(NotifyTargetSettings):
    """E-mail, Teams, Telegram, Matrix, ntfy or any other service that the library Apprise knows by an address."""

    kind: Literal["apprise"] = "apprise"
    """Kind of the target."""
    every_s: float = Field(default=60.0, ge=0.0, le=86_400.0)
    """Time between two messages, in seconds; what happens meanwhile comes together in the next one."""
    url: SecretStr | None = None
    """Address, such as `mailtos://user:password@example.org?to=me@example.org`; Apprise's wiki lists them. It holds a
    secret and is never shown."""
    url_file: Path | None = None
    """File that holds it instead, on one line."""
    pictures: bool = True
    """Attach the pictures of mosaics and slices, where the service takes them."""

    @model_validator(mode="after")
    def _one_address(self) -> Self:
        if (self.url is None) == (self.url_file is None):
            raise ValueError("expected one of `url` and `url_file`")
        return self


NotifyTarget = Annotated[
    LogTargetSettings | FileTargetSettings | SlackTargetSettings | AppriseTargetSettings, Field(discriminator="kind")
]
"""The settings of one target. Add a new kind of target to this union."""


def target_secret(settings: NotifyTargetSettings, name: str, /) -> str:
    """Return a secret of a target, from its setting, or from the file that the setting of that name with `_file` names.

    Raises
    ------
    ConfigurationError
        The file cannot be read; the message names target and setting.
    """
    value: SecretStr | None = getattr(settings, name)
    if value is None:
        where = f"`{name}_file` of target {settings.target_name} (OPTICSTREAM_NOTIFY_TARGETS)"
        value = secret_in_file(getattr(settings, f"{name}_file"), where)
    if not (text := value.get_secret_value().strip()):
        raise ConfigurationError(f"`{name}` of target {settings.target_name} is empty (OPTICSTREAM_NOTIFY_TARGETS)")
    return text


def kinds_with_secrets() -> frozenset[str]:
    """Return the kinds of targets with a secret among their settings.

    Examples
    --------
    >>> sorted(kinds_with_secrets())
    ['apprise', 'slack']
    """
    kinds: tuple[type[NotifyTargetSettings], ...] = get_args(get_args(NotifyTarget)[0])
    return frozenset(
        str(kind.model_fields["kind"].default)
        for kind in kinds
        if any(SecretStr in get_args(field.annotation) for field in kind.model_fields.values())
    )


def _from_text(value: Any) -> Any:
    """Return the list that an environment variable holds, as JSON or TOML."""
    expected = 'a list of targets in JSON or TOML, such as [{"kind": "log"}, {"kind": "file"}]'
    return list_from_text(value, expected=expected)


def _with_names_of_their_own(targets: tuple[NotifyTargetSettings, ...]) -> tuple[NotifyTargetSettings, ...]:
    names = [target.target_name for target in targets]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{names.count(repeated[0])} targets have the name {repeated[0]!r}; give each a `name` of its own"
        )
    for target in targets:
        if target.target_name == "log" and target.kind != "log":
            raise ValueError(f"a target of kind {target.kind!r} cannot have the name 'log'; give it another `name`")
    return targets


NotifyTargets = Annotated[
    tuple[NotifyTarget, ...], BeforeValidator(_from_text), AfterValidator(_with_names_of_their_own)
]
"""The targets of a host, each with a name of its own."""
