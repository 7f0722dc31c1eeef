"""A graphics card of NVIDIA, by way of CuPy.

Three queues ("streams") let copies to the card, work, and copies back go on at the same time. Blocks come in through
two pieces of memory on the card that take turns, so that one is copied while the other is worked on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from opticstream.compute.array_engine._device import Pending
from opticstream.model.errors import CardError


class _Slot:
    """Memory on the card for one block."""

    def __init__(self) -> None:
        self.memory: Any = None
        self.source: Any = None
        """Memory of the host that it is copied from."""
        self.arrived: Any = None
        """Event: the copy is complete, and the memory of the host may change."""
        self.free: Any = None
        """Event: the work that needs it is done."""


@contextlib.contextmanager
def _card_errors() -> Iterator[None]:
    """Raise every error of work on the card as CardError: CuPy, CUDA and its libraries each have their own."""
    try:
        yield
    except CardError:
        raise
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        raise CardError(f"the graphics card failed: {type(error).__name__}: {first}") from error


class CupyCard:
    """The current card of this process (the first, or as CUDA_VISIBLE_DEVICES says).

    Parameters
    ----------
    memory_bytes : int, optional
        Most memory on the card that arrays may take; default: no limit of our own.

    Raises
    ------
    CardError
        CuPy is not installed, or there is no card, or it cannot be used.
    """

    def __init__(self, *, memory_bytes: int | None = None) -> None:
        with _card_errors():
            self._cupy = _cupy()
            cuda = self._cupy.cuda
            self.library = import_module("array_api_compat.cupy")
            self._device = cuda.Device()
            self._pool = cuda.MemoryPool()
            if memory_bytes is not None:
                self._pool.set_limit(size=memory_bytes)
            self._arriving, self._working, self._leaving = (cuda.Stream(non_blocking=True) for _ in range(3))
            self._slots = [_Slot(), _Slot()]
            properties = cuda.runtime.getDeviceProperties(self._device.id)
            self._name = f"CuPy {self._cupy.__version__}, {properties['name'].decode()}"

    @property
    def name(self) -> str:
        """Version of CuPy and name of the card."""
        return self._name

    @property
    def free_bytes(self) -> int:
        """Memory on the card that is free."""
        with _card_errors():
            return int(self._device.mem_info[0])

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Work in the queue and the memory of this card.

        Raises
        ------
        CardError
            The card failed, or has too little memory.
        """
        with _card_errors(), self._device, self._cupy.cuda.using_allocator(self._pool.malloc), self._working:
            yield

    def room(self, shape: tuple[int, ...], dtype: DTypeLike, /) -> NDArray[Any]:
        """Return memory of the host that stays where it is (pinned), from which the card copies by itself."""
        with _card_errors():
            memory: NDArray[Any] = import_module("cupyx").empty_pinned(shape, dtype)
            return memory

    @contextlib.contextmanager
    def copied(self, values: NDArray[Any], /) -> Iterator[Any]:
        """Yield a copy on the card; work that is asked for within waits for it."""
        slot = self._slots[0]
        self._slots.reverse()
        cupy, size = self._cupy, values.nbytes
        if slot.arrived is not None:
            slot.arrived.synchronize()
        if slot.memory is None or slot.memory.size < size:
            self._working.synchronize()  # what is there may be in use
            slot.memory = cupy.empty(size, cupy.uint8)
            slot.free = self._working.record()
        self._arriving.wait_event(slot.free)
        copy = slot.memory[:size].view(values.dtype).reshape(values.shape)
        slot.source = np.ascontiguousarray(values)
        copy.set(slot.source, stream=self._arriving)
        slot.arrived = self._arriving.record()
        self._working.wait_event(slot.arrived)
        yield copy
        slot.free = self._working.record()

    def fetched(self, array: Any, /) -> Pending:
        """Start copying an array back, beside the work that follows."""
        whole = self._cupy.ascontiguousarray(array)
        host = self.room(whole.shape, whole.dtype)
        self._leaving.wait_event(self._working.record())
        whole.get(stream=self._leaving, out=host, blocking=False)
        done = self._leaving.record()
        kept = [whole]  # its memory is not used again before it is copied

        def wait() -> NDArray[Any]:
            with _card_errors():
                done.synchronize()
            kept.clear()
            return host

        return wait

    def release(self) -> None:
        """Give memory back to the card, as far as no array uses it."""
        with _card_errors():
            self._working.synchronize()
            self._leaving.synchronize()
            self._slots = [_Slot(), _Slot()]
            self._cupy.fft.config.get_plan_cache().clear()
            self._pool.free_all_blocks()


def _cupy() -> Any:
    """Return CuPy, after a look whether there is a card.

    Raises
    ------
    CardError
        CuPy is not installed, or there is no card.
    """
    try:
        cupy = import_module("cupy")
    except ImportError as error:
        raise CardError(
            f"CuPy is not installed ({next(iter(str(error).splitlines()), '')}): pip install 'opticstream[cuda]'"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        raise CardError(f"CuPy {cupy.__version__} finds no graphics card: {error}") from error
    if not count:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        said = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES={hidden!r})"
        raise CardError(f"CuPy {cupy.__version__} finds no graphics card{said}")
    return cupy
