# mypy: disable-error-code="no-untyped-call, misc, unused-ignore"
"""`njit` with a cache of compiled code whose errors never stop the work.

If the cache has no folder, is full, damaged or belongs to another account, the code is compiled again. With
``NUMBA_DISABLE_JIT=1`` the kernels run as plain Python, slowly.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core.caching import FunctionCache

from opticstream.system.lacking import log_once_for_host
from opticstream.system.places import private_folder

DISABLED = bool(numba.config.DISABLE_JIT)  # type: ignore[attr-defined]
"""Whether kernels run as plain Python."""


def _njit(function: Any = None, /, *, cache: bool = False, **options: Any) -> Any:
    """Compile a function as `numba.njit` does; with `cache` the code is kept for the next process if possible."""
    if function is None:
        return functools.partial(_njit, cache=cache, **options)
    if DISABLED:
        return _with_arithmetic_of_compiled_code(function)
    compiled: Any = numba.njit(**options)(function)
    if cache and (kept := _cache_of(function)) is not None:
        compiled._cache = kept  # as its own enable_caching() does
    return compiled


njit: Any = _njit  # numba's result has no type


def _with_arithmetic_of_compiled_code(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def called(*arguments: Any) -> Any:
        with np.errstate(all="ignore"):  # compiled code does not warn of division by zero
            return function(*arguments)

    return called


class _ForgivingCache(FunctionCache):  # type: ignore[misc]
    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # any error of a damaged pickle
            log_once_for_host(f"compiled code in {self.cache_path} cannot be read and is made again: {error}")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:
            log_once_for_host(f"compiled code cannot be kept in {self.cache_path} (NUMBA_CACHE_DIR): {error}")


def _cache_of(function: Callable[..., Any]) -> Any:
    if not os.path.isabs(os.path.expanduser("~")) and not os.environ.get("NUMBA_CACHE_DIR"):
        _use_private_folder()  # without a home, "~" would be made in the current folder
    for last in (False, True):
        try:
            return _ForgivingCache(function)
        except (RuntimeError, OSError):
            if last or not _use_private_folder():
                break
    log_once_for_host(
        "there is no folder for compiled code: it is compiled again in every process; "
        "set NUMBA_CACHE_DIR to a folder that can be written"
    )
    return None


def _use_private_folder() -> bool:
    folder = private_folder()
    if folder is None:
        return False
    os.environ["NUMBA_CACHE_DIR"] = str(folder / "compiled")  # for child processes
    numba.config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"]  # type: ignore[attr-defined]
    return True
