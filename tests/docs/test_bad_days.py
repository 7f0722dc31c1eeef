"""The page on bad days quotes real messages: each of them is made here, by what makes it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.version import Version
from tests.flows.fake_api import HTML, as_json, fake_api, prefect

from opticstream.flows import contact, surroundings
from opticstream.flows.clock_skew import judged_skew
from opticstream.flows.contact import Contact, look_at_server, wait_for_server
from opticstream.flows.doctor import CHECKS, Scene
from opticstream.flows.pool_state import PauseTeller, trouble_of_pools
from opticstream.flows.server import free_port
from opticstream.model.errors import ConfigurationError, EventError, ServerError
from opticstream.pipeline.failures import SUGGESTIONS
from opticstream.pipeline.incoming import Received
from opticstream.pipeline.project_folder import config_of_received
from opticstream.system import folders
from opticstream.system.host import HostIdentity

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "bad-days.md"


def messages_of_page() -> list[str]:
    rows = re.findall(r"^\| (`.+?`) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row)]


def messages_of_server(monkeypatch) -> Iterator[str]:
    yield look_at_server(f"http://127.0.0.1:{free_port()}/api", {}).said
    yield "the host name 'rig.invalid' cannot be resolved"  # made in test_contact, by a name server
    yield look_at_server("http://127.0.0.1:9/api", {}, limit_s=1e-9).said
    yield contact._contact_of_error("http://db/api", contact.httpx.ReadTimeout("timed out")).said
    for replies in ({"*": (503, "text/html", b"")}, {"*": HTML}, {"*": as_json({}, 401)}, prefect("2.20.0")):
        with fake_api(replies) as api:
            yield look_at_server(api.url, {}).said
    answers = [Contact("away", "refused"), Contact("ready", "Prefect 3.8.8")]
    lines: list[str] = []
    wait_for_server("http://db/api", say=lines.append, headers={}, look=lambda *_: answers.pop(0), sleep=lambda _s: 0)
    yield from lines
    monkeypatch.setattr(contact, "installed_version", lambda _name: Version("3.99"))
    with fake_api(prefect("3.9.0")) as api:
        yield look_at_server(api.url, {}).said


def messages_of_pools(tmp_path) -> Iterator[str]:
    from opticstream.flows.workers import _only_worker_of

    yield str(trouble_of_pools(["tile"], {}))
    yield str(trouble_of_pools(["tile"], {"tile": {"type": "docker"}}))
    lines: list[str] = []
    PauseTeller(["tile"], lines.append).look({"tile": {"type": "opticstream", "is_paused": True}})
    yield from lines
    with (
        _only_worker_of(["tile"], tmp_path),
        pytest.raises(ServerError) as refused,
        _only_worker_of(["tile"], tmp_path),
    ):
        pass
    yield str(refused.value)
    host = HostIdentity.current().host
    two = [{"name": f"{host} tile {mark}", "status": "ONLINE", "last_heartbeat_time": None} for mark in "ab"]
    scene = Scene.__new__(Scene)
    scene.pools = ("tile",)
    scene.__dict__["work_pools"] = {"tile": {"type": "opticstream"}}
    scene.__dict__["ask"] = lambda *_: two
    (workers,) = (check for check in CHECKS if check.name == "workers")
    yield from (one.found for one in workers.look(scene))


def messages_of_folders(tmp_path, monkeypatch) -> Iterator[str]:
    received = Received("linc.oct.batch.ready", {"project_name": "p", "project_base_path": str(tmp_path / "p")}, {})

    def refused() -> str:
        with pytest.raises(EventError) as error:
            config_of_received(received, None)
        return str(error.value)

    yield refused()
    (tmp_path / "p").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(folders.os, "access", lambda _path, mode: mode != os.W_OK)
        patch.setattr(folders, "_is_read_only", lambda _folder: False)
        yield refused()
    for code in (errno.EACCES, errno.ESTALE):

        def refuse(_path, code=code):
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(folders.os, "scandir", refuse)
            yield refused()
    yield full_disk()

    def is_full(_path, _data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(surroundings.Path, "write_bytes", is_full)
        with pytest.raises(ConfigurationError) as error:
            surroundings.prepared_home(tmp_path / "home")
        yield str(error.value)


def full_disk() -> str:
    """Return what a flow run says that has met a full disk."""
    from opticstream.flows import incoming

    @incoming.refusals_told
    def work():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "mosaic_001_aip.nii")

    class Logger:
        def error(self, line: str) -> None:
            assert "\n" not in line

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(incoming, "get_run_logger", Logger)
        state = work()
    assert state.is_failed()
    assert SUGGESTIONS["disk full"] in state.message
    return str(state.message)


def messages_of_clocks() -> Iterator[str]:
    for skew_s in (-40.0, 40.0):
        skew = judged_skew(Contact("ready", "Prefect", skew_s=skew_s), lease_s=300)
        assert skew is not None
        yield skew.said


def test_every_message_of_the_page_is_real(tmp_path, monkeypatch):
    real = [
        *messages_of_clocks(), *messages_of_pools(tmp_path), *messages_of_folders(tmp_path, monkeypatch),
        *messages_of_server(monkeypatch),
    ]  # fmt: skip
    said = messages_of_page()
    assert len(said) > 20
    for message in said:
        pattern = re.compile(".+".join(map(re.escape, message.split("..."))))
        assert any(pattern.search(one) for one in real), f"nothing says {message!r}; said is: {real}"
