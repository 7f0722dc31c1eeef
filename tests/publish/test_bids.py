"""Tables and descriptions of a BIDS data set: deterministic, complete at every moment, and kind to people's edits."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from opticstream.config.publish_layout import BidsLayout
from opticstream.model.errors import FileFormatError
from opticstream.publish.bids import BidsDataset


def dataset(root: Path, subject: str = "01", **settings) -> BidsDataset:
    return BidsDataset(root, subject, "brain", "1.2", BidsLayout(**settings))


def content(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".opticstream.lock"
    }


def test_the_tables_are_the_same_whatever_the_order_of_the_slices(tmp_path):
    samples = [f"sample-slice{n:03d}" for n in range(1, 6)]
    for sample in samples:
        dataset(tmp_path / "one").update(sample)
    for sample in [*reversed(samples), *samples]:
        dataset(tmp_path / "other").update(sample)
    assert content(tmp_path / "one") == content(tmp_path / "other")
    assert (tmp_path / "one" / "samples.tsv").read_text().splitlines()[:2] == [
        "sample_id\tparticipant_id\tsample_type",
        "sample-slice001\tsub-01\ttissue",
    ]


def test_no_row_is_lost_when_many_publish_at_once(tmp_path):
    samples = [f"sample-slice{n:03d}" for n in range(1, 25)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda sample: dataset(tmp_path, f"{int(sample[-3:]) % 2 + 1:02d}").update(sample), samples))
    rows = (tmp_path / "samples.tsv").read_text().splitlines()[1:]
    assert [row.split("\t")[0] for row in rows] == samples
    assert (tmp_path / "participants.tsv").read_text() == "participant_id\nsub-01\nsub-02\n"


def test_what_people_have_added_stays(tmp_path):
    dataset(tmp_path).update("sample-slice001")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsex\nsub-00\t50\tM\nsub-01\t61\tF\n")
    description = json.loads((tmp_path / "dataset_description.json").read_text())
    (tmp_path / "dataset_description.json").write_text(json.dumps(description | {"Funding": ["a"]}))
    (tmp_path / ".bidsignore").write_text("mine/\n")
    (tmp_path / "README.md").write_text("ours")
    dataset(tmp_path, species="homo sapiens").update("sample-slice001")
    dataset(tmp_path, "02").update("sample-slice001")
    assert (tmp_path / "participants.tsv").read_text() == (
        "participant_id\tage\tsex\tspecies\nsub-00\t50\tM\tn/a\nsub-01\t61\tF\thomo sapiens\nsub-02\tn/a\tn/a\tn/a\n"
    )
    assert json.loads((tmp_path / "dataset_description.json").read_text())["Funding"] == ["a"]
    assert (tmp_path / ".bidsignore").read_text().startswith("mine/\n**/*_OCT.nii.gz\n")
    assert (tmp_path / "README.md").read_text() == "ours"


def test_what_does_not_change_is_not_written(tmp_path):
    dataset(tmp_path).update("sample-slice001")
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*") if path.is_file()}
    dataset(tmp_path).update("sample-slice001")
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("samples.tsv", "sample_id\tparticipant_id\na\n", "line 2: has 1 columns, expected 2"),
        ("samples.tsv", b"\xff\xfe", "is not UTF-8"),
        ("dataset_description.json", "[1]", "is no JSON object"),
        ("dataset_description.json", "{", "is no JSON object"),
    ],
)
def test_a_damaged_table_is_told_and_stays_as_it_is(tmp_path, name, damage, message):
    dataset(tmp_path).update("sample-slice001")
    data = damage if isinstance(damage, bytes) else damage.encode()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FileFormatError, match=message):
        dataset(tmp_path).update("sample-slice002")
    assert (tmp_path / name).read_bytes() == data
