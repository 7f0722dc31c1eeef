"""What `opticstream server` sets, says and refuses before it starts."""

from __future__ import annotations

import pytest

from opticstream.config import DeploymentSettings
from opticstream.flows.shared_server import (
    DATABASE,
    SERVER_AUTH,
    check_role,
    environment_of,
    settings_of_shared_server,
    warning_of_open_address,
)
from opticstream.model.errors import ConfigurationError

SECRET = "s3kr1t"


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    """Returns what is chosen with variables of ours, and what Prefect's variables are given."""

    def choose(given=None, **values):
        for name, value in values.items():
            monkeypatch.setenv(f"OPTICSTREAM_{name}", value)
        return settings_of_shared_server(tmp_path, given or {}, DeploymentSettings())

    return choose


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_a_database_of_several_processes_is_not_migrated_by_each_of_them(chosen, scheme):
    settings = chosen(DATABASE_URL=f"{scheme}://optic:{SECRET}@db:5432/prefect?ssl=require")
    assert settings[DATABASE].value == f"postgresql+asyncpg://optic:{SECRET}@db:5432/prefect?ssl=require"
    assert settings["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"].value == "false"
    assert settings["PREFECT_SERVER_REGISTER_BLOCKS_ON_START"].value == "false"


def test_a_database_on_this_host_needs_no_password(chosen):
    settings = chosen(DATABASE_URL="postgresql://optic@/prefect?host=/run/postgresql")
    assert settings[DATABASE].value == settings[DATABASE].shown
    assert settings[DATABASE].value == "postgresql+asyncpg://optic@/prefect?host=/run/postgresql"


def test_a_database_in_a_file_is_migrated_by_its_server(chosen):
    assert "PREFECT_SERVER_DATABASE_MIGRATE_ON_START" not in chosen(DATABASE_URL="sqlite:////srv/prefect.db")


def test_prefects_page_asks_the_server_that_it_came_from(chosen):
    """By default it asks port 4200 of the computer of whoever looks at it."""
    assert chosen()["PREFECT_SERVER_UI_API_URL"].value == "/api"


def test_redis_gets_three_databases_from_the_one_that_is_named(chosen):
    settings = chosen(REDIS_URL=f"rediss://:{SECRET}@db:6380/4")
    values = {name: setting.value.rpartition("/")[2] for name, setting in settings.items() if "URL" in name}
    del values["PREFECT_SERVER_UI_API_URL"]
    assert values == {
        "PREFECT_REDIS_MESSAGING_URL": "4",
        "PREFECT_SERVER_DOCKET_URL": "5",
        "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL": "6",
    }
    assert settings["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].value == "prefect_redis.lease_storage"


def test_what_is_shown_and_what_remains_of_ours_holds_no_secret(chosen, monkeypatch):
    settings = chosen(
        API_AUTH=f"optic:{SECRET}",
        DATABASE_URL=f"postgresql://optic:{SECRET}@db/prefect",
        REDIS_URL=f"redis://:{SECRET}@db",
    )
    assert SECRET not in str([(name, setting.shown, setting.why) for name, setting in settings.items()])
    environment = environment_of(settings)
    assert environment[SERVER_AUTH] == f"optic:{SECRET}"
    assert not [name for name, value in environment.items() if name.startswith("OPTICSTREAM_") and SECRET in value]


def test_what_a_person_has_set_for_prefect_wins(chosen):
    given = {DATABASE: "sqlite+aiosqlite:///x.db", SERVER_AUTH: "a:b"}
    settings = chosen(given, API_AUTH="c:d", DATABASE_URL="postgresql://h/d")
    assert not given.keys() & settings.keys()
    assert "PREFECT_SERVER_DATABASE_MIGRATE_ON_START" not in settings


@pytest.mark.parametrize(
    ("name", "value"),
    [("DATABASE_URL", f"mysql://optic:{SECRET}@db/prefect"), ("DATABASE_URL", f"postgresql://optic:{SECRET}@db"),
     ("DATABASE_URL", f"postgresql://optic:{SECRET}/x@db:54x/prefect"), ("DATABASE_URL", f"optic:{SECRET}@db"),
     ("REDIS_URL", f"http://:{SECRET}@db"), ("REDIS_URL", f"redis://:{SECRET}@db/x")],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_refused_without_its_password(chosen, name, value):
    with pytest.raises(ConfigurationError, match=f"OPTICSTREAM_{name}") as caught:
        chosen(**{name: value})
    shown = str(caught.value)
    assert SECRET not in shown.replace(value, "") if "://" not in value else SECRET not in shown


@pytest.mark.parametrize("role", ["api", "services"])
def test_a_part_of_a_server_names_what_it_lacks(chosen, role):
    with pytest.raises(ConfigurationError, match=f"--role {role}.*OPTICSTREAM_DATABASE_URL.*OPTICSTREAM_REDIS_URL"):
        check_role(role, environment_of(chosen()))
    check_role(role, environment_of(chosen(DATABASE_URL="postgresql://h/d", REDIS_URL="redis://h")))
    check_role("all", environment_of(chosen()))


@pytest.mark.parametrize(
    ("host", "auth", "warned"),
    [("0.0.0.0", "", True), ("10.0.0.1", "", True), ("server.lab", "", True), ("::", "", True),
     ("10.0.0.1", "a:b", False), ("127.0.0.1", "", False), ("::1", "", False), ("localhost", "", False)],
)  # fmt: skip
def test_a_server_that_others_reach_without_a_password_is_warned_of(host, auth, warned):
    warning = warning_of_open_address(host, {SERVER_AUTH: auth} if auth else {})
    assert bool(warning) == warned
    assert warning is None or "OPTICSTREAM_API_AUTH" in warning
