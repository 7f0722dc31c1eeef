"""Nobody else can see the dashboard without the token, and nobody can change anything through somebody's browser."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from opticstream.model.errors import ConfigurationError
from opticstream.web import Access, token_from_file
from opticstream.web.app import create_app

TOKEN = "0123456789abcdef-test"
OWN = {"sec-fetch-site": "same-origin"}


@pytest.fixture
def asked():
    """Items of which a retry was asked."""
    return []


@pytest.fixture
def client(shown, asked):
    def retry(items):
        asked.append(items)
        return ["done"]

    app = create_app(shown.project, access=Access(token=TOKEN), retry=retry)
    with TestClient(app, base_url="http://127.0.0.1:8088") as one:
        yield one


def sign_in(client):
    answer = client.post("/login", data={"token": TOKEN}, headers=OWN, follow_redirects=False)
    assert answer.status_code == 303
    return answer


def test_another_host_needs_a_token():
    for host in ("0.0.0.0", "::", "192.168.1.7", "rig"):
        with pytest.raises(ConfigurationError, match="--token-file"):
            Access(host)
        assert "not encrypted" in Access(host, token=TOKEN).warning
    for host in ("127.0.0.1", "::1", "localhost"):
        assert Access(host).warning == ""


def test_a_token_is_long_and_readable_by_its_owner_alone(tmp_path):
    with pytest.raises(ConfigurationError, match="at least 16"):
        Access(token="short")
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        token_from_file(file)
    file.chmod(0o600)
    assert token_from_file(file) == TOKEN
    file.write_text("\n")
    with pytest.raises(ConfigurationError, match="one line"):
        token_from_file(file)
    with pytest.raises(ConfigurationError, match="absent"):
        token_from_file(tmp_path / "absent")


def test_without_the_token_nothing_is_shown(client):
    for path in ("/", "/tile/1/1", "/strip/1/1/aip.jpg", "/files/sample/preview.jpg", "/events", "/legend/wheel.png"):
        assert client.get(path, follow_redirects=False).status_code == 401, path
    page = client.get("/", headers={"accept": "text/html"}, follow_redirects=False)
    assert (page.status_code, page.headers["location"]) == (303, "/login")
    assert client.post("/retry", data={"item": "all"}, headers=OWN).status_code == 401


def test_a_wrong_token_is_refused_and_the_right_one_lasts(client):
    assert client.post("/login", data={"token": "wrong" * 5}, headers=OWN).status_code == 403
    cookie = sign_in(client).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert TOKEN not in cookie
    assert client.get("/").status_code == 200
    client.post("/logout", headers=OWN)
    assert client.get("/", follow_redirects=False).status_code == 401


def test_a_forged_cookie_is_refused(client):
    for value in ("", "0" * 64, TOKEN, "ü"):
        headers = [(b"cookie", f"opticstream-8088={value}".encode())]
        assert client.get("/", headers=headers, follow_redirects=False).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "same-origin", "origin": "http://evil.example"},
    ],
)
def test_a_retry_that_another_page_asks_for_is_refused(client, asked, headers):
    sign_in(client)
    assert client.post("/retry", data={"item": "all"}, headers=headers).status_code == 403
    assert asked == []


@pytest.mark.parametrize(
    "headers", [OWN, {"origin": "http://127.0.0.1:8088"}, {**OWN, "origin": "http://127.0.0.1:8088"}]
)
def test_a_retry_from_the_page_itself_is_done(client, asked, headers):
    sign_in(client)
    assert client.post("/retry", data={"item": "all"}, headers=headers).text == "done"
    assert asked == [None]


def test_a_retry_is_never_a_get(client, asked):
    sign_in(client)
    assert client.get("/retry?item=all").status_code == 405
    assert asked == []


def test_without_a_token_the_dashboard_is_read_only(shown):
    shown.fail(1, 1, "cut")
    app = create_app(shown.project, retry=lambda _items: pytest.fail("it was retried"))
    with TestClient(app, base_url="http://127.0.0.1:8088") as client:
        assert client.post("/retry", data={"item": "all"}, headers=OWN).status_code == 403
        assert "<button" not in client.get("/").text.partition('id="failures"')[2].partition("</section>")[0]


def test_a_foreign_name_of_this_host_is_refused(shown):
    with TestClient(create_app(shown.project), base_url="http://rebound.example") as client:
        assert client.get("/").status_code == 400
    with TestClient(create_app(shown.project), base_url="http://localhost:8088") as client:
        assert client.get("/").status_code == 200


def test_every_answer_has_the_strict_policy(client):
    for path in ("/", "/login", "/static/dashboard.css", "/nowhere"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
