"""The systemd units: systemd accepts them, they expose little, and what they start are commands that exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from tests.deploy.conftest import DEPLOY, assert_command, settings_of
from tests.services import program

from opticstream.config.path_map import path_here
from opticstream.flows.pools import POOLS
from opticstream.flows.workers import checked_pools

SYSTEMD = DEPLOY / "systemd"
EXAMPLES = DEPLOY / "examples"
UNITS = sorted(SYSTEMD.glob("*.service"))
HOSTS = sorted(folder for folder in EXAMPLES.iterdir() if folder.is_dir())
EXPOSURE = 1.5
"""Of 10, by `systemd-analyze security`: no unit is more exposed than this."""
ENV_FILES = sorted([*SYSTEMD.glob("*.env"), *EXAMPLES.glob("*/*.env")])
DROP_INS = sorted([*SYSTEMD.glob("*.conf"), *EXAMPLES.glob("*/*.conf")])
INSTANCES = {"opticstream-worker@.service": "heavy", "opticstream-watch@.service": "brain"}


def lines_of(unit: Path, key: str) -> list[str]:
    """Return the values that a unit gives to a key, without what is commented out."""
    return re.findall(rf"^{key}=(.*)$", unit.read_text(), re.MULTILINE)


def variables_in(path: Path) -> dict[str, str]:
    """Return what a service gets from an environment file; all of ours can be read by a shell, too."""
    words = shlex.split(path.read_text(), comments=True)
    pairs: dict[str, str] = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            name, mark, value = line.partition("=")
            assert mark, f"{path}: {line}"
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
            assert quoted or " '" not in value, f"{path}: {line}"
            pairs[name] = value[1:-1] if quoted else value
    assert words or not pairs
    return pairs


@pytest.fixture
def root(tmp_path):
    """A file system with the units, and programs of the names that they start, in which systemd-analyze looks."""
    for unit in UNITS:
        target = tmp_path / "etc/systemd/system" / unit.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(unit.read_bytes())
    for name in ("opt/opticstream/bin/opticstream", "opt/opticstream/bin/python", "bin/sh"):
        stub = tmp_path / name
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text("#!/bin/sh\n")
        stub.chmod(0o755)
    for name in ("network-online", "multi-user", "sysinit", "basic", "shutdown"):
        target = tmp_path / f"usr/lib/systemd/system/{name}.target"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"[Unit]\nDescription={name}\n")
    return tmp_path


def analyzed(root, *arguments):
    command = [program("systemd-analyze"), f"--root={root}", "--man=false", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"SYSTEMD_COLORS": "0"}
    )
    return done.returncode, done.stdout + done.stderr


def instance(unit):
    return unit.name.replace("@.", f"@{INSTANCES[unit.name]}.") if unit.name in INSTANCES else unit.name


def install_drop_in(root, source, place):
    target = root / place.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def places_named_in(drop_in: Path) -> list[str]:
    """Return the paths under which a drop-in is to be installed, from the comment that it begins with."""
    comment = re.match(r"(?:#.*\n)+", drop_in.read_text())
    found = re.findall(r"(?:/etc/systemd/system/)?(opticstream-\S+\.d/[\w-]+\.conf)", comment[0] if comment else "")
    assert found, f"{drop_in}: its first line does not say where it goes"
    return [f"/etc/systemd/system/{place}" for place in found]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_a_unit_without_a_word(root, unit):
    code, said = analyzed(root, "verify", f"{root}/etc/systemd/system/{instance(unit)}")
    assert (code, said) == (0, "")


def test_systemd_would_complain(root):
    unit = root / "etc/systemd/system/opticstream-server.service"
    unit.write_text(unit.read_text().replace("ProtectSystem=strict", "ProtectSystem=strictly\nUnheardOf=1"))
    _code, said = analyzed(root, "verify", str(unit))
    assert "strictly" in said
    assert "UnheardOf" in said


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_exposes_little(root, unit):
    threshold = f"--threshold={EXPOSURE * 10:.0f}"
    code, said = analyzed(root, "security", "--offline=true", threshold, instance(unit))
    assert code == 0, said
    code, _said = analyzed(root, "security", "--offline=true", "--threshold=5", instance(unit))
    assert code != 0, "the threshold counts"


@pytest.mark.parametrize("drop_in", DROP_INS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_drop_in_says_where_it_goes_and_is_accepted_there(root, drop_in):
    for place in places_named_in(drop_in):
        install_drop_in(root, drop_in, place)
        unit = Path(place).parent.name.removesuffix(".d")
        template = re.sub(r"@\w*\.", "@.", unit)
        assert template in {unit.name for unit in UNITS}, f"{drop_in}: there is no unit {unit}"
        name = unit if "@." not in unit else unit.replace("@.", f"@{INSTANCES[unit]}.")
        code, said = analyzed(root, "verify", f"{root}/etc/systemd/system/{name}")
        assert (code, said) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_starts_a_command_that_exists_with_its_options(unit):
    (line,) = lines_of(unit, "ExecStart")
    values = {"HOST": "10.0.0.1", "PORT": "4200", "POOLS": "tile", "PROJECT": "p.toml", "RAW": "/data/raw"}
    for name, value in values.items():
        line = line.replace(f"${{{name}}}", value)
    assert "${" not in line, "every variable has a value"
    command, *words = shlex.split(line.replace("$OPTIONS", "--limit 2 --cpus 0-1"))
    assert command == "/opt/opticstream/bin/opticstream"
    assert_command(words)


@pytest.mark.parametrize("unit", [*UNITS, SYSTEMD / "server-database.conf"], ids=lambda unit: unit.name)
def test_settings_of_a_unit_exist_and_its_secrets_are_files_of_its_own(unit, monkeypatch):
    given = dict(re.findall(r"(OPTICSTREAM_\w+)=(\S+)", " ".join(lines_of(unit, "Environment"))))
    settings_of(given, monkeypatch)
    loaded = {credential.partition(":")[0] for credential in lines_of(unit, "LoadCredential")}
    assert {Path(value).name for name, value in given.items() if name.endswith("_FILE")} == loaded


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_no_process_of_a_unit_may_write_raw_tiles(unit):
    assert lines_of(unit, "ProtectSystem") == ["strict"]
    assert lines_of(unit, "ReadWritePaths") == []
    written = " ".join(lines_of(SYSTEMD / "data.conf", "ReadWritePaths")).split()
    raw = Path(variables_in(EXAMPLES / "primary" / "watch-brain.env")["RAW"])
    assert not any(raw.is_relative_to(folder) for folder in written)


@pytest.mark.parametrize("unit", [unit for unit in UNITS if "deploy" not in unit.name], ids=lambda unit: unit.name)
def test_a_service_starts_again_without_end_whatever_it_ended_with(unit):
    """A share that is away and a full disk look like wrong settings to a program that starts."""
    assert lines_of(unit, "Restart") in (["always"], ["on-failure"])
    assert lines_of(unit, "StartLimitIntervalSec") == ["0"]
    assert int(lines_of(unit, "RestartSec")[0].removesuffix("s")) >= 10, "not in a hurry"
    assert lines_of(unit, "RestartPreventExitStatus") == []
    assert set(lines_of(unit, "SuccessExitStatus")) <= {"130"}


def test_a_worker_is_given_time_to_end_its_flow_runs():
    worker = SYSTEMD / "opticstream-worker@.service"
    assert lines_of(worker, "KillMode") == ["mixed"], "the worker ends its flow runs itself"
    assert lines_of(worker, "OOMPolicy") == ["continue"]


@pytest.mark.parametrize("path", ENV_FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_an_environment_file_holds_settings_that_exist_and_no_secret(path, monkeypatch):
    commented = re.sub(r"^#([A-Z_]+=)", r"\1", path.read_text(), flags=re.MULTILINE)
    whole = path.read_text() if path.parent != SYSTEMD else commented
    given = {
        name: value
        for name, value in re.findall(r"^([A-Z_]+)='?(.*?)'?$", whole, re.MULTILINE)
        if name not in ("POOLS", "OPTIONS", "HOST", "PORT", "PROJECT", "RAW")
    }
    settings_of(given, monkeypatch)
    assert not re.search(r"://[^/@\s]*:[^/@\s]+@", whole), "a password belongs into a file of its own"


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
def test_a_host_of_the_example_gives_its_workers_less_memory_than_the_kernel_takes_away(host, monkeypatch):
    settings = settings_of(
        {k: v for k, v in variables_in(host / "opticstream.env").items() if k.startswith("OPTICSTREAM_")}, monkeypatch
    )
    heavy = host / ("worker-heavy.conf" if host.name == "primary" else "worker-register.conf")
    high, most = (int(lines_of(heavy, key)[0].removesuffix("G")) * 2**30 for key in ("MemoryHigh", "MemoryMax"))
    assert settings.memory_budget < high < most


def test_the_hosts_of_the_example_serve_every_pool_and_the_limits_fit():
    served: dict[str, list[str]] = {pool: [] for pool in POOLS}
    for host in HOSTS:
        for file in host.glob("worker-*.env"):
            name = file.stem.removeprefix("worker-")
            variables = variables_in(file)
            for pool in checked_pools([variables.get("POOLS", name)]):
                served[pool].append(host.name)
            assert_command(["worker", "--pool", "tile", *shlex.split(variables.get("OPTIONS", ""))])
    assert {pool: len(hosts) for pool, hosts in served.items()} == {
        "tile": 1, "stitch": 1, "register": 2, "upload": 1, "state": 1,
    }  # fmt: skip
    assert variables_in(EXAMPLES / "primary" / "opticstream.env")["OPTICSTREAM_REGISTER_LIMIT"] == "2"


def test_the_second_auxiliary_host_finds_what_the_primary_host_names(monkeypatch):
    second = settings_of(variables_in(EXAMPLES / "auxiliary-2" / "opticstream.env"), monkeypatch)
    project = Path(variables_in(EXAMPLES / "primary" / "watch-brain.env")["PROJECT"]).parent
    here = path_here(str(project), second.path_map)
    assert here == Path("/mnt/primary/projects/brain")
    written = " ".join(lines_of(EXAMPLES / "auxiliary-2" / "data.conf", "ReadWritePaths")).split()
    assert any(here.is_relative_to(folder) for folder in written)
