"""Which pools a worker serves."""

from __future__ import annotations

import contextlib
import sys

import pytest

from opticstream.flows import workers
from opticstream.flows.deployments import POOLS


@pytest.mark.parametrize(("asked", "served"), [((), list(POOLS)), (["upload", "tile"], ["upload", "tile"])])
def test_a_worker_serves_the_pools_that_are_named_and_else_all(monkeypatch, asked, served):
    seen = []

    async def serve_pools(pools, _settings, *, sweeps):
        seen.extend(pools)

    monkeypatch.setattr(workers, "serve_pools", serve_pools)
    monkeypatch.setattr(workers, "warm_starts", lambda _folder: contextlib.nullcontext())
    monkeypatch.setattr(sys, "argv", ["opticstream", "worker"])  # of the command, not of this module
    workers.main(asked)
    assert seen == served


def test_an_unknown_pool_is_refused_with_the_names_of_the_known_ones():
    with pytest.raises(SystemExit, match=r"no pool \['gpu'\].*tile, stitch, register, upload, state"):
        workers.main(["gpu"])
