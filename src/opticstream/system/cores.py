"""How many processor cores there are for this process, and how many of them linear algebra takes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from threadpoolctl import threadpool_limits


def available_cores() -> int:
    """Return how many cores this process may run on; at least 1."""
    if hasattr(os, "sched_getaffinity"):
        try:
            return max(1, len(os.sched_getaffinity(0)))
        except OSError:
            pass
    return os.cpu_count() or 1


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let matrix products run on one core, in all threads of this process.

    BLAS splits a product among its threads, and how it does so shows in the last digits: what is to come out the same
    on every machine, byte for byte, is computed on one. Processes that share the cores anyway do not crowd each other.
    """
    with threadpool_limits(1, user_api="blas"):
        yield
