"""The compose file: valid, with commands and settings that exist, secrets in files, and services that wait."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tests.deploy.conftest import DEPLOY, assert_command, settings_of

from opticstream.config.path_map import path_here
from opticstream.flows.pools import POOLS
from opticstream.flows.workers import checked_pools

FILE = DEPLOY / "compose.yaml"
TEXT = FILE.read_text()
VARIABLES = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", (DEPLOY / "compose.env.example").read_text(), re.MULTILINE))


def interpolated(text: str, given: dict[str, str]) -> str:
    """Return a text with `${NAME:-default}` filled in, as Compose does it."""
    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", lambda found: given.get(found[1]) or found[2] or "", text)


COMPOSE: dict[str, Any] = yaml.safe_load(interpolated(TEXT, {}))
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("opticstream:")}
LONG = [name for name, service in SERVICES.items() if service["restart"] != "no"]


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "secrets"
    subprocess.run([DEPLOY / "container" / "make-secrets", folder], check=True)
    return folder


def folders_of(service: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the folders of the host that a service sees, apart from files of ours."""
    return [volume for volume in service.get("volumes", []) if isinstance(volume, dict)]


def environment_of(service: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in service.get("environment", {}).items() if value is not None}


def test_the_file_is_what_the_specification_of_compose_says():
    schema = json.loads((files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json").read_text())
    jsonschema.validate(yaml.safe_load(TEXT), schema)
    jsonschema.validate(COMPOSE, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(COMPOSE | {"services": {"api": {"comand": []}}}, schema)


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name):
    tag = SERVICES[name]["image"].partition(":")[2]
    if name in OURS:
        assert SERVICES[name]["build"]["dockerfile"] == "deploy/Containerfile"
        return
    assert re.match(r"v?\d+\.\d+", tag), f"{name}: the tag {tag!r} names no version"


@pytest.mark.parametrize("name", OURS)
def test_our_services_run_commands_and_settings_that_exist(name, monkeypatch):
    assert_command(OURS[name]["command"])
    given = {key: value for key, value in environment_of(OURS[name]).items() if key.startswith("OPTICSTREAM_")}
    settings_of(given, monkeypatch)


def test_settings_of_prefect_exist():
    from prefect.settings import Settings

    known = {alias.upper() for alias in Settings().to_environment_variables(exclude_unset=False)}
    for name, service in OURS.items():
        for key in environment_of(service):
            assert key.startswith("OPTICSTREAM_") or key in known, f"{name}: there is no setting {key}"


def test_workers_serve_every_pool_once():
    served = [
        pool for service in OURS.values() if service["command"][0] == "worker"
        for pool in checked_pools(service["command"][service["command"].index("--pool") + 1].split(","))
    ]  # fmt: skip
    assert sorted(served) == sorted(POOLS)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_what_it_needs(name):
    """Long ones are healthy before others build on them, and short ones are done."""
    needs = SERVICES[name].get("depends_on", {})
    for other, need in needs.items() if isinstance(needs, dict) else ():
        if SERVICES[other]["restart"] == "no":
            assert need["condition"] == "service_completed_successfully"
        else:
            assert need["condition"] == "service_healthy"
            assert "healthcheck" in SERVICES[other]


def test_the_database_is_brought_up_to_date_before_the_server_and_deployments_before_workers():
    def needed(name: str) -> set[str]:
        own = set(SERVICES[name].get("depends_on", {}))
        return own.union(*(needed(other) for other in own)) if own else own

    for name in ("worker-heavy", "worker-light"):
        assert {"postgres", "redis", "migration", "api", "deployments"} <= needed(name)
    assert "migration" in needed("services")


@pytest.mark.parametrize("name", LONG)
def test_what_runs_for_long_starts_again(name):
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", OURS)
def test_our_containers_may_do_little_and_never_write_raw_tiles(name):
    service = OURS[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert any("/tmp:exec" in entry for entry in service["tmpfs"]), "warm starts run a program from there"
    assert not {"/data/raw"} & {volume["target"] for volume in folders_of(service) if not volume.get("read_only")}


def test_no_secret_is_in_the_file_or_in_a_variable():
    assert not re.search(r"://[^/@\s]*:[^/@\s]+@", TEXT)
    for name, service in SERVICES.items():
        for key in environment_of(service):
            is_secret = re.search(r"PASSWORD|SECRET|TOKEN|AUTH", key)
            assert not is_secret or key.endswith("FILE"), f"{name}: {key} should name a file"


def test_every_secret_that_is_used_is_made_and_reaches_its_service(secrets):
    declared = COMPOSE["secrets"]
    assert {Path(entry["file"]).name for entry in declared.values()} == {path.name for path in secrets.iterdir()}
    for name, service in SERVICES.items():
        own = service.get("secrets", [])
        assert set(own) <= set(declared)
        for value in environment_of(service).values():
            if value.startswith("/run/secrets/"):
                assert Path(value).name in own, f"{name}: {value} is not mounted"
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == set(declared)


def test_secrets_are_random_agree_with_each_other_and_stay(secrets, tmp_path):
    text = {path.name: path.read_text() for path in secrets.iterdir()}
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    for name in ("database_url", "api_auth"):
        assert stat.S_IMODE((secrets / name).stat().st_mode) == 0o600
    assert all(content.count("\n") == 1 for content in text.values()), "one line each"
    password = text["postgres_password"].strip()
    assert len(password) == 48
    assert text["database_url"] == f"postgresql://opticstream:{password}@postgres:5432/opticstream\n"
    assert text["api_auth"].strip().partition(":")[2] == text["api_password"].strip() != password
    subprocess.run([DEPLOY / "container" / "make-secrets", secrets], check=True)
    assert {path.name: path.read_text() for path in secrets.iterdir()} == text
    subprocess.run([DEPLOY / "container" / "make-secrets", tmp_path / "other"], check=True)
    assert (tmp_path / "other" / "api_password").read_text() != text["api_password"]


def test_the_database_is_the_one_that_postgresql_makes():
    environment = environment_of(SERVICES["postgres"])
    assert environment["POSTGRES_USER"] == environment["POSTGRES_DB"] == "opticstream"


def test_the_example_of_variables_is_of_variables_that_the_file_reads():
    read = set(re.findall(r"\$\{(\w+)", TEXT)) | {
        name for service in OURS.values() for name, value in service["environment"].items() if value is None
    }
    assert set(VARIABLES) <= read
    assert read - set(VARIABLES) == {"OPTICSTREAM_VERSION"}


def test_names_of_folders_on_the_host_lead_into_the_containers(monkeypatch):
    given = VARIABLES | {"OPTICSTREAM_PROJECTS": "/srv/oct/projects", "OPTICSTREAM_RAW": "/mnt/rig"}
    service = yaml.safe_load(interpolated(TEXT, given))["services"]["worker-heavy"]
    settings = settings_of({"OPTICSTREAM_PATH_MAP": environment_of(service)["OPTICSTREAM_PATH_MAP"]}, monkeypatch)
    assert path_here("/srv/oct/projects/brain", settings.path_map) == Path("/data/projects/brain")
    assert path_here("/mnt/rig/brain", settings.path_map) == Path("/data/raw/brain")
    mounted = {volume["source"]: volume["target"] for volume in folders_of(service)}
    assert mounted["/srv/oct/projects"] == "/data/projects"
    assert mounted["/mnt/rig"] == "/data/raw"


def test_prometheus_and_grafana_find_what_they_read():
    scraped = yaml.safe_load((DEPLOY / "container" / "prometheus.yml").read_text())["scrape_configs"]
    targets = {target for job in scraped for entry in job["static_configs"] for target in entry["targets"]}
    assert {target.partition(":")[0] for target in targets} - {"localhost"} <= set(SERVICES)
    assert environment_of(SERVICES["api"])["PREFECT_SERVER_METRICS_ENABLED"] == "true"
    for job in scraped:
        if password := job.get("basic_auth", {}).get("password_file"):
            assert Path(password).name in SERVICES["prometheus"]["secrets"]
    source = yaml.safe_load((DEPLOY / "container" / "grafana" / "datasource.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"


def test_volumes_exist_and_a_missing_folder_of_the_data_is_not_made():
    named = set()
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            if isinstance(volume, dict):
                assert volume["bind"]["create_host_path"] is False, "it may be a mount point"
            elif volume.startswith("./"):
                assert (DEPLOY / volume.partition(":")[0]).exists()
            else:
                named.add(volume.partition(":")[0])
    assert named == set(COMPOSE["volumes"])
