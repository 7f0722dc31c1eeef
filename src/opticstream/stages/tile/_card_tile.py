"""A tile of any size on a graphics card, streamed by blocks in bounded memory of card and host."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from opticstream.compute.array_engine import ArrayEngine, CupyCard, device_bytes, host_bytes_per_b_line
from opticstream.compute.reconstruction import CELL_PX, Sink, SpectralPlan, TileOptions
from opticstream.config.engines import CudaEngine
from opticstream.engines import why_no_card
from opticstream.model.errors import CardError, ConfigurationError
from opticstream.stages.tile._in_blocks import reconstruct_by
from opticstream.stages.tile._large_tile import ARCHIVE_BYTES
from opticstream.stages.tile._reconstruction import Reconstructed, TileJob, options_from_job

_LARGEST_BLOCK = 32
"""B-lines per block: enough that a card's cores are busy, few enough that two blocks fit into a small card."""
_BASE_BYTES = 600 << 20
"""What the process takes before any tile: interpreter, libraries, and those of CUDA."""
_SHARE_OF_FREE = 0.9
"""Of the free memory of the card, as that is never in one piece."""


def reconstruct_on_card(job: TileJob, settings: CudaEngine, /) -> Reconstructed:
    """Read a tile once, archive and reconstruct it, write its volumes, and return the rest.

    Raises
    ------
    CardError
        There is no card that can be used, or it has too little memory, or it failed.
    ConfigurationError
        The memory budget of the host is too small.
    """
    if reason := why_no_card():
        raise CardError(reason)
    options = options_from_job(job, engine="card")
    free = CupyCard().free_bytes
    limit = int(min(settings.memory_budget_gb * 1e9, _SHARE_OF_FREE * free))
    card = CupyCard(memory_bytes=limit)
    with contextlib.ExitStack() as stack:
        stack.callback(_release, card)
        pool = stack.enter_context(ThreadPoolExecutor(max(2, job.threads), thread_name_prefix="tile"))

        def make(depth: int, plan: SpectralPlan | None, sink: Sink) -> tuple[ArrayEngine, int]:
            engine = ArrayEngine(
                options,
                a_lines=job.a_lines,
                b_lines=job.b_lines,
                channels=job.scan.channels,
                depth=depth,
                cut=0 if plan is None else plan.cut,
                plan=plan,
                device=card,
                executor=pool,
                sink=sink,
            )
            return engine, card_block_size(job, options, depth, card_bytes=limit)

        done = reconstruct_by(job, options, make, stack, pool, room=lambda size: card.room((size,), np.uint8))
    return replace(done, engine=f"cuda ({card.name})")


def _release(card: CupyCard) -> None:
    with contextlib.suppress(CardError):  # what went wrong before is what is told
        card.release()


def card_block_size(job: TileJob, options: TileOptions, depth: int, /, *, card_bytes: int) -> int:
    """Return how many B-lines are worked on at a time, so that a tile keeps within the memory of card and host.

    Raises
    ------
    CardError
        The card has too little memory for a single B-line and those that the surface must look ahead.
    ConfigurationError
        So has the host's budget.
    """
    scan, settings = job.scan, job.processing.reconstruction
    is_complex = scan.raw_format == "complex"
    samples = 2 * depth if is_complex else scan.samples
    padding = 1 if is_complex else settings.zero_padding

    def on_card(block: int) -> int:
        return device_bytes(
            options,
            block=block,
            samples=samples,
            zero_padding=padding,
            a_lines=job.a_lines,
            channels=scan.channels,
            bytes_per_sample=8 if is_complex else 2,
        )

    fixed, one = on_card(0), on_card(1)
    on_card_lines = (card_bytes - fixed) // (one - fixed)
    if on_card_lines < 1:
        raise CardError(
            f"the card has {card_bytes / 1e9:.2g} GB for a tile (processing.engine.memory_budget_gb; what is free); "
            f"tiles of {job.a_lines} x {samples} samples need {one / 1e9:.2g}"
        )
    volumes = sum(options.volume_widths(scan.channels).values())
    per_line = host_bytes_per_b_line(
        samples=samples, zero_padding=padding, a_lines=job.a_lines, channels=scan.channels, volumes=volumes
    )
    maps = (len(options.maps) + 5) * job.a_lines * job.b_lines * 4
    needed = _BASE_BYTES + maps + (ARCHIVE_BYTES if job.archive else 0)
    on_host_lines = int((settings.memory_budget_gb * 1e9 - needed) // per_line)
    if on_host_lines < 1:
        raise ConfigurationError(
            f"processing.reconstruction.memory_budget_gb = {settings.memory_budget_gb:g} is too small for tiles of "
            f"{job.a_lines} x {samples} samples on a graphics card; it needs {(needed + per_line) / 1e9:.2g}"
        )
    lines = min(_LARGEST_BLOCK, on_card_lines, on_host_lines, job.b_lines)
    return lines - lines % CELL_PX if lines > CELL_PX else lines  # whole cells of the surface come together
