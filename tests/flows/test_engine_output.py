"""What other programs print reaches the log of the run."""

from __future__ import annotations

import logging
import threading

from opticstream.flows import engine_output


def test_lines_of_another_thread_reach_the_log_of_the_run_while_the_program_runs(monkeypatch):
    seen = []

    class RunLogger:
        def log(self, level, message):
            seen.append((level, message))

    monkeypatch.setattr(engine_output, "get_run_logger", RunLogger)
    logger = logging.getLogger("opticstream.engines._matlab")
    with engine_output.engine_output_logged():
        thread = threading.Thread(target=lambda: logger.info("%s: %s", "MATLAB", "[50 %] läuft"))
        thread.start()
        thread.join()
        assert seen == [(logging.INFO, "MATLAB: [50 %] läuft")]
    logger.info("after the run")
    assert len(seen) == 1


def test_outside_of_a_run_nothing_is_changed():
    logger = logging.getLogger("opticstream.engines")
    before = (logger.level, list(logger.handlers))
    with engine_output.engine_output_logged():
        assert (logger.level, logger.handlers) == before
