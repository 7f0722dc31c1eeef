"""What answers at the address of a server is told in one line, and what passes by itself is waited for."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib.metadata import version

import pytest
from tests.flows.fake_api import HTML, as_json, fake_api, prefect
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.flows.clock_skew import judged_skew
from opticstream.flows.contact import Contact, check_server, look_at_server, wait_for_server
from opticstream.flows.server import free_port
from opticstream.model.errors import ConfigurationError, ServerError

OWN = version("prefect")
CUT = as_json(
    {"detail": "The request specified API version 0.8.4 but this server requires version 0.9.0 or higher."}, 400
)


@pytest.mark.parametrize(
    ("replies", "state", "said"),
    [
        (prefect(OWN), "ready", f"Prefect {OWN}"),
        (prefect("3.99.0"), "ready", "Prefect 3.99.0"),
        (prefect("2.20.0"), "other version", f"the server runs Prefect 2.20.0, and this host {OWN}"),
        (prefect("3.1.0"), "other version", f"the server runs Prefect 3.1.0, and this host {OWN}"),
        (prefect("4.0.0"), "other version", f"the server runs Prefect 4.0.0, and this host {OWN}"),
        ({"*": CUT}, "other version", "requires version 0.9.0 or higher"),
        ({"*": HTML}, "no Prefect", "not a Prefect API (HTTP 200, text/html)"),
        ({"*": as_json({"service": "grafana"})}, "no Prefect", "not a Prefect API (HTTP 200, application/json)"),
        ({"*": as_json("ready")}, "no Prefect", "not a Prefect API"),
        ({}, "no Prefect", "not a Prefect API (HTTP 404"),
        ({"*": as_json({"exception_message": "Unauthorized"}, 401)}, "refused", "refuses this host (HTTP 401)"),
        ({"*": as_json({}, 403)}, "refused", "HTTP 403"),
        ({"*": (503, "text/html", b"busy")}, "away", "the server is not ready (HTTP 503)"),
        ({"*": (502, "text/html", b"bad gateway")}, "away", "HTTP 502"),
    ],
)
def test_whatever_answers_is_told_apart(replies, state, said):
    with fake_api(replies) as api:
        found = look_at_server(api.url, {})
        assert (found.state, said in found.said) == (state, True), found
        assert found.advice or state == "ready"
        assert "\n" not in found.said + found.advice
        assert api.seen[0][1]["x-prefect-api-version"], "the server is told which API this host speaks"


@pytest.mark.parametrize(
    ("url", "kind", "said"),
    [
        ("http://nowhere.invalid:4200/api", ServerError, "'nowhere.invalid' cannot be resolved"),
        ("localhost:4200/api", ConfigurationError, "does not begin with http:// or https://"),
        ("http://:4200/api", ConfigurationError, "names no host"),
        ("http://10.0.0.1:99999/api", ConfigurationError, "not an address"),
        ("http://[::1/api", ConfigurationError, "not an address"),
    ],
)
def test_an_address_that_leads_nowhere_is_told(url, kind, said, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(kind) as caught:
        check_server(url, patience_s=0)
    assert str(caught.value).startswith(f"OPTICSTREAM_API_URL = {url}: ")
    assert said in str(caught.value)


def test_a_server_that_is_down_is_told_within_some_seconds():
    url = f"http://127.0.0.1:{free_port()}/api"
    begin = time.monotonic()
    with pytest.raises(
        ServerError, match=r"no Prefect server answers there .*Connection refused.*`opticstream server`"
    ):
        check_server(url, patience_s=0.2)
    assert time.monotonic() - begin < 20


def test_a_server_that_never_answers_and_one_that_drips_are_given_up():
    def drip(listening):
        connection, _ = listening.accept()
        connection.recv(1000)
        try:
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
            while True:
                connection.sendall(b" ")
                time.sleep(0.1)
        except OSError:
            connection.close()

    for serve in (lambda _listening: None, drip):
        with socket.create_server(("127.0.0.1", 0)) as listening:
            thread = threading.Thread(target=serve, args=(listening,), daemon=True)
            thread.start()
            found = look_at_server(f"http://127.0.0.1:{listening.getsockname()[1]}/api", {}, limit_s=0.5)
            assert found.state == "away"
            assert "no answer" in found.said


@pytest.mark.parametrize(
    ("words", "state", "said"),
    [
        (b"-ERR unknown command 'GET'\r\n\r\n", "no Prefect", "no HTTP"),
        (b"", "away", "closed the connection without an answer: another program, or a server that is starting"),
    ],
)
def test_a_program_that_speaks_no_http_is_no_server(words, state, said):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet():
            connection, _ = listening.accept()
            connection.recv(1000)
            connection.sendall(words)
            connection.close()

        threading.Thread(target=greet, daemon=True).start()
        found = look_at_server(f"http://127.0.0.1:{listening.getsockname()[1]}/api", {})
    assert (found.state, said in found.said) == (state, True), found


def test_the_missing_end_of_an_address_is_named():
    with fake_api({"/": HTML, "": HTML, "/health": as_json(True)}) as api:
        page = api.url.removesuffix("/api")
        api.replies["/admin/version"] = HTML
        found = look_at_server(page, {})
    assert found.state == "no Prefect"
    assert f"set it to {api.url}" in found.advice


def test_no_message_shows_a_password():
    with fake_api({"*": HTML}) as api:
        error = look_at_server(api.url, {}).error(api.url.replace("//", "//me:secret@"))
    assert "secret" not in str(error)


def test_an_older_server_of_the_same_kind_is_used_with_a_warning(monkeypatch):
    from packaging.version import Version

    from opticstream.flows import contact

    monkeypatch.setattr(contact, "installed_version", lambda _name: Version("3.20.0"))
    with fake_api(prefect("3.9.0")) as api:
        found = check_server(api.url)
    assert "Prefect 3.9.0, which is older than this host's 3.20.0" in found.said
    assert "bring the server to Prefect 3.20.0" in found.advice


class Looks:
    """Looks at a server that go through what is given; time passes only in sleep."""

    def __init__(self, *found):
        self.found, self.now_s, self.lines = list(found), 0.0, []

    def look(self, _url, _headers):
        return self.found.pop(0) if len(self.found) > 1 else self.found[0]

    def sleep(self, seconds):
        self.now_s += seconds

    def wait(self):
        return wait_for_server(
            "http://db:4200/api", say=self.lines.append, headers={}, look=self.look, clock=lambda: self.now_s,
            sleep=self.sleep,
        )  # fmt: skip


AWAY = Contact("away", "no Prefect server answers there (refused)", "start one")
READY = Contact("ready", "Prefect 3.8.8")


def test_a_server_is_waited_for_and_that_is_said_now_and_then():
    looks = Looks(*[AWAY] * 200, READY)
    assert looks.wait() is READY
    assert looks.now_s > 2000
    first, *again, last = looks.lines
    assert (
        first == "OPTICSTREAM_API_URL = http://db:4200/api: no Prefect server answers there (refused); waiting for it"
    )
    assert [line.rpartition("it, ")[2] for line in again] == ["60 s so far", "10 min so far"]
    assert "the server answers, after" in last


def test_nothing_is_said_of_a_server_that_answers_at_once():
    looks = Looks(READY)
    looks.wait()
    assert looks.lines == []


@pytest.mark.parametrize("state", ["other version", "no Prefect", "refused", "wrong address"])
def test_what_does_not_pass_by_itself_is_not_waited_for(state):
    looks = Looks(AWAY, Contact(state, "found", "do this"))
    with pytest.raises((ServerError, ConfigurationError), match="http://db:4200/api: found; do this"):
        looks.wait()


@pytest.mark.parametrize(
    ("skew_s", "level"), [(0.9, "ok"), (-1.2, "ok"), (5.0, "warning"), (-99.0, "warning"), (-120.0, "problem")]
)
def test_a_clock_is_judged_by_what_it_endangers(skew_s, level):
    with fake_api(prefect(OWN), skew_s=-skew_s) as api:
        skew = judged_skew(look_at_server(api.url, {}), lease_s=300.0)
    assert skew is not None
    assert skew.level == level, skew
    assert ("behind" in skew.said) == (skew_s < -3)


def invoke(monkeypatch, url, home, *words):
    """Call a command in this process; it ends before it loads Prefect."""
    for name in list(os.environ):
        if name.startswith(("PREFECT_", "OPTICSTREAM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OPTICSTREAM_API_URL", url)
    monkeypatch.setenv("OPTICSTREAM_HOME", str(home))
    before = dict(os.environ)
    try:
        return CliRunner().invoke(app, [str(word) for word in words])
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@pytest.mark.parametrize("command", ["deploy", "run", "register", "status"])
def test_a_command_that_needs_a_server_of_this_version_ends_with_both_versions(command, monkeypatch, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "p.toml").write_text('[project]\nproject_name = "p"\nproject_base_path = "out"\n')
    words = {
        "deploy": ["deploy"], "run": ["run", tmp_path / "p.toml", tmp_path / "raw"],
        "register": ["project", "register", tmp_path / "p.toml"], "status": ["status", "some name"],
    }[command]  # fmt: skip
    with fake_api(prefect("2.20.0")) as api:
        answer = invoke(monkeypatch, api.url, tmp_path / "home", *words)
    assert answer.exit_code == 1, answer.output
    assert f"the server runs Prefect 2.20.0, and this host {OWN}" in answer.output
    assert "install the same Prefect on both hosts" in answer.output


def test_status_of_a_file_does_without_a_server_that_is_away_and_says_so(monkeypatch, tmp_path):
    (tmp_path / "p.toml").write_text('[project]\nproject_name = "p"\nproject_base_path = "out"\n')
    with fake_api({"*": HTML}) as api:
        answer = invoke(monkeypatch, api.url, tmp_path / "home", "status", tmp_path / "p.toml")
    assert answer.exit_code == 0, answer.output
    assert "not a Prefect API" in answer.output
    assert "no tile has been found yet" in answer.output


def test_a_worker_waits_for_a_server_says_so_and_ends_when_one_of_another_version_comes(tmp_path):
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    worker = subprocess.Popen(
        [sys.executable, "-m", "opticstream", "worker", "--pool", "state"], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OPTICSTREAM_API_URL": url, "OPTICSTREAM_HOME": str(tmp_path)},
    )  # fmt: skip
    try:
        assert worker.stderr is not None
        line = worker.stderr.readline()
        assert f"OPTICSTREAM_API_URL = {url}: no Prefect server answers there" in line
        assert "waiting for it" in line
        assert worker.poll() is None
        with fake_api(prefect("2.20.0"), port=port):
            assert worker.wait(120) == 1
        assert "the server runs Prefect 2.20.0" in worker.stderr.read()
    finally:
        if worker.poll() is None:
            worker.send_signal(signal.SIGKILL)
        worker.communicate()


def test_an_error_of_the_server_in_the_middle_of_a_command_is_one_line(monkeypatch, capsys):
    import httpx
    import typer

    from opticstream.cli.console import errors_shown

    monkeypatch.setenv("PREFECT_API_URL", "http://db:4200/api")
    request = httpx.Request("POST", "http://db:4200/api/deployments/")
    detail = json.dumps({"detail": "name: too long"}).encode()
    for error, said in (
        (httpx.ConnectError("[Errno 111] Connection refused"), "no Prefect server answers there"),
        (httpx.HTTPStatusError("x", request=request, response=httpx.Response(503, request=request)), "not ready"),
        (
            httpx.HTTPStatusError("x", request=request, response=httpx.Response(422, content=detail, request=request)),
            "the server refused POST /api/deployments/ (HTTP 422: name: too long)",
        ),
    ):
        with pytest.raises(typer.Exit), errors_shown():
            raise error
        shown = capsys.readouterr().err
        assert said in shown
        assert "http://db:4200/api" in shown
        assert shown.count("\n") == 1
