"""A real S3 server for tests: Ceph's `radosgw` with one monitor and one store in memory, all in a temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from opticstream.testing.s3_server import ACCESS_KEY, SECRET_KEY, S3Server, free_port

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
"""What has to be installed."""
_READY_S = 300.0
_CONF = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{port}
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd crush chooseleaf type = 0
mon allow pool size one = true
ms bind ipv6 = false
ms bind msgr2 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
mon data = {folder}/mon
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 1073741824
rgw data = {folder}/rgw
run dir = {folder}
admin socket =
pid file =
log file =
log to stderr = true
"""


class RadosGateway(S3Server):
    """`radosgw` with the buckets that are named, below a folder that is empty before."""

    def __init__(self, folder: Path, /, *buckets: str) -> None:
        super().__init__()
        self._folder = folder
        self._conf = folder / "ceph.conf"
        self._buckets = buckets
        self._processes: list[subprocess.Popen[bytes]] = []

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        self._processes.clear()

    def start(self) -> None:
        for name in ("mon", "osd", "rgw"):
            (self._folder / name).mkdir()
        fsid, disk, port = str(uuid.uuid4()), str(uuid.uuid4()), free_port()
        self._conf.write_text(_CONF.format(fsid=fsid, port=port, folder=self._folder), encoding="utf-8")
        monitors = self._folder / "monmap"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v1:127.0.0.1:{port}]", str(monitors))
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(monitors))
        self._serve("ceph-mon", "-f", "-i", "a")
        self._run("ceph", "osd", "create", disk)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._serve("ceph-osd", "-f", "-i", "0")
        self._wait("its store", lambda: "1 up" in self._run("ceph", "osd", "stat"))
        self._run(
            "radosgw-admin", "user", "create", "--uid=test", "--display-name=test", f"--access-key={ACCESS_KEY}",
            f"--secret-key={SECRET_KEY}",
        )  # fmt: skip
        self._serve("radosgw", "-f", "--id", "admin", "--rgw-frontends", f"beast endpoint=127.0.0.1:{self.port}")
        self._wait("radosgw", self._answers)
        for bucket in self._buckets:
            self.client().create_bucket(Bucket=bucket)

    def _answers(self) -> bool:
        try:
            self.client().list_buckets()
        except Exception:  # of many kinds while it starts
            return False
        return True

    def _wait(self, what: str, done: Callable[[], bool]) -> None:
        end = time.monotonic() + _READY_S
        while not done():
            ended = [process.args for process in self._processes if process.poll() is not None]
            if ended or time.monotonic() > end:
                raise RuntimeError(f"{what} did not start (ended: {ended}); see the logs in {self._folder}")
            time.sleep(0.2)

    def _command(self, program: str, *arguments: str) -> list[str]:
        found = shutil.which(program, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))
        if found is None:
            raise FileNotFoundError(f"{program} is not installed (Debian: radosgw, ceph-mon and ceph-osd)")
        return [found, *([] if program == "monmaptool" else ["-c", str(self._conf)]), *arguments]

    def _run(self, program: str, *arguments: str) -> str:
        command = self._command(program, *arguments)
        done = subprocess.run(command, capture_output=True, text=True, timeout=_READY_S, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}: {done.stderr[-1000:]}")
        return done.stdout

    def _serve(self, program: str, *arguments: str) -> None:
        with (self._folder / f"{program}.log").open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    self._command(program, *arguments), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )
            )  # fmt: skip
