"""Send milestones to a channel of Slack, with their pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from http.client import HTTPException
from typing import Any

from opticstream.config.notify_targets import SlackTargetSettings, target_secret
from opticstream.notify.milestone import Milestone
from opticstream.notify.pictures import small_pictures
from opticstream.notify.target import RetryLater, Target, TargetContext

_TIMEOUT_S = 10
"""Longest wait for one answer, in seconds."""
_SHORT_WAIT_S = 5.0
"""Longest time for which a message waits on the spot when Slack asks for patience, in seconds."""
_DEFAULT_WAIT_S = 30.0
_MOST_CHARACTERS = 3500
_SIGNS = {"info": ":large_blue_circle:", "warning": ":warning:", "failure": ":red_circle:"}


class SlackTarget:
    """Sends each milestone to a channel as an app; see `Target`.

    Parameters
    ----------
    name : str
        Name of the target.
    settings : SlackTargetSettings
        Its settings, with a bot token.
    token : str
        The bot token; no error shows it.
    """

    def __init__(self, name: str, settings: SlackTargetSettings, token: str, /) -> None:
        from slack_sdk import WebClient

        self.name = name
        self._settings = settings
        self._token = token
        base_url = settings.api_url.rstrip("/") + "/"
        self._client = WebClient(token=token, base_url=base_url, timeout=_TIMEOUT_S, retry_handlers=[])

    def tell(self, milestone: Milestone, /) -> None:
        """Send the text and the pictures in one message; pictures that Slack refuses are left out, with a remark.

        Raises
        ------
        RetryLater
            Slack asks for more time between messages.
        ConnectionError
            Slack cannot be reached, or refuses the message.
        """
        text = text_of(milestone)
        pictures = small_pictures(milestone) if self._settings.pictures else []
        if pictures:
            refused = self._upload(text, pictures)
            if refused is None:
                return
            text += f"\n(without its pictures: {refused})"
        self._call(lambda: self._client.chat_postMessage(channel=self._settings.channel, text=text, unfurl_links=False))

    def _upload(self, text: str, pictures: list[tuple[str, bytes]]) -> str | None:
        """Send a message with pictures; return why Slack does not take the pictures, None where it has."""
        files = [{"filename": name, "title": name, "content": data} for name, data in pictures]
        try:
            self._call(
                lambda: self._client.files_upload_v2(
                    channel=self._settings.channel, initial_comment=text, file_uploads=files
                )
            )
        except _Refused as error:
            return str(error)
        return None

    def _call(self, send: Callable[[], Any]) -> None:
        """Call Slack, once more where it asks for a few seconds of patience."""
        from slack_sdk.errors import SlackApiError, SlackRequestError

        for is_last in (False, True):
            try:
                send()
                return
            except SlackApiError as error:
                response: Any = error.response
                if response.status_code != 429:
                    raise _Refused(f"Slack answers {response.get('error', response.status_code)!r}") from None
                wait_s = _wait_s(response.headers)
            except (SlackRequestError, OSError, HTTPException, ValueError) as error:
                raise ConnectionError(self._without_token(f"{self._settings.api_url}: {error}")) from None
            if is_last or wait_s > _SHORT_WAIT_S:
                raise RetryLater(f"Slack asks to wait {wait_s:.0f} s", wait_s=wait_s)
            time.sleep(wait_s)

    def _without_token(self, text: str) -> str:
        return text.replace(self._token, "***")


class SlackWebhook:
    """Sends each milestone through an incoming webhook, without pictures; see `Target`."""

    def __init__(self, name: str, url: str, /) -> None:
        from slack_sdk.webhook import WebhookClient

        self.name = name
        self._url = url
        self._client = WebhookClient(url, timeout=_TIMEOUT_S, retry_handlers=[])

    def tell(self, milestone: Milestone, /) -> None:
        """Send the text.

        Raises
        ------
        RetryLater
            Slack asks for more time between messages.
        ConnectionError
            Slack cannot be reached, or refuses the message.
        """
        try:
            response = self._client.send(text=text_of(milestone))
        except (OSError, HTTPException, ValueError) as error:
            raise ConnectionError(f"the webhook: {error}".replace(self._url, "***")) from None
        if response.status_code == 429:
            wait_s = _wait_s(response.headers)
            raise RetryLater(f"Slack asks to wait {wait_s:.0f} s", wait_s=wait_s)
        if response.status_code != 200:
            said = " ".join(response.body.split())[:200].replace(self._url, "***")
            raise ConnectionError(f"the webhook answers {response.status_code}: {said}")


class _Refused(ConnectionError):
    """Slack has understood the request and refused it."""


def text_of(milestone: Milestone, /) -> str:
    r"""Return a milestone as text in Slack's markup.

    Examples
    --------
    >>> print(text_of(Milestone("k", "a<b", None, "stitched", "mosaic 1", "mosaic 1: stitched")))
    :large_blue_circle: *a&lt;b*  mosaic 1: stitched
    """
    text = escaped(milestone.text)
    many = "\n" in text
    first = f"{_SIGNS[milestone.level]} *{escaped(milestone.project)}*  {escaped(milestone.title) if many else text}"
    links = [f"<{escaped(link.url)}|{escaped(link.title)}>" for link in milestone.links]
    body = "\n".join([first, *([text] if many else []), *links])
    return body if len(body) <= _MOST_CHARACTERS else body[: _MOST_CHARACTERS - 4] + " ..."


def escaped(text: str, /) -> str:
    """Return a text with the three characters escaped that Slack reads as markup.

    Examples
    --------
    >>> escaped("a < b & c")
    'a &lt; b &amp; c'
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _wait_s(headers: Any) -> float:
    """Return the time that an answer asks to wait, in seconds."""
    found = {str(key).lower(): value for key, value in dict(headers).items()}.get("retry-after", _DEFAULT_WAIT_S)
    try:
        return max(0.0, float(found[0] if isinstance(found, list) else found))
    except (TypeError, ValueError, IndexError):
        return _DEFAULT_WAIT_S


def open_target(settings: SlackTargetSettings, _context: TargetContext, /) -> Target:
    """Return the target that settings of kind `slack` name.

    Raises
    ------
    ConfigurationError
        The file with the secret cannot be read.
    """
    if settings.webhook is not None or settings.webhook_file is not None:
        return SlackWebhook(settings.target_name, target_secret(settings, "webhook"))
    return SlackTarget(settings.target_name, settings, target_secret(settings, "token"))
