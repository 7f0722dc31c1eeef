"""Warm starts: what the launcher stands in for behaves like a fresh interpreter."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest
from prefect.client.schemas.objects import FlowRun

from opticstream.flows.warm import LAUNCHER_VARIABLE, PYTHON_VARIABLE, SOCKET_VARIABLE, warm_starts
from opticstream.flows.worker_type import WarmJobConfiguration

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="warm starts are for Linux")


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("w")
    with warm_starts(folder):
        yield os.environ[LAUNCHER_VARIABLE]


def environment(**changes):
    return {**os.environ, **changes}


def test_a_worker_of_our_type_starts_flow_runs_with_the_launcher_and_others_do_not(launcher, monkeypatch):
    assert Path(launcher).name.startswith("warm-")
    assert Path(os.environ[SOCKET_VARIABLE]).exists()
    assert command_of_a_run() == f"{launcher} -m prefect.engine"
    assert command_of_a_run(command="sleep 1") == "sleep 1", "a command of the pool stays"
    monkeypatch.delenv(LAUNCHER_VARIABLE)
    assert command_of_a_run() == f"{sys.executable} -m prefect.engine"


def command_of_a_run(**configured):
    configuration = WarmJobConfiguration(**configured)
    configuration.prepare_for_flow_run(FlowRun(flow_id=uuid.uuid4(), name="run"))
    return configuration.command


def test_a_module_runs_with_the_callers_arguments_environment_folder_and_output(launcher, tmp_path):
    (tmp_path / "told.py").write_text(
        "import os, sys\nprint(sys.argv[1:], os.environ['COLOUR'], os.getcwd(), __name__)\nsys.exit(7)\n"
    )
    done = subprocess.run(
        [launcher, "-m", "told", "a", "b"],
        capture_output=True, text=True, cwd=tmp_path, check=False, env=environment(COLOUR="red"),
    )  # fmt: skip
    plain = subprocess.run(
        [sys.executable, "-m", "told", "a", "b"],
        capture_output=True, text=True, cwd=tmp_path, check=False, env=environment(COLOUR="red"),
    )  # fmt: skip
    assert plain.returncode == 7
    assert (done.returncode, done.stdout) == (plain.returncode, plain.stdout)


def test_prefect_is_there_already(launcher, tmp_path):
    script = tmp_path / "told_loaded.py"
    script.write_text("import sys\nprint('prefect.flow_engine' in sys.modules)\n")
    done = subprocess.run([launcher, "-m", script.stem], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "True"


def test_the_kernels_of_large_tiles_are_compiled_before_the_first_one_comes(launcher, tmp_path):
    script = tmp_path / "told_compiled.py"
    script.write_text(
        "import sys\nkernels = sys.modules.get('opticstream.compute.tile_engine._map_kernels')\n"
        "print(len(kernels.maps_of_line.signatures) if kernels else 0)\n"
    )
    end = time.monotonic() + 240  # numba may have to compile
    compiled = "0"
    while compiled == "0" and time.monotonic() < end:
        done = subprocess.run([launcher, "-m", script.stem], capture_output=True, text=True, check=True, cwd=tmp_path)
        compiled = done.stdout.strip()
        time.sleep(0.5)
    assert compiled == "1"


def test_nothing_is_compiled_ahead_where_the_settings_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTICSTREAM_COMPILE_AHEAD", "false")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))  # nothing is compiled yet
    for name in (LAUNCHER_VARIABLE, SOCKET_VARIABLE, PYTHON_VARIABLE):  # of the other tests: put back afterwards
        monkeypatch.setenv(name, "")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with warm_starts(tmp_path):
        subprocess.run([os.environ[LAUNCHER_VARIABLE], "-m", "this"], capture_output=True, check=True)
        started = [one for one in psutil.Process().children(recursive=True) if one.pid not in before]
        assert len(started) == 1, "the warm process, and no compiler below it"


def test_killing_the_launcher_kills_what_it_stands_for(launcher, tmp_path):
    mark = tmp_path / "pid"
    script = tmp_path / "told_sleep.py"
    script.write_text(f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    process = subprocess.Popen([launcher, "-m", script.stem], cwd=tmp_path)
    end = time.monotonic() + 20
    while not (mark.exists() and mark.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    child = int(mark.read_text())
    process.send_signal(signal.SIGKILL)
    process.wait()
    while time.monotonic() < end:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError(f"{child} still runs")


def test_without_a_warm_process_an_interpreter_is_started(launcher, tmp_path):
    script = tmp_path / "told_loaded.py"
    script.write_text("import sys\nprint('prefect' in sys.modules)\n")
    lonely = environment(**{SOCKET_VARIABLE: str(tmp_path / "nobody.sock"), PYTHON_VARIABLE: sys.executable})
    done = subprocess.run(
        [launcher, "-m", script.stem], capture_output=True, text=True, check=True, env=lonely, cwd=tmp_path
    )
    assert done.stdout.strip() == "False"


def test_a_launcher_in_line_for_a_warm_process_that_ends_starts_an_interpreter(launcher, tmp_path):
    (tmp_path / "told_loaded.py").write_text("import sys\nprint('prefect' in sys.modules)\n")
    address = tmp_path / "loading.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(1)
        process = subprocess.Popen(
            [launcher, "-m", "told_loaded"], stdout=subprocess.PIPE, text=True, cwd=tmp_path,
            env=environment(**{SOCKET_VARIABLE: str(address), PYTHON_VARIABLE: sys.executable}),
        )  # fmt: skip
        assert select.select([listener], [], [], 60)[0], "the launcher waits"
    assert process.communicate(timeout=60)[0].strip() == "False"
    assert process.returncode == 0
