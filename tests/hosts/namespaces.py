"""Hosts on one machine: each with its own name, address, processes and mounts, joined by a network that can be cut.

A host is a set of Linux namespaces that lives as long as its first process, which reads a pipe from the test. When the
test ends, however it ends, the pipe is closed, the first process ends, and Linux ends every process of the host and
takes its mounts and its network with it. Nothing outside the namespaces is changed.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest

NEEDED = ("unshare", "nsenter", "ip", "mount", "setsid", "env", "hostname")
_INIT = ("env", "--ignore-signal=CHLD", "cat")  # Linux then reaps what has lost its parent
_OWN_FOLDERS = ("/srv", "/mnt", "/media", "/var/lib", "/var/tmp", "/run")
"""Folders that each host has for itself; everything else, such as the interpreter, is that of the machine."""


def namespaces_or_skip() -> None:
    """Skip the test where no namespaces can be made; fail it where CI has left out a program that they need.

    Whether they can be made is tried: a container may keep root from it.
    """
    if missing := [name for name in NEEDED if shutil.which(name, path=_path()) is None]:
        reason = f"not installed: {', '.join(missing)} (Debian: util-linux, iproute2)"
        if os.environ.get("CI") and os.geteuid() == 0:
            pytest.fail(reason)
        pytest.skip(reason)
    script = "mount -t tmpfs none /srv; ip link add veth0 type veth peer name veth1"
    tried = subprocess.run(
        ["unshare", *_flags("net"), "sh", "-ec", script],
        env={"PATH": _path()}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tried.returncode:
        pytest.skip(f"namespaces cannot be made here (root with CAP_SYS_ADMIN is needed): {tried.stderr.strip()}")


class Network:
    """A switch in a network namespace of its own, to which hosts are connected; a context manager.

    Parameters
    ----------
    folder : Path
        Gets a folder for each host: what it has under `/srv` and others, and its logs.
    """

    def __init__(self, folder: Path, /) -> None:
        self.folder = folder
        self.hosts: dict[str, Host] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._switch = self._stack.enter_context(_Space("net"))
        self._switch.check("ip link set lo up; ip link add switch type bridge; ip link set switch up")
        return self

    def __exit__(self, *_error: object) -> None:
        for host in self.hosts.values():
            host.stop()
        self._stack.close()

    def host(self, name: str, address: str, /, *, mounts: Mapping[str, Path]) -> Host:
        """Return a new host.

        Parameters
        ----------
        name, address : str
            Its host name and its IPv4 address; the network has 24 bits.
        mounts : mapping
            Place on the host -> folder of this machine that it sees there.
        """
        space = self._stack.enter_context(_Space("net", "uts", "ipc"))
        port = f"to-{name}"[:15]
        made = ["ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(space.pid)]
        subprocess.run(  # not among the processes of the switch, where the host has no number
            ["nsenter", f"--target={self._switch.pid}", "--net", *made], env={"PATH": _path()}, check=True
        )
        self._switch.check(f"ip link set {port} master switch up")
        host = Host(name, address, self.folder / name, space, self._switch, port)
        host.set_up(mounts)
        self.hosts[name] = host
        return host


class Host:
    """A host of a `Network`."""

    def __init__(self, name: str, address: str, folder: Path, space: _Space, switch: _Space, port: str) -> None:
        self.name = name
        self.address = address
        self.folder = folder
        self.services: dict[str, Service] = {}
        self._space, self._switch, self._port = space, switch, port

    def set_up(self, mounts: Mapping[str, Path]) -> None:
        """Name the host, give it an address, and mount its folders."""
        lines = [
            f"hostname {self.name}",
            "ip link set lo up",
            f"ip address add {self.address}/24 dev eth0",
            "ip link set eth0 up",
        ]
        for place in _OWN_FOLDERS:
            own = self.folder / place.strip("/").replace("/", "-")
            own.mkdir(parents=True)
            own.chmod(0o1777 if place == "/var/tmp" else 0o755)
            lines.append(f"mount --bind {shlex.quote(str(own))} {place}")
        for place, source in mounts.items():
            lines += [f"mkdir -p {place}", f"mount --bind {shlex.quote(str(source))} {place}"]
        self._space.check("; ".join(lines))

    def run(self, script: str, /, *, timeout_s: float = 900.0) -> subprocess.CompletedProcess[str]:
        """Run a script of the shell on the host, to its end.

        Raises
        ------
        AssertionError
            It failed, or did not end in time.
        """
        command = self._space.command("bash", "-euo", "pipefail", "-c", script)
        try:
            done = subprocess.run(
                command, cwd="/", env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                check=False, timeout=timeout_s,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            raise AssertionError(f"{self.name}: not within {timeout_s:g} s: {script}\n{late.stdout}") from late
        assert done.returncode == 0, f"{self.name}: {script}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, name: str, script: str, /) -> Service:
        """Start a script that keeps running."""
        service = Service(f"{self.name} {name}", self._space, script, self.folder / f"{name}.log")
        service.start()
        self.services[name] = service
        return service

    def cut(self) -> None:
        """Pull the host's plug: nothing gets through any more, and neither side is told."""
        self._switch.check(f"ip link set {self._port} nomaster")

    def join(self) -> None:
        """Put the plug back in."""
        self._switch.check(f"ip link set {self._port} master switch")

    def stop(self) -> None:
        """End its services, those that were started last first."""
        for service in reversed(self.services.values()):
            service.stop()


