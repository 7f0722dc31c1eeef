"""All blocks of a volume, on threads of this process or on an executor's workers, and then its small levels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opticstream.io.zarr import IN_PASS_LEVELS, LevelArrays, StoreWriter
from opticstream.model.errors import ConfigurationError
from opticstream.stages.volume._block import BlockWorker
from opticstream.stages.volume._inputs import Corner, VolumeInputs
from opticstream.stages.volume._plan import BlockPlan

Progress = Callable[[float], None]


@dataclass(frozen=True)
class VolumeJob:
    """One volume being stitched. It can be sent to other processes."""

    inputs: VolumeInputs
    plan: BlockPlan
    threads: int

    def run(self, store: StoreWriter, report: Progress, executor: Executor | None = None) -> None:
        """Do all blocks that are not done, then the small levels.

        Parameters
        ----------
        store : StoreWriter
            Where they go; it knows which shards an earlier run has finished.
        report : callable
            Told the fraction done.
        executor : concurrent.futures.Executor, optional
            Does the blocks elsewhere.
        """
        corners = self.plan.corners()
        # Finished work is noted by shard, so that another memory budget can take up where this one stopped.
        todo = [c for c in corners if not store.finished.issuperset(self.plan.shards(c))]
        done = len(corners) - len(todo)
        with ThreadPoolExecutor(self.threads) as pool:
            finished = self._elsewhere(todo, store, executor) if executor else self._here(todo, store, pool)
            for corner in finished:
                for shard in self.plan.shards(corner):
                    store.note_finished(shard)
                done += 1
                report(0.97 * done / len(corners))
            self._small_levels(store.levels, pool)
        report(1.0)

    def _here(self, corners: Sequence[Corner], store: StoreWriter, pool: ThreadPoolExecutor) -> Iterator[Corner]:
        """Do blocks in this process; yields each when it is stored. One is written while the next is made."""
        worker = BlockWorker(self.inputs, self.plan, store.levels)
        writing: list[tuple[Corner, list[Any]]] = []
        for corner in corners:
            made = worker.make(corner, pool)
            for before, pending in writing:
                store.levels.settle(pending)
                yield before
            writing = [(corner, worker.write(corner, made))]
        for before, pending in writing:
            store.levels.settle(pending)
            yield before

    def _elsewhere(self, corners: Sequence[Corner], store: StoreWriter, executor: Executor) -> Iterator[Corner]:
        """Do blocks on an executor's workers; yields each when it is stored."""
        futures = {executor.submit(_do_block, self, str(store.levels.folder), corner): corner for corner in corners}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        finally:
            for future in futures:
                future.cancel()

    def _small_levels(self, levels: LevelArrays, pool: ThreadPoolExecutor) -> None:
        """Make the levels below those of the blocks from the last of these, in slabs."""
        from opticstream.compute.stitching.volume import halved, halved_axis

        layout = self.plan.layout
        for level in range(IN_PASS_LEVELS, layout.levels):
            shape, source = layout.level_shape(level), layout.level_shape(level - 1)
            shard = layout.level_shard(level)
            piece = (shard[0], max(1, 1024 // shard[1]) * shard[1], max(1, 2048 // shard[2]) * shard[2])
            for z in range(0, shape[0], piece[0]):
                for y in range(0, shape[1], piece[1]):
                    for x in range(0, shape[2], piece[2]):
                        region = [
                            slice(2 * start, min(2 * (start + n), most))
                            for start, n, most in zip((z, y, x), piece, source, strict=True)
                        ]
                        data = levels.read(level - 1, (region[0], region[1], region[2]))
                        small = halved_axis(data, pool=pool) if self.inputs.axial else halved(data, pool=pool)
                        levels.settle([levels.write(level, (z, y, x), small)])


def _do_block(job: VolumeJob, folder: str, corner: Corner) -> None:
    """Do one block in another process."""
    with ThreadPoolExecutor(job.threads) as pool:
        levels = LevelArrays(Path(folder), job.plan.layout, threads=job.threads)
        worker = BlockWorker(job.inputs, job.plan, levels)
        levels.settle(worker.write(corner, worker.make(corner, pool)))


def dask_executor(address: str, /) -> Executor:
    """Return an executor that does blocks on the Dask cluster at `address`, for `stitch_volume`.

    Raises
    ------
    ConfigurationError
        The ``distributed`` package is not installed, or nothing answers at the address.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigurationError(
            f"a Dask cluster ({address}) was asked for, but the package distributed is not installed: pip install "
            "'opticstream[dask]'"
        ) from error
    try:
        client = Client(address, timeout="10s", set_as_default=False)
    except OSError as error:
        raise ConfigurationError(f"no Dask scheduler answers at {address}: {error}") from error
    executor: Executor = client.get_executor(pure=False)
    return executor
