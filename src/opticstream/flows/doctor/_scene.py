"""What the checks look at, each part of it looked up once and only when a check needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import httpx

from opticstream.config import DeploymentSettings, ProjectConfig, load_project
from opticstream.flows.contact import Contact, look_at_server
from opticstream.flows.pool_state import api_client, pools_at
from opticstream.flows.pools import POOLS
from opticstream.flows.server import is_healthy, server_record
from opticstream.flows.surroundings import credentials_header
from opticstream.model.errors import ConfigurationError, OpticStreamError, ServerError

Need = Literal["server", "project"]
_TIMEOUT_S = 8.0


@dataclass
class Scene:
    """The host as it is set up, its server, and a project.

    Parameters
    ----------
    settings : DeploymentSettings
        Those of this host.
    project : str, optional
        Project file, or name of a registered project.
    is_file : bool
        Whether `project` is a file.
    pools : tuple of str
        Pools that the host is to serve.
    look : callable
        Looks at a server.
    """

    settings: DeploymentSettings
    project: str | None = None
    is_file: bool = False
    pools: tuple[str, ...] = POOLS
    look: Callable[[str, Mapping[str, str]], Contact] = look_at_server
    headers: dict[str, str] = field(default_factory=credentials_header)

    def has(self, need: Need, /) -> bool:
        """Return whether something is there that a check needs."""
        if need == "server":
            return self.contact is not None and self.contact.state == "ready"
        return self.project is not None and isinstance(self.config_or_error, ProjectConfig)

    @cached_property
    def home(self) -> Path | None:
        """Folder of our settings on this host; None for an account without a home."""
        try:
            return self.settings.home.expanduser().absolute()
        except RuntimeError:
            return None

    @cached_property
    def api_url(self) -> str | None:
        """Address of the server: the configured one, else that of the one that runs in the home folder."""
        if self.settings.api_url:
            return self.settings.api_url
        record = None if self.home is None else server_record(self.home)
        return record.api_url if record is not None and is_healthy(record.api_url) else None

    @cached_property
    def contact(self) -> Contact | None:
        """What answers at the server's address; None where none is set."""
        return None if self.api_url is None else self.look(self.api_url, self.headers)

    @cached_property
    def work_pools(self) -> dict[str, Any]:
        """The server's work pools by name."""
        assert self.api_url is not None
        return pools_at(self.api_url, headers=self.headers, timeout_s=_TIMEOUT_S)

    @cached_property
    def deployments(self) -> list[dict[str, Any]]:
        """The server's deployments of this package."""
        found: list[dict[str, Any]] = []
        query: dict[str, Any] = {"deployments": {"tags": {"all_": ["opticstream"]}}, "limit": 200}
        while page := self.ask("POST", "/deployments/filter", query | {"offset": len(found)}):
            found += page
            if len(page) < query["limit"]:
                break
        return found

    def ask(self, method: str, path: str, body: Any = None, /) -> Any:
        """Return what the server answers to a request; None for what it does not have."""
        assert self.api_url is not None
        with api_client(self.api_url, self.headers, timeout_s=_TIMEOUT_S) as client:
            answer = client.request(method, path, json=body)
            if answer.status_code == httpx.codes.NOT_FOUND:
                return None
            return answer.raise_for_status().json()

    @cached_property
    def config_or_error(self) -> ProjectConfig | OpticStreamError:
        """The parameters of the project, or why they cannot be read."""
        assert self.project is not None
        try:
            if self.is_file:
                return load_project(Path(self.project), path_map=self.settings.path_map)
            found = self.registered(self.project)
        except OpticStreamError as error:
            return error
        return found or ConfigurationError(f"project {self.project!r} is neither a file nor registered at the server")

    @property
    def config(self) -> ProjectConfig:
        """The parameters of the project."""
        assert isinstance(self.config_or_error, ProjectConfig)
        return self.config_or_error

    def registered(self, name: str, /) -> ProjectConfig | None:
        """Return the parameters that are registered under a name; None where there are none.

        Raises
        ------
        ServerError
            There is no server to ask.
        """
        if not self.has("server"):
            raise ServerError(
                f"there is no server to ask for project {name!r}; name its file, or see the check `server`"
            )
        assert self.api_url is not None
        from prefect.settings import PREFECT_API_URL, temporary_settings

        from opticstream.flows.parameters import registered_parameters

        with temporary_settings({PREFECT_API_URL: self.api_url}):
            return registered_parameters(name)
