"""The file target writes whole lines, each milestone once, whatever happens to the process that writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from opticstream.model.ids import MosaicId
from opticstream.notify import Link, Milestone
from opticstream.notify.file import FileTarget


def milestone(number: int, *, project: str = "brain") -> Milestone:
    return Milestone(
        key=f"mosaic-{number:03d}.stitched",
        project=project,
        item=MosaicId(number),
        fact="stitched",
        title=f"mosaic {number} stitched",
        text=f"mosaic {number} (µ = 3 µm): stitched",
        level="warning",
        pictures=(Path("/data/aip.jpg"),),
        links=(Link("dashboard", "https://example.org/1"),),
    )


def lines_of(path: Path) -> list[dict]:
    content = path.read_bytes()
    assert content.endswith(b"\n")
    return [json.loads(line) for line in content.splitlines()]


def test_a_line_holds_everything_that_a_milestone_carries(tmp_path):
    path = tmp_path / "new folder" / "told.jsonl"
    FileTarget("file", path).tell(milestone(3))
    (entry,) = lines_of(path)
    assert entry.pop("time").endswith("Z")
    assert entry == {
        "key": "brain/mosaic-003.stitched",
        "project": "brain",
        "item": "mosaic-003",
        "fact": "stitched",
        "level": "warning",
        "title": "mosaic 3 stitched",
        "text": "mosaic 3 (µ = 3 µm): stitched",
        "pictures": ["/data/aip.jpg"],
        "links": [{"title": "dashboard", "url": "https://example.org/1"}],
    }


def test_projects_share_a_file_and_a_milestone_that_comes_again_stands_once(tmp_path):
    path = tmp_path / "told.jsonl"
    for project in ("brain", "other", "brain"):
        FileTarget("file", path).tell(milestone(1, project=project))
    assert [entry["project"] for entry in lines_of(path)] == ["brain", "other"]


@pytest.mark.parametrize(
    ("end", "kept"),
    [(b'{"key": "brain/mosaic-002.stit', 1), (b'{"key": "brain/other", "text": "by hand"}', 2), (b"", 1)],
)
def test_a_cut_last_line_is_removed_and_a_whole_one_without_its_end_is_kept(tmp_path, end, kept):
    path = tmp_path / "told.jsonl"
    FileTarget("file", path).tell(milestone(1))
    with path.open("ab") as file:
        file.write(end)
    FileTarget("file", path).tell(milestone(2))
    keys = [entry["key"] for entry in lines_of(path)]
    assert keys[0] == "brain/mosaic-001.stitched"
    assert keys[-1] == "brain/mosaic-002.stitched"
    assert len(keys) == kept + 1


def test_a_line_that_cannot_be_written_whole_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "told.jsonl"
    target = FileTarget("file", path)
    target.tell(milestone(1))
    before = path.read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:20]))
    with pytest.raises(OSError, match=r"told\.jsonl: only 20 of \d+ bytes could be written"):
        target.tell(milestone(2))
    monkeypatch.undo()
    assert path.read_bytes() == before
    target.tell(milestone(2))
    assert len(lines_of(path)) == 2


def test_threads_that_write_at_the_same_time_write_each_milestone_once(tmp_path):
    path = tmp_path / "told.jsonl"
    writers = [
        threading.Thread(target=lambda: [FileTarget("file", path).tell(milestone(n)) for n in range(1, 21)])
        for _ in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(entry["key"] for entry in lines_of(path)) == sorted(
        milestone(number).idempotency_key for number in range(1, 21)
    )


PROGRAM = """
import sys
from pathlib import Path
from opticstream.notify import Milestone, Notifier
from opticstream.notify.file import FileTarget

base = Path(sys.argv[1])
due = [Milestone(f"m-{n:03d}", "brain", None, "made up", "t", "x" * 3000) for n in range(200)]
notifier = Notifier(base, [FileTarget("file", base / "told.jsonl")], on_failure=lambda one: sys.exit(str(one)))
print("begins", flush=True)
notifier.tell(due)
"""


def test_every_milestone_stands_once_in_whole_lines_after_kills(tmp_path):
    path = tmp_path / "told.jsonl"
    kills = 0
    for more in (3, 40, 90, 10_000):
        had = len(path.read_bytes().splitlines()) if path.exists() else 0
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"begins\n"
        while process.poll() is None:
            if path.exists() and path.read_bytes().count(b"\n") >= had + more:
                process.send_signal(signal.SIGKILL)
                break
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert kills >= 1
    assert [entry["key"] for entry in lines_of(path)] == [f"brain/m-{number:03d}" for number in range(200)]
