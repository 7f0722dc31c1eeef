"""The reconstruction by array formulas on NumPy, on what the array standard allows, and on a graphics card."""

import functools

import array_api_compat.numpy as numpy_library
import array_api_strict
import pytest

from opticstream.compute.array_engine import CupyCard, HostDevice
from opticstream.model.errors import CardError
from opticstream.testing.array_engine_contract import ArrayEngineContract


class TestNumPy(ArrayEngineContract):
    @pytest.fixture
    def device(self):
        return HostDevice(numpy_library)


class TestWhatTheStandardAllows(ArrayEngineContract):
    """Libraries may have less than NumPy; this one has what the standard says, and nothing else."""

    @pytest.fixture
    def device(self):
        return HostDevice(array_api_strict)

    @pytest.mark.slow  # with NumPy it is quick
    @functools.wraps(ArrayEngineContract.test_the_size_of_blocks_changes_nothing)
    def test_the_size_of_blocks_changes_nothing(self, device, surface, biref):
        super().test_the_size_of_blocks_changes_nothing(device, surface, biref)


class TestCard(ArrayEngineContract):
    @pytest.fixture
    def device(self):
        try:
            card = CupyCard(memory_bytes=2 << 30)
        except CardError as error:
            pytest.skip(str(error))
        yield card
        card.release()
