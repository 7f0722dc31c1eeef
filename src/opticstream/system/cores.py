"""The number of processor cores for this process, and for linear algebra."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_inside = 0
_outside = contextlib.ExitStack()


def available_cores() -> int:
    """Return how many cores this process may run on; at least 1."""
    if hasattr(os, "sched_getaffinity"):
        try:
            return max(1, len(os.sched_getaffinity(0)))
        except OSError:
            pass
    return os.cpu_count() or 1


def keep_to_processors(which: str, /) -> None:
    """Let this process, and those that it starts, run on some processors only.

    Parameters
    ----------
    which : str
        Numbers and ranges as the kernel writes them, such as ``0-7,16``.

    Raises
    ------
    ValueError
        This is no such list, a processor is not there, or the operating system has no such setting.

    Examples
    --------
    >>> keep_to_processors("0-x")
    Traceback (most recent call last):
    ...
    ValueError: expected processor numbers and ranges such as 0-7,16
    """
    try:
        ranges = [[int(end) for end in part.split("-")] for part in which.split(",")]
        chosen = {number for first, *last in ranges for number in range(first, (last or [first])[0] + 1)}
    except (ValueError, TypeError):
        chosen = set()
    if not chosen or not hasattr(os, "sched_setaffinity"):
        reason = "expected processor numbers and ranges such as 0-7,16"
        raise ValueError(reason if not chosen else "this operating system cannot keep a process to some processors")
    if absent := sorted(chosen - os.sched_getaffinity(0)):
        raise ValueError(f"this process has no processor {', '.join(map(str, absent))}")
    os.sched_setaffinity(0, chosen)


def start_with_one_blas_thread() -> None:
    """Let matrix products of this process, and of those that it starts, use one thread; call before NumPy is loaded.

    The reason is that of `one_blas_thread`. A value that the environment already has stays.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    """Return the libraries of NumPy that can be limited: found once, and only when they are limited."""
    import numpy  # noqa: F401  (what is not loaded yet is not found)
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit matrix products to one thread within the block, for the whole process.

    OpenBLAS distributes even a product of a millisecond over all cores and waits for the slowest; on a machine with
    other work, that costs ten times what it saves. The number of threads also changes the last digits: results that
    must be the same on every machine, byte for byte, are computed on one core.

    Examples
    --------
    >>> import numpy as np
    >>> with one_blas_thread():
    ...     float((np.ones((2, 3)) @ np.ones((3, 2)))[0, 0])
    3.0
    """
    global _inside
    with (
        _lock
    ):  # blocks of several threads may overlap: the first to enter sets the limit, the last to leave removes it
        if _inside == 0:
            _outside.enter_context(_libraries().limit(limits=1, user_api="blas"))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _outside.close()
