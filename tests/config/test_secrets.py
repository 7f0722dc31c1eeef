"""Secrets come from a variable or a file, and no message shows one."""

from __future__ import annotations

import pytest

from opticstream.config import DeploymentSettings
from opticstream.config.secrets import has_password, without_password
from opticstream.model.errors import ConfigurationError

SECRET = "s3kr1t"


@pytest.mark.parametrize("name", ["API_AUTH", "DATABASE_URL", "REDIS_URL"])
def test_a_secret_is_read_from_a_file_without_its_line_end(name, tmp_path, monkeypatch):
    (tmp_path / "secret").write_text(f"optic:{SECRET}\r\n")
    monkeypatch.setenv(f"OPTICSTREAM_{name}_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv(f"OPTICSTREAM_{name}", "")  # as a compose file passes what is not set
    settings = DeploymentSettings()
    assert settings.secret(name.lower()) == (f"optic:{SECRET}", f"OPTICSTREAM_{name}_FILE")
    assert SECRET not in repr(settings)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"a:b\nc:d\n", b"\xff\xfe"])
def test_a_file_that_holds_no_secret_is_named_with_its_setting(content, tmp_path, monkeypatch):
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("OPTICSTREAM_API_AUTH_FILE", str(path))
    with pytest.raises(ConfigurationError, match=f"OPTICSTREAM_API_AUTH_FILE = {path}: the file .*one line"):
        DeploymentSettings().secret("api_auth")


def test_two_places_of_one_secret_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTICSTREAM_API_AUTH", f"a:{SECRET}")
    monkeypatch.setenv("OPTICSTREAM_API_AUTH_FILE", str(tmp_path / "x"))
    with pytest.raises(ConfigurationError, match="both set") as caught:
        DeploymentSettings()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OPTICSTREAM_API_AUTH", SECRET), ("OPTICSTREAM_API_URL", f"http://optic:{SECRET}@host:4200/api"),
     ("OPTICSTREAM_API_AUTH", f":{SECRET}"), ("OPTICSTREAM_TILE_LIMIT", f"http://optic:{SECRET}@host")],
)  # fmt: skip
def test_a_wrong_value_that_may_hold_a_password_is_not_shown(variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=variable) as caught:
        DeploymentSettings().secret("api_auth")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("password", [SECRET, f"{SECRET}/@", f"{SECRET}?x", f"a@{SECRET}", f"a:{SECRET}", f"#{SECRET}"])
def test_no_password_is_shown_whatever_characters_it_holds(password):
    for url in (f"postgresql://optic:{password}@db:5432/prefect", f"redis://:{password}@db"):
        assert SECRET not in without_password(url)
        assert has_password(url)
