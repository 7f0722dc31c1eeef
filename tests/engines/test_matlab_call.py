"""One call of MATLAB for many tiles: what each way of failing says, and what it leaves of the others."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opticstream.engines import MatlabCall, MatlabItem, MatlabProgram, MatlabStep
from opticstream.model.errors import (
    ConfigurationError,
    EngineError,
    EngineOutOfMemory,
    EngineTimeout,
    LicenseError,
    ProcessingError,
)

NAMES = ("tile 1", "tile 2", "tile 3")


@pytest.fixture
def started(tmp_path, stand_in):
    """Return a function that opens a call for three tiles, whose outputs are copies of their sources."""
    folder = tmp_path / "a 'b' \"ü\" (1): [x]"
    folder.mkdir()
    with contextlib.ExitStack() as stack:

        def start(**options) -> MatlabCall:
            items = []
            for name in NAMES:
                source = folder / f"{name}.nii"
                source.write_bytes(name.encode())
                outputs = {product: folder / f"{name}-{product}.nii" for product in ("aip", "dBI")}
                items.append(MatlabItem(name, (MatlabStep("f", source, outputs),)))
            program = MatlabProgram(str(stand_in.path), "matlab", **options)
            return stack.enter_context(MatlabCall(program, items, settings={}, vectors={}, folder=folder))

        yield start


def contents(item: MatlabItem) -> set[bytes]:
    return {path.read_bytes() for path in item.outputs.values()}


def test_all_tiles_of_a_batch_are_done_in_one_call_whatever_their_paths_are_called(started, stand_in):
    call = started()
    assert [contents(call.wait_for(name)) for name in NAMES] == [{name.encode()} for name in NAMES]
    assert stand_in.calls == [list(NAMES)]


def test_the_output_comes_to_the_log_line_by_line(started, stand_in, caplog):
    stand_in.plan(tile_1={"says": "läuft [50 %]"})
    with caplog.at_level(logging.INFO, logger="opticstream.engines"):
        started().wait_for("tile 1")
        wait_until(lambda: "MATLAB: läuft [50 %]" in caplog.messages)


def test_an_error_in_one_tile_is_that_tiles_and_the_others_are_done_in_the_same_call(started, stand_in):
    stand_in.plan(tile_2={"do": "error", "message": "the spectra are\nempty"})
    call = started()
    call.wait_for("tile 1")
    with pytest.raises(ProcessingError, match="tile 2: MATLAB: the spectra are empty"):
        call.wait_for("tile 2")
    call.wait_for("tile 3")
    assert len(stand_in.calls) == 1


def test_a_function_that_leaves_a_file_out_is_told_apart(started, stand_in):
    stand_in.plan(tile_1={"do": "leave out", "product": "dBI"})
    with pytest.raises(ProcessingError, match=r"tile 1: f ended without an error, but did not write .*tile 1-dBI\.nii"):
        started().wait_for("tile 1")


@pytest.mark.parametrize(
    ("step", "error", "words"),
    [
        ({"do": "signal", "signal": "SIGSEGV"}, EngineError, r"tile 2: MATLAB crashed: .*SIGSEGV"),
        ({"do": "signal", "signal": "SIGKILL"}, EngineOutOfMemory, r"tile 2: MATLAB was killed .*want of memory"),
        pytest.param(
            {"do": "exit", "status": 3, "says": "Out of memory."},
            EngineOutOfMemory,
            r"too little memory.*Out of memory",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"do": "exit", "status": 1, "says": "Undefined function 'x'"},
            EngineError,
            r"status 1; it said: .*'x'",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"do": "exit", "status": 0},
            EngineError,
            "tile 2: MATLAB ended before it had done it",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"do": "error", "message": "Out of memory."},
            EngineOutOfMemory,
            "tile 2: MATLAB had too little memory",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_each_way_to_end_has_its_own_message_and_a_call_goes_on_with_the_tiles_that_are_not_done(
    started, stand_in, step, error, words
):
    stand_in.plan(tile_2=step)
    call = started()
    call.wait_for("tile 1")
    with pytest.raises(error, match=words) as raised:
        call.wait_for("tile 2")
    assert isinstance(raised.value, EngineError)
    assert contents(call.wait_for("tile 3")) == {b"tile 3"}
    assert stand_in.calls[0] == list(NAMES)
    assert stand_in.calls[1:] in ([["tile 3"]], [])  # an error of a function ends no call
    stand_in.plan()
    assert contents(call.wait_for("tile 2")) == {b"tile 2"}  # a retry does that tile alone
    assert stand_in.calls[-1] == ["tile 2"]


def test_a_hanging_call_is_ended_with_all_its_processes(started, stand_in, tmp_path):
    pids = tmp_path / "pids"
    stand_in.plan(tile_1={"do": "hang", "pids": str(pids)})
    with pytest.raises(
        EngineTimeout, match=r"tile 1: MATLAB did not finish within 3 s \(OPTICSTREAM_MATLAB_TIMEOUT_S\)"
    ):
        started(timeout_s=3.0).wait_for("tile 1")
    assert all(is_gone(int(pid)) for pid in pids.read_text().split())


@pytest.mark.slow
def test_the_processes_are_ended_when_our_own_process_is_killed(stand_in, tmp_path):
    pids = tmp_path / "pids"
    stand_in.plan(tile_1={"do": "hang", "pids": str(pids)})
    (tmp_path / "source").write_bytes(b"x")
    ours = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from pathlib import Path; from opticstream.engines import *\n"
            f"step = MatlabStep('f', Path({str(tmp_path / 'source')!r}), {{}})\n"
            f"program = MatlabProgram({str(stand_in.path)!r}, 'matlab')\n"
            "call = MatlabCall(program, [MatlabItem('tile 1', (step,))], settings={}, vectors={},"
            f" folder=Path({str(tmp_path)!r}))\n"
            "call.wait_for('tile 1')\n",
        ]
    )
    try:
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    finally:
        ours.kill()
        ours.wait()
    for pid in map(int, pids.read_text().split()):
        wait_until(lambda pid=pid: is_gone(pid))


def test_a_missing_licence_is_waited_for(started, stand_in, monkeypatch):
    monkeypatch.setattr("opticstream.engines._matlab._LICENSE_PAUSES_S", (0.01,))
    stand_in.plan(any={"says": "License checkout failed.\nLicense Manager Error -4", "times": 1})
    call = started(license_wait_s=600.0)
    assert contents(call.wait_for("tile 1")) == {b"tile 1"}
    assert len(stand_in.calls) == 2


def test_a_licence_that_does_not_come_ends_all_tiles_at_once_and_says_how_long_was_waited(started, stand_in):
    stand_in.plan(any={"says": "License checkout failed.\nLicense Manager Error -4"})
    call = started(license_wait_s=0.2)
    with pytest.raises(LicenseError, match=r"got no licence; it said: .*Error -4.*OPTICSTREAM_MATLAB_LICENSE_WAIT_S"):
        call.wait_for("tile 1")
    calls = len(stand_in.calls)
    with pytest.raises(LicenseError):
        call.wait_for("tile 2")
    assert len(stand_in.calls) == calls


def test_a_program_that_cannot_be_started_is_a_wrong_setting(started, stand_in):
    stand_in.path.write_text("#!/nowhere/python\n")
    with pytest.raises(ConfigurationError, match=r"OPTICSTREAM_MATLAB_COMMAND.*cannot be started"):
        started().wait_for("tile 1")


def test_the_program_is_not_given_our_passwords(started, stand_in, monkeypatch):
    monkeypatch.setenv("OPTICSTREAM_API_AUTH", "user:secret")
    text = stand_in.path.read_text().replace("import json, os", "import os; print(sorted(os.environ))\nimport json, os")
    stand_in.path.write_text(text)
    stand_in.plan(tile_1={"do": "exit", "status": 1})
    with pytest.raises(EngineError) as raised:
        started().wait_for("tile 1")
    assert "OPTICSTREAM_API_AUTH" not in str(raised.value)
    assert "OPTICSTREAM_CALL" in str(raised.value)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def wait_until(is_so) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end, "not so after 60 s"
        time.sleep(0.02)
