"""One Prefect server for all tests of this folder: own home, free port, gone with the session."""

import pytest


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """Yield the address of the API of a server of our own."""
    from opticstream.flows.server import EmbeddedServer

    with EmbeddedServer(tmp_path_factory.mktemp("prefect")) as server:
        yield server.api_url
