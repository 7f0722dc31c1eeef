"""`opticstream notify test` sends to every target and tells which did not take it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.testing.slack_server import CHANNEL, TOKEN, SlackServer


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(targets: list[dict], *options: str):
        monkeypatch.setenv("OPTICSTREAM_NOTIFY_TARGETS", json.dumps(targets))
        return CliRunner().invoke(app, ["notify", "test", *options])

    return run


def test_each_target_is_sent_a_message_with_a_picture(run, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    with SlackServer() as slack:
        target = {"kind": "slack", "channel": CHANNEL, "token_file": str(tmp_path / "token"), "api_url": slack.api_url}
        done = run([{"kind": "log"}, {"kind": "file"}, target | {"quiet_hours": "00:00-23:59", "level": "failure"}])
        assert done.exit_code == 0, done.output
        (message,) = slack.messages
        assert "can send messages here" in message.text
        assert [name for name, data in message.files.items() if data[:2] == b"\xff\xd8"] == ["test.jpg"]
    assert "can send messages here" in (tmp_path / "milestones.jsonl").read_text()
    assert done.output.count("sent") == 3


def test_a_target_that_does_not_take_it_is_named_with_the_reason_and_the_others_are_sent_to(run, tmp_path):
    (tmp_path / "milestones.jsonl").mkdir()
    done = run([{"kind": "file"}, {"kind": "log"}], "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found["log"] == {"ok": True, "why": ""}
    assert "IsADirectoryError" in found["file"]["why"]


def test_an_unknown_target_is_wrong_use(run):
    done = run([{"kind": "log"}], "--target", "slack")
    assert done.exit_code == 2
    assert "--target slack: no such target; expected one of log" in done.output
