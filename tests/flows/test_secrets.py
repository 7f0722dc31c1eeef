"""Secrets of remote targets are kept by the server, and the environment comes first."""

from __future__ import annotations

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

pytestmark = pytest.mark.server


def test_a_secret_is_kept_replaced_listed_by_name_and_overridden_by_the_environment(prefect_server, monkeypatch):
    from opticstream.flows.secrets import keep_secret, secret_names, secret_of

    with temporary_settings({PREFECT_API_URL: prefect_server}):
        assert secret_of("lab-of-the-test") is None
        keep_secret("lab-of-the-test", "KEY:first")
        keep_secret("lab-of-the-test", "KEY:second")
        assert secret_of("lab-of-the-test") == "KEY:second"
        assert "lab-of-the-test" in secret_names()
        monkeypatch.setenv("OPTICSTREAM_SECRET_LAB_OF_THE_TEST", "KEY:own")
        assert secret_of("lab-of-the-test") == "KEY:own"
