"""What MATLAB and Fiji print goes to the log of the flow run, as it comes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import get_run_logger
from prefect.exceptions import MissingContextError

_ENGINES = "opticstream.engines"


class _ToRun(logging.Handler):
    """Passes records on to the logger of a flow run, from whatever thread they come."""

    def __init__(self, run_logger: Any) -> None:
        super().__init__(logging.INFO)
        self._run_logger = run_logger

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._run_logger.log(record.levelno, record.getMessage())
        except Exception:
            self.handleError(record)


@contextmanager
def engine_output_logged() -> Iterator[None]:
    """Send the output of other programs to the log of the present flow run inside a `with` block."""
    try:
        run_logger = get_run_logger()
    except MissingContextError:
        yield
        return
    logger, handler = logging.getLogger(_ENGINES), _ToRun(run_logger)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