class Service:
    """A script that keeps running on a host, in a process group of its own."""

    def __init__(self, name: str, space: _Space, script: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._space, self._script = space, script
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, again or for the first time."""
        command = self._space.command("setsid", "bash", "-euo", "pipefail", "-c", self._script)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd="/", env=_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        """Kill its process group at once."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(timeout=30)

    def stop(self) -> None:
        """End it as a service manager does: told first, killed if it does not obey."""
        if self._process is None or self._process.poll() is not None:
            return
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()

    def check(self) -> None:
        """Raise AssertionError if it has ended."""
        assert self._process is not None
        assert self._process.poll() is None, f"{self.name} has ended: {self.text()[-3000:]}"

    def text(self) -> str:
        """Return what it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, line: str, /, *, count: int = 1, timeout_s: float = 600.0) -> None:
        """Wait until it has printed a line so many times, counting all its starts; AssertionError if it does not."""
        end = time.monotonic() + timeout_s
        while self.text().splitlines().count(line) < count:
            self.check()
            assert time.monotonic() < end, f"{self.name}: no line {line!r}: {self.text()[-3000:]}"
            time.sleep(0.1)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        for child in _children(self._process.pid):  # nsenter's child leads the group
            try:
                os.killpg(child, number)
            except ProcessLookupError:
                continue


class _Space:
    """Namespaces that live as long as their first process."""

    def __init__(self, *kinds: str) -> None:
        self._kinds = kinds

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            ["unshare", *_flags(*self._kinds), *_INIT], env={"PATH": _path()}, stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=_die_with_the_test, start_new_session=True,
        )  # fmt: skip
        end = time.monotonic() + 30
        while not (found := [pid for pid in _children(self._process.pid) if _name_of(pid) == _INIT[-1]]):
            assert self._process.poll() is None, self._process.stderr and self._process.stderr.read()
            assert time.monotonic() < end, "no namespaces within 30 s"
            time.sleep(0.01)
        (self.pid,) = found
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()  # and with it the first process, and with that all others
        self._process.communicate()

    def command(self, *words: str) -> list[str]:
        """Return the command that runs another one in here."""
        return ["nsenter", f"--target={self.pid}", "--mount", "--pid", *(f"--{kind}" for kind in self._kinds), *words]

    def check(self, script: str) -> None:
        """Run a script of the shell in here; raise AssertionError if it fails."""
        done = subprocess.run(
            self.command("sh", "-ec", script), env={"PATH": _path()}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{script}: {done.stderr}"


def _flags(*kinds: str) -> list[str]:
    return ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *(f"--{kind}" for kind in kinds)]


def _environment() -> dict[str, str]:
    """Return the environment of a shell on a bare host: nothing of the test's own, no proxy, no setting."""
    return {"PATH": _path(), "LANG": "C.UTF-8", "HOME": "/var/lib", "TMPDIR": "/var/tmp"}


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"


def _die_with_the_test() -> None:
    set_death_signal = 1
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
