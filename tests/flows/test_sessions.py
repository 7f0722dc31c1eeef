"""Several commands under one home share one server; whose it is goes on with it, and nobody ends a living one."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import prefect
import pytest

from opticstream.flows import session as session_module
from opticstream.flows.server import HOME_VARIABLE, EmbeddedServer, HomeInUse, is_healthy, server_record
from opticstream.flows.surroundings import child_environment, is_this_machine, keep_off_proxies, prepared_home
from opticstream.model.errors import ConfigurationError

STRANGE = "home ? # % & ü [x] 'q'"

SESSION = """
import os, sys, time
from pathlib import Path
from opticstream.flows.session import local_session
lines = []
with local_session(Path(sys.argv[1]), workers=False, say=lines.append) as session:
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings
    settings = get_current_settings()
    with get_client(sync_client=True) as client:
        assert client.api_healthcheck() is None
    print("up", session.api_url, session.server is not None, settings.api.auth_string, flush=True)
    for line in sys.stdin:
        taken_over = session.check()
        with get_client(sync_client=True) as client:
            print("checked", taken_over, client.api_healthcheck() is None, flush=True)
print("ended", flush=True)
"""


class Command:
    """A process with a session, asked and answered line by line."""

    def __init__(self, home: Path, **options) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SESSION, str(home)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
        )  # fmt: skip

    def line(self) -> list[str]:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline().split()
        assert answer, self.process.stderr.read()[-3000:]
        return answer

    def ask(self) -> list[str]:
        assert self.process.stdin is not None
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        return self.line()

    def end(self) -> None:
        self.process.communicate(timeout=120)


@pytest.mark.server
def test_a_second_command_shares_the_server_and_takes_over_when_its_owner_ends_or_is_killed(tmp_path):
    home = tmp_path / STRANGE
    commands = [Command(home)]
    try:
        first = commands[0].line()
        assert first[2] == "True"
        for _ in range(2):  # two more, and the owner goes each time
            commands.append(Command(home))
            assert commands[-1].line()[:3] == ["up", first[1], "False"]
            assert commands[-1].ask() == ["checked", "False", "True"]
        commands[0].end()
        assert commands[1].ask() == ["checked", "True", "True"]
        assert commands[2].ask() == ["checked", "False", "True"]
        commands[1].process.send_signal(signal.SIGKILL)
        commands[1].process.wait()
        assert commands[2].ask() == ["checked", "True", "True"]
        commands[2].end()
        assert not is_healthy(first[1])
    finally:
        for command in commands:
            command.process.kill()
            command.process.communicate()
    assert [p.name for p in tmp_path.iterdir()] == [STRANGE]
    assert (home / "prefect.db").exists()


@pytest.mark.server
@pytest.mark.slow
def test_nothing_of_a_persons_own_prefect_or_proxy_gets_in(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    (here / "prefect.toml").write_text('[server.api]\nauth_string = "a:b"\n[api]\nauth_string = "a:b"\n')
    (here / "pyproject.toml").write_text('[tool.prefect]\nlogging.level = "NONSENSE"\n')
    (here / ".env").write_text("PREFECT_API_AUTH_STRING=c:d\nPREFECT_SERVER_API_AUTH_STRING=c:d\n")
    person = tmp_path / "person"
    (person / ".prefect").mkdir(parents=True)
    (person / ".prefect" / "profiles.toml").write_text(
        'active = "lab"\n[profiles.lab]\nPREFECT_API_AUTH_STRING = "e:f"\nPREFECT_SERVER_API_AUTH_STRING = "e:f"\n'
    )
    dead = "http://127.0.0.1:9"
    own = {
        "HOME": str(person), "PREFECT_API_AUTH_STRING": "g:h", "PREFECT_SERVER_API_AUTH_STRING": "g:h",
        "http_proxy": dead, "HTTPS_PROXY": dead, "ALL_PROXY": "socks5://127.0.0.1:9", "PYTHONWARNINGS": "default",
    }  # fmt: skip
    plain = {k: v for k, v in os.environ.items() if k.lower() != "no_proxy"}
    command = Command(tmp_path / "home", cwd=here, env={**plain, **own})
    try:
        assert command.line()[2:] == ["True", "None"]
        assert command.ask() == ["checked", "False", "True"]
        command.end()
    finally:
        command.process.kill()
        command.process.communicate()


def test_of_two_that_start_at_once_one_owns_the_home(tmp_path, monkeypatch):
    monkeypatch.setattr(EmbeddedServer, "_launch", lambda self: self._write_record(os.getpid(), workers=False))
    servers = [EmbeddedServer(tmp_path) for _ in range(8)]
    gate = threading.Barrier(8)
    owners, refused = [], []

    def start(server: EmbeddedServer) -> None:
        gate.wait()
        try:
            server.launch()
            owners.append(server)
        except HomeInUse as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(owners), len(refused)) == (1, 7)
    record = server_record(tmp_path)
    assert record is not None
    assert record.owner.pid == os.getpid()
    owners[0].stop()


def test_what_a_killed_owner_left_is_ended_and_nothing_else(tmp_path, monkeypatch):
    import json

    from opticstream.flows.server import end_leftovers

    sleeper = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    mine = subprocess.Popen(
        sleeper, stdout=subprocess.PIPE, start_new_session=True, env=os.environ | {HOME_VARIABLE: str(tmp_path)}
    )
    other = subprocess.Popen(
        sleeper, stdout=subprocess.PIPE, start_new_session=True, env=os.environ | {HOME_VARIABLE: f"{tmp_path}2"}
    )
    try:
        for process in (mine, other):
            process.stdout.readline()
            threading.Thread(target=process.wait, daemon=True).start()
            end_leftovers(process.pid, tmp_path)
        mine.wait(timeout=60)
        assert other.poll() is None
        (tmp_path / "server.json").write_text(json.dumps({"nonsense": 1}))
        assert server_record(tmp_path) is None
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()
            process.stdout.close()


def test_workers_end_with_a_session_that_ends_before_its_server_answers(tmp_path):
    folders = {name: tmp_path / name for name in ("home", "temporary")}
    for folder in folders.values():
        folder.mkdir()
    environment = child_environment(os.environ, folders["home"]) | {
        HOME_VARIABLE: str(folders["home"]), "TMPDIR": str(folders["temporary"]),
        "PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(folders["home"]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "opticstream.flows.workers", "--no-sweep"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-3000:]
    assert [path for path in folders["temporary"].rglob("*") if path.is_socket() or path.suffix == ".py"] == []


@pytest.mark.parametrize("compiled", [True, False])
def test_workers_load_beside_the_server_once_prefect_is_compiled(tmp_path, monkeypatch, compiled):
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    if compiled:
        late = Path(prefect.__file__).with_name("server") / "api" / "server.py"
        kept = Path(importlib.util.cache_from_source(late))
        kept.parent.mkdir(parents=True)
        kept.touch()
    done: list[str] = []
    steps = {"launch": "loads", "serve": "serves"}
    for name, said in steps.items():
        monkeypatch.setattr(session_module.WorkerProcess, name, lambda _self, said=said: done.append(said))
    monkeypatch.setattr(session_module, "cancel_leftovers", lambda _url: 0)
    server = EmbeddedServer(tmp_path / "home")
    monkeypatch.setattr(server, "wait_until_healthy", lambda: done.append("answers"))
    monkeypatch.setattr(server, "tell_workers_are_ready", lambda: None)
    session = session_module.Session(tmp_path / "home", ui=False, workers=True, sweeps=False, say=lambda _line: None)
    session.server = server
    session.start(meanwhile=lambda: done.append("imports"))
    beside = ["loads", "imports", "answers", "serves"]
    assert done == (beside if compiled else ["answers", "loads", "serves"])


def test_a_home_that_cannot_be_written_is_named_with_its_setting(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match=r"OPTICSTREAM_HOME = .*file/home.*--home"):
        prepared_home(tmp_path / "file" / "home")


@pytest.mark.parametrize("given", [{}, {"no_proxy": "intern.example"}, {"NO_PROXY": "a, b"}])
def test_addresses_of_this_machine_are_added_to_those_without_a_proxy(given):
    environment = {"HTTPS_PROXY": "http://proxy:3128", **given}
    keep_off_proxies(environment, "http://127.0.0.7:4200/api", "http://far.example/api")
    hosts = environment["no_proxy"].split(",")
    assert environment["NO_PROXY"] == environment["no_proxy"]
    assert {"127.0.0.1", "localhost", "::1", "127.0.0.7"} <= set(hosts)
    assert "far.example" not in hosts
    before = [host.strip() for value in given.values() for host in value.split(",")]
    assert hosts[: len(before)] == before
    assert environment["HTTPS_PROXY"] == "http://proxy:3128"


def test_without_proxies_the_environment_stays_as_it_is():
    environment = {"PATH": "/bin"}
    keep_off_proxies(environment)
    assert environment == {"PATH": "/bin"}
    assert not is_this_machine("http://far.example:4200/api")
    assert not is_this_machine("http://198.51.100.7/api")


def test_children_get_none_of_a_persons_settings_and_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/nonexistent")
    given = {"PREFECT_API_KEY": "k", "PYTHONWARNINGS": "error", "PATH": "/bin", "HOME": "/nonexistent"}
    assert child_environment(given, tmp_path) == {"PATH": "/bin", "HOME": str(tmp_path)}
