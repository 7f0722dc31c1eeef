"""A limit on the time of a call that the operating system may hold up, such as one on a network share that is away."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within(limit_s: float, call: Callable[[], T], /) -> T:
    """Return what a call returns.

    It runs in a thread of its own. If it takes too long the thread is left to itself; it does not keep the process from
    ending.

    Raises
    ------
    TimeoutError
        It did not return within `limit_s` seconds.
    Exception
        What the call raises.

    Examples
    --------
    >>> within(5.0, lambda: 6 * 7)
    42
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {limit_s:g} s")
    return results[0]
