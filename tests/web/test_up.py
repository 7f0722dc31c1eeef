"""`opticstream up PROJECT` shows the project in a dashboard, which ends with it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]


def test_up_has_the_dashboard_of_its_project_to_its_end(shown, tmp_path):
    shown.column(1, 1)
    command = [sys.executable, "-m", "opticstream", "up", str(shown.file), "--dashboard-port", "0"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "OPTICSTREAM_"))}
    environment["OPTICSTREAM_HOME"] = str(tmp_path / "home")
    log = tmp_path / "up.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        end = time.monotonic() + 600
        while (found := re.search(r"dashboard\s+(http://127\.0\.0\.1:\d+)", log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.3)
        page = httpx.get(found[1], trust_env=False, timeout=120)
        assert 'class="tile done"' in page.text
        assert "OPTICSTREAM_API_URL=" in log.read_text()
        process.send_signal(signal.SIGINT)
        process.wait(300)
        with pytest.raises(httpx.TransportError):
            httpx.get(found[1], trust_env=False, timeout=60)
        assert "Traceback" not in log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
