"""The image: its file is one, and what it does to install the package works in an empty environment."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tests.deploy.conftest import DEPLOY, ROOT, assert_command

INSTRUCTIONS = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip
TEXT = (DEPLOY / "Containerfile").read_text()
LINES = [
    tuple(line.strip().split(None, 1))
    for line in re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines() if line.strip()
]  # fmt: skip


def values(instruction):
    return [value for name, value in LINES if name == instruction]


def test_every_line_is_an_instruction():
    assert {name for name, _ in LINES} <= INSTRUCTIONS
    for name in ("CMD", "ENTRYPOINT"):
        (value,) = values(name)
        assert re.fullmatch(r'\["[^"]+"(, "[^"]+")*\]', value), "as words, not through a shell, so that signals arrive"


def test_the_base_is_pinned_and_has_a_python_that_the_package_takes():
    bases = [value.split()[0] for value in values("FROM")]
    assert len(set(bases)) == 1
    major, minor = map(int, re.fullmatch(r"python:(\d+)\.(\d+)\.\d+-slim-\w+", bases[0]).groups())
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert (major, minor) >= tuple(map(int, wanted.removeprefix(">=").split(".")))


def test_what_is_copied_exists():
    for value in values("COPY"):
        *sources, _target = [word for word in value.split() if not word.startswith("--")]
        if "--from=" not in value:
            assert all((ROOT / source).exists() for source in sources)


def test_it_is_not_root_and_its_entry_is_the_command():
    assert values("USER") == ["opticstream"]
    order = [name for name, _ in LINES]
    assert order.index("USER") < order.index("ENTRYPOINT")
    assert values("ENTRYPOINT") == ['["opticstream"]']
    assert_command(["--version"])


def test_only_what_is_needed_is_sent_to_the_builder():
    ignored = (DEPLOY / "Containerfile.dockerignore").read_text().split()
    assert ignored[0] == "*", "everything but what is named"
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        word for value in values("COPY") if "--from=" not in value
        for word in value.split()[:-1]
    }  # fmt: skip
    assert copied == kept


def test_the_list_of_packages_is_that_of_the_package():
    script = DEPLOY / "container" / "requirements.py"
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = done.stdout.split("\n")
    assert set(project["dependencies"]) <= set(listed)
    assert any(line.startswith("distributed") for line in listed), "volumes by Dask"
    assert any(line.startswith("prefect-redis") for line in listed), "replicas of the API"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_steps_of_the_image_install_the_package_from_wheels_alone(tmp_path):
    """What RUN says, with folders of the test for those of the image."""
    source, wheels, target = tmp_path / "source", tmp_path / "wheels", tmp_path / "opt"
    source.mkdir()
    for value in values("COPY"):
        if "--from=" in value:
            continue
        *names, where = value.split()
        for name in names:
            place = source / (where if where != "./" else Path(name).name)
            subprocess.run(["cp", "-r", ROOT / name, place], check=True)
    for value in values("RUN"):
        if "/opt/opticstream" not in value:
            continue  # the account
        step = (
            re.sub(r"--mount=\S+ ", "", value).replace("/opt/opticstream", str(target)).replace("/wheels", str(wheels))
        )
        step = re.sub(r"(?<!\S)python ", f"{shlex.quote(sys.executable)} ", step)
        done = subprocess.run(step, shell=True, cwd=source, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{step}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    said = subprocess.run(
        [target / "bin" / "opticstream", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "worker" in said.stdout
    found = subprocess.run(
        [target / "bin" / "python", "-c", "import opticstream; print(opticstream.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.startswith(str(target))
