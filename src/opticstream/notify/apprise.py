"""Send milestones by e-mail, or to any other service that the library Apprise knows by an address."""

from __future__ import annotations

import logging
import re
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from opticstream.config.notify_targets import AppriseTargetSettings, target_secret
from opticstream.model.errors import ConfigurationError
from opticstream.notify.milestone import Milestone
from opticstream.notify.pictures import small_pictures
from opticstream.notify.target import RetryLater, Target, TargetContext

_BUSY_WAIT_S = 60.0
"""Time for which a service is left alone that answers 429; Apprise does not hand on how long it asks to wait."""


class AppriseTarget:
    """Sends each milestone to the service of an address; see `Target`."""

    def __init__(self, name: str, url: str, /, *, pictures: bool = True) -> None:
        from apprise import Apprise

        self.name = name
        self._url = url
        self._pictures = pictures
        self._service = Apprise()
        if not self._service.add(url):
            raise ConfigurationError(
                f"target {name}: Apprise does not understand its address, which is not shown here; expected one such "
                "as mailtos://user:password@example.org?to=me@example.org (https://github.com/caronc/apprise/wiki)"
            )

    def tell(self, milestone: Milestone, /) -> None:
        """Send subject, text and pictures.

        Raises
        ------
        RetryLater
            The service is busy.
        ConnectionError
            The service did not take it; the message has what Apprise says about it, without the address.
        """
        from apprise import LogCapture, NotifyType

        kinds = {"info": NotifyType.INFO, "warning": NotifyType.WARNING, "failure": NotifyType.FAILURE}
        links = "".join(f"\n{link.title}: {link.url}" for link in milestone.links)
        capture: Any = LogCapture  # without types
        with tempfile.TemporaryDirectory(prefix="opticstream-") as folder, capture(level=logging.WARNING) as log:
            paths = []
            for name, data in small_pictures(milestone) if self._pictures else []:
                paths.append(Path(folder, name))
                paths[-1].write_bytes(data)
            taken = self._service.notify(
                body=f"{milestone.text}{links}",
                title=f"{milestone.project}: {milestone.title}",
                notify_type=kinds[milestone.level],
                attach=[str(path) for path in paths] or None,
            )
            said = " ".join(log.getvalue().split())
        if taken:
            return
        said = self._without_secrets(said)[-400:] or "no reason is given"
        if re.search(r"\b429\b", said):
            raise RetryLater(said, wait_s=_BUSY_WAIT_S)
        raise ConnectionError(f"the service did not take it: {said}")

    def _without_secrets(self, text: str) -> str:
        """Return a text without the parts of the address, any of which may be a secret."""
        for part in sorted(set(re.split(r"[/:@?&=]+", self._url)), key=len, reverse=True):
            if len(part) >= 4:
                text = text.replace(part, "***").replace(unquote(part), "***")
        return text


def open_target(settings: AppriseTargetSettings, _context: TargetContext, /) -> Target:
    """Return the target that settings of kind `apprise` name.

    Raises
    ------
    ConfigurationError
        The file with the address cannot be read, or Apprise does not understand the address.
    """
    return AppriseTarget(settings.target_name, target_secret(settings, "url"), pictures=settings.pictures)
