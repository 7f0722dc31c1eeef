"""The job scripts on a real Slurm of one node, which the tests start: a worker in a job, and a volume by Dask."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from prefect.deployments.runner import RunnerDeployment
from prefect.settings import PREFECT_API_URL, temporary_settings
from tests.deploy.conftest import DEPLOY
from tests.services import program

from opticstream.config import DeploymentSettings
from opticstream.flows.deploying import deploy
from opticstream.flows.server import EmbeddedServer
from opticstream.testing.checksums import tree_checksums
from opticstream.testing.stitching_cases import make_case

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400), pytest.mark.filterwarnings("default")]

FLOW = """
import os
from pathlib import Path
from prefect import flow

@flow
def told(mark):
    names = ("SLURM_JOB_ID", "OPTICSTREAM_MEMORY_BUDGET")
    Path(mark).write_text(" ".join([*(os.environ[name] for name in names), str(len(os.sched_getaffinity(0)))]))
"""
PROJECT = """
[project]
project_name = "p"
project_base_path = "project"
[scan]
samples = 64
b_lines = 64
grid_size_y = 2
tile_overlap = 30.0
scan_order = "column by column"
scan_resolution_3d = [0.01, 0.01, 0.0025]
illuminations = [{ name = "normal", columns = 3, a_lines = 72 }]
[processing.volume]
modalities = ["dBI"]
"""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "sinfo")


class Cluster:
    """A Slurm of this machine alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        name = socket.gethostname().partition(".")[0]
        ports = [_free_port() for _ in range(2)]
        for part in ("state", "spool", "munge"):
            (self.folder / part).mkdir()
        key = self.folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        (self.folder / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost={name}(127.0.0.1)
AuthInfo=socket={self.folder}/munge/socket
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
ReturnToService=2
NodeName={name} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes={name} Default=YES MaxTime=INFINITE State=UP
""")
        munge = self.folder / "munge"
        self._run(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}/socket",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        wait_until(lambda: (munge / "socket").exists(), "munged has a socket")
        self._run("slurmctld", "-D")
        self._run("slurmd", "-D")
        wait_until(lambda: "idle" in self.ask("sinfo", "--noheader"), "the node is idle")

    def _run(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [program(name), *arguments]
            self._daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def ask(self, *command: str) -> str:
        asked = [program(command[0]), *command[1:]]
        return subprocess.run(asked, env=self.environment, capture_output=True, text=True, check=False).stdout

    def submit(self, *arguments: str, **environment: str) -> str:
        """Submit a job script and return the job's number."""
        done = subprocess.run(
            [program("sbatch"), "--parsable", f"--chdir={self.folder}", *arguments],
            env=self.environment | environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str, key: str) -> str:
        found = re.search(rf"\b{key}=(\S*)", self.ask("scontrol", "show", "job", number))
        return found[1] if found else ""

    def stop(self) -> None:
        self.ask("scancel", "--full", "--user=root")
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(60)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def wait_until(done, what, *, timeout_s=300, told=lambda: ""):
    end = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}\n{told()}"
        time.sleep(0.5)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    if missing := [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]:
        pytest.skip(f"{', '.join(missing)} not installed (Debian: slurmctld, slurmd, slurm-client, munge)")
    if os.getuid() != 0:
        pytest.skip("a Slurm daemon is started by root")
    folder = tmp_path_factory.mktemp("slurm")
    for part in (folder, *folder.parents):  # munge refuses a socket that others cannot reach
        if part.owner() == "root" and part != Path("/"):
            part.chmod(part.stat().st_mode | 0o011)
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Return a folder with the commands that the job scripts call, of this environment."""
    folder = tmp_path_factory.mktemp("bin")
    for name, module in (("opticstream", "opticstream"), ("dask", "dask")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        script.chmod(0o755)
    return folder


@pytest.mark.server
def test_a_worker_in_a_job_works_ends_before_the_limit_and_is_queued_again(slurm, programs, tmp_path):
    (tmp_path / "flows_of_job.py").write_text(FLOW)
    mark = tmp_path / "mark"
    with (
        EmbeddedServer(tmp_path / "prefect") as server,
        temporary_settings({PREFECT_API_URL: server.api_url}),
        httpx.Client(base_url=server.api_url, timeout=60, trust_env=False) as api,
    ):
        asyncio.run(deploy(DeploymentSettings(), sweeps=False))
        deployment = RunnerDeployment(
            name="told", flow_name="told", entrypoint="flows_of_job.told", work_pool_name="register"
        )
        id_ = asyncio.run(deployment.aapply())
        api.post(f"/deployments/{id_}/create_flow_run", json={"parameters": {"mark": str(mark)}}).raise_for_status()
        job = slurm.submit(
            "--time=60", "--signal=B:TERM@60", "--cpus-per-task=1", "--mem=1500M",
            f"{DEPLOY}/slurm/opticstream-worker.sbatch",
            OPTICSTREAM=str(programs / "opticstream"), OPTICSTREAM_API_URL=server.api_url, POOLS="register",
            PYTHONPATH=str(tmp_path),
        )  # fmt: skip
        log = slurm.folder / f"opticstream-{job}.log"

        def told():
            return f"{slurm.ask('scontrol', 'show', 'job', job)}\n{log.read_text() if log.exists() else 'no log'}"

        wait_until(lambda: mark.exists() and mark.read_text(), "the flow has run in the job", timeout_s=900, told=told)
        number, memory, processors = mark.read_text().split()
        assert (number, memory) == (job, "1500MiB")
        assert int(processors) == 1, "the job was given one processor"
        # Slurm counts in minutes: the limit is now one to two minutes away, and the worker is told one minute before.
        hours, minutes, _seconds = map(int, slurm.job(job, "RunTime").split(":"))
        slurm.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * hours + minutes + 2}")
        wait_until(lambda: slurm.job(job, "Restarts") == "1", "the job is queued again", told=told)
        assert slurm.job(job, "JobState") in ("PENDING", "COMPLETING", "RUNNING", "CONFIGURING")
        assert "queued again" in log.read_text()
        assert "TIMEOUT" not in log.read_text().upper()
        slurm.ask("scancel", job)


def test_a_job_that_is_cancelled_stays_ended(slurm, tmp_path):
    worker = tmp_path / "opticstream"
    worker.write_text('#!/bin/sh\necho started "$@"\ntrap "echo told; exit 0" TERM\nsleep 600 &\nwait\n')
    worker.chmod(0o755)
    job = slurm.submit(
        "--cpus-per-task=1", "--mem=100M", f"{DEPLOY}/slurm/opticstream-worker.sbatch",
        OPTICSTREAM=str(worker), OPTICSTREAM_API_URL="http://127.0.0.1:1/api", LIMIT="3",
    )  # fmt: skip
    log = slurm.folder / f"opticstream-{job}.log"
    wait_until(lambda: log.exists() and "started" in log.read_text(), "the worker has started")
    assert "worker --pool stitch,register --limit 3" in log.read_text()
    slurm.ask("scancel", job)
    wait_until(lambda: slurm.job(job, "JobState") in ("CANCELLED", "PENDING"), "the job has ended")
    wait_until(lambda: "idle" in slurm.ask("sinfo", "--noheader"), "the node is free")
    assert (slurm.job(job, "JobState"), slurm.job(job, "Restarts")) == ("CANCELLED", "0")
    assert "told" in log.read_text()


def test_a_volume_by_dask_in_a_job_has_the_bytes_of_one_process(slurm, programs, tmp_path):
    projects = {}
    for name in ("here", "job"):
        make_case(tmp_path / name / "project", volumes=("dBI",))
        projects[name] = tmp_path / name / "project.toml"
        projects[name].write_text(PROJECT)
    command = [sys.executable, "-m", "opticstream", "stitch", "volume", str(projects["here"]), "--mosaic", "1"]
    subprocess.run(command, check=True, capture_output=True)
    job = slurm.submit(
        "--nodes=1", "--cpus-per-task=1", "--mem=3000M", "--time=10",
        f"{DEPLOY}/slurm/opticstream-volume.sbatch", str(projects["job"]), "1", BIN=str(programs),
    )  # fmt: skip
    ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    wait_until(lambda: slurm.job(job, "JobState") in ended, "the job has ended", timeout_s=600)
    log = (slurm.folder / f"opticstream-volume-{job}.log").read_text()
    assert slurm.job(job, "JobState") == "COMPLETED", log
    (here,), (by_job,) = (project.parent.rglob("*.ome.zarr") for project in projects.values())
    assert tree_checksums(here) == tree_checksums(by_job)
