"""Where arrays are worked on: how they get there and back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from opticstream.compute.arrays import in_numpy

Pending = Callable[[], NDArray[Any]]
"""Waits until a result has arrived in the memory of the host, and returns it."""


class ArrayDevice(Protocol):
    """A place of work: a graphics card, or the host itself."""

    @property
    def name(self) -> str:
        """Name and version, for records."""

    @property
    def library(self) -> Any:
        """The namespace of the arrays' library (Python array API)."""

    def at_work(self) -> AbstractContextManager[None]:
        """Return a context in which arrays are made and worked on."""

    def room(self, shape: tuple[int, ...], dtype: DTypeLike, /) -> NDArray[Any]:
        """Return memory of the host that is copied to and from the device fastest; it holds anything."""

    def copied(self, values: NDArray[Any], /) -> AbstractContextManager[Any]:
        """Return a context with a copy of `values`, for work that is asked for within.

        The copying may go on until the next but one copy begins: the values must not change before.
        """

    def fetched(self, array: Any, /) -> Pending:
        """Start copying an array to the host."""


class HostDevice:
    """The host itself, with the arrays of any library that follows the Python array API.

    Parameters
    ----------
    library : namespace
        NumPy, for example.
    """

    def __init__(self, library: Any, /) -> None:
        self.library = library

    @property
    def name(self) -> str:
        """Name and version of the library."""
        return f"{self.library.__name__} {getattr(self.library, '__version__', '')}".strip()

    def at_work(self) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return contextlib.nullcontext()

    def room(self, shape: tuple[int, ...], dtype: DTypeLike, /) -> NDArray[Any]:
        """Return memory; it holds anything."""
        return np.empty(shape, dtype)

    @contextlib.contextmanager
    def copied(self, values: NDArray[Any], /) -> Iterator[Any]:
        """Yield the values as an array of the library."""
        yield self.library.asarray(values)

    def fetched(self, array: Any, /) -> Pending:
        """Return a function that returns the array."""
        return lambda: in_numpy(array)
