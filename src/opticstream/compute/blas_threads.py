"""Keep the linear algebra library to one thread where products are many and small.

OpenBLAS spreads even a product of a millisecond over all cores and waits for the slowest; on a machine that does other
work too, that costs ten times what it saves. The threads are then better spent on whole tiles.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

_lock = threading.Lock()
_depth = 0
_before = 0


@lru_cache(maxsize=1)
def _controls() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Return the functions that get and set the number of threads of NumPy's OpenBLAS; None where it has another."""
    for folder in (Path(np.__file__).parent.parent / "numpy.libs", Path(np.__file__).parent / ".dylibs"):
        for file in sorted(folder.glob("*openblas*")) if folder.is_dir() else []:
            try:
                library = ctypes.CDLL(str(file))
            except OSError:
                continue
            for prefix, suffix in (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", "")):
                getter = getattr(library, f"{prefix}openblas_get_num_threads{suffix}", None)
                setter = getattr(library, f"{prefix}openblas_set_num_threads{suffix}", None)
                if getter is not None and setter is not None:
                    return getter, setter
    return None


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold NumPy's linear algebra to one thread within the block; without effect where its library is unknown.

    Examples
    --------
    >>> with one_blas_thread():
    ...     float((np.ones((2, 3)) @ np.ones((3, 2)))[0, 0])
    3.0
    """
    global _depth, _before
    controls = _controls()
    if controls is None:
        yield
        return
    get, set_ = controls
    with _lock:  # blocks of several threads may overlap: the first one in remembers, the last one out restores
        if _depth == 0:
            _before = int(get())
            set_(1)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                set_(_before)
