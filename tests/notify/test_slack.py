"""Slack is told with pictures, obeyed when it asks for patience, and never shown a secret in an error."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image

from opticstream.config.notify_targets import SlackTargetSettings
from opticstream.model.ids import MosaicId
from opticstream.notify import (
    Delivery,
    Link,
    Milestone,
    Notifier,
    NotTold,
    RetryLater,
    Target,
    TargetContext,
    open_targets,
)
from opticstream.testing.slack_server import CHANNEL, TOKEN, SlackServer


def target_of(slack: SlackServer, **settings) -> Target:
    given = {"token": TOKEN, "channel": CHANNEL, "api_url": slack.api_url} | settings
    (target,) = open_targets([SlackTargetSettings(**given)], TargetContext(Path(), print))
    return target


def milestone(*pictures: Path, key: str = "mosaic-001.stitched", **fields) -> Milestone:
    given = {"title": "mosaic 1 stitched", "text": "mosaic 1 (<normal> & so on): stitched"} | fields
    return Milestone(key, "brain", MosaicId(1), "stitched", pictures=pictures, **given)


def test_a_milestone_comes_with_its_picture_made_small_and_its_links(slack, picture):
    target_of(slack).tell(milestone(picture, links=(Link("progress", "https://x.org/a"),)))
    (message,) = slack.messages
    assert "*brain*  mosaic 1 (&lt;normal&gt; &amp; so on): stitched" in message.text
    assert "<https://x.org/a|progress>" in message.text
    ((name, data),) = message.files.items()
    assert name == "mosaic_001_aip.jpg"
    assert Image.open(io.BytesIO(data)).size == (1600, 32)


@pytest.mark.parametrize("pictures", ["gone", "not wanted"])
def test_without_a_picture_the_text_comes_alone(slack, picture, pictures, tmp_path):
    wanted = pictures == "gone"
    target_of(slack, pictures=wanted).tell(milestone(tmp_path / "no.jpg" if wanted else picture))
    (message,) = slack.messages
    assert "stitched" in message.text
    assert not message.files
    assert slack.calls == ["chat.postMessage"]


@pytest.mark.parametrize("method", ["files.getUploadURLExternal", "upload", "files.completeUploadExternal"])
def test_pictures_that_slack_refuses_are_left_out_and_the_text_comes_with_the_reason(slack, picture, method):
    refusal = (403, {}, {"ok": False, "error": "missing_scope"})
    slack.answer = lambda called: refusal if called == method else None
    if method == "upload":  # slack_sdk hands on no more than that it failed; the next look sends it again
        with pytest.raises(ConnectionError):
            target_of(slack).tell(milestone(picture))
        return
    target_of(slack).tell(milestone(picture))
    (message,) = slack.messages
    assert not message.files
    assert message.text.endswith("(without its pictures: Slack answers 'missing_scope')")


def test_a_short_wait_that_slack_asks_for_is_waited_on_the_spot(slack):
    slack.refuse_for(0.01, times=1)
    target_of(slack).tell(milestone())
    assert slack.calls == ["chat.postMessage", "chat.postMessage"]
    assert len(slack.messages) == 1


@pytest.mark.parametrize("method", ["chat.postMessage", "files.completeUploadExternal"])
def test_a_long_wait_that_slack_asks_for_is_handed_on(slack, picture, method):
    slack.refuse_for(77, method)
    with pytest.raises(RetryLater, match="Slack asks to wait 77 s") as asked:
        target_of(slack).tell(milestone(*([picture] if method.startswith("files") else [])))
    assert asked.value.wait_s == 77
    assert slack.messages == []


def test_until_the_time_that_slack_asks_for_it_is_left_alone_and_then_told_everything_once(slack, tmp_path):
    now = [datetime(2026, 1, 1, 12, 0, tzinfo=UTC)]
    rules = {"slack": Delivery(every_s=30)}

    def look(*keys: str) -> int:
        target = target_of(slack)
        looked = Notifier(tmp_path, [target], delivery=rules, now=lambda: now[0])
        return looked.tell([milestone(key=key, text=f"{key} happened") for key in keys])

    slack.refuse_for(120)
    assert look("a") == 0
    calls = len(slack.calls)
    slack.answer = lambda _method: None
    now[0] += timedelta(seconds=100)
    assert look("a", "b") == 0
    assert len(slack.calls) == calls, "it was left alone"
    now[0] += timedelta(seconds=30)
    assert look("a", "b") == 2
    (message,) = slack.messages
    assert "a happened" in message.text
    assert "b happened" in message.text
    assert look("a", "b") == 0


def test_an_outage_is_recorded_and_made_up_for(tmp_path):
    with SlackServer() as slack:
        target = target_of(slack)
    failures: list[NotTold] = []
    assert Notifier(tmp_path, [target], on_failure=failures.append).tell([milestone()]) == 0
    assert "ConnectionError" in str(failures[0])
    assert TOKEN not in str(failures[0])
    with SlackServer() as again:
        assert Notifier(tmp_path, [target_of(again)], on_failure=pytest.fail).tell([milestone()]) == 1
        assert len(again.messages) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"token": "xoxb-wrong"}, "invalid_auth"), ({"channel": "C9999999999"}, "channel_not_found")],
)
def test_what_slack_refuses_is_an_error_without_the_token(slack, settings, said):
    with pytest.raises(ConnectionError, match=said) as refused:
        target_of(slack, **settings).tell(milestone())
    assert "xoxb" not in str(refused.value)


def test_a_webhook_takes_the_text_and_its_address_is_never_shown(slack, picture):
    settings = {"token": None, "channel": "", "webhook": slack.webhook}
    target_of(slack, **settings).tell(milestone(picture))
    assert ["stitched" in message.text for message in slack.messages] == [True]
    slack.refuse_for(9)
    with pytest.raises(RetryLater, match="9 s"):
        target_of(slack, **settings).tell(milestone())
    slack.answer = lambda _method: (404, {}, {"why": f"no_service {slack.webhook}"})
    with pytest.raises(ConnectionError, match=r"the webhook answers 404: .*no_service") as refused:
        target_of(slack, **settings).tell(milestone())
    assert "a-secret" not in str(refused.value)


def test_the_token_comes_from_a_file_and_a_missing_file_fails_only_when_something_is_sent(slack, tmp_path):
    file = tmp_path / "token"
    target = target_of(slack, token=None, token_file=file)
    with pytest.raises(Exception, match=r"`token_file` of target slack .*token: the file cannot be read"):
        target.tell(milestone())
    file.write_text(TOKEN + "\n")
    target_of(slack, token=None, token_file=file).tell(milestone())
    assert len(slack.messages) == 1
