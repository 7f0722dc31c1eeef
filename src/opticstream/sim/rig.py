"""The virtual rig: writes the raw tiles of a whole acquisition in order, as a microscope would, bad days included."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from opticstream.config.project import ProjectConfig
from opticstream.config.scan import NoLinearization
from opticstream.io.names import FileNameGrammar
from opticstream.model.errors import ConfigurationError
from opticstream.model.ids import TileId
from opticstream.sim.calibration import write_calibration
from opticstream.sim.onboard import complex_from_counts
from opticstream.sim.raw_files import complex_pieces, raw_size, spectral_pieces, write_slowly
from opticstream.sim.settings import PhantomSettings
from opticstream.sim.tiles import TileSimulator
from opticstream.sim.truth import truth_key, truth_key_in, write_truth
from opticstream.system.cores import one_blas_thread

MisbehaviourKind = Literal["truncate", "duplicate", "skip", "reorder", "rewrite", "stall"]


@dataclass(frozen=True)
class Misbehaviour:
    """One thing that goes wrong at one tile, counted from 1 over the whole acquisition.

    `truncate` breaks the file off half-way and goes on; `duplicate` writes the tile a second time under the next camera
    counter, or as a copy where names hold none; `skip` never writes it; `reorder` writes it after its successor;
    `rewrite` writes it again once the next tile is done; `stall` pauses for `seconds` in the middle of the file.
    """

    kind: MisbehaviourKind
    tile_number: int
    seconds: float = 5.0

    @classmethod
    def parse(cls, text: str, /) -> Misbehaviour:
        """Return the misbehaviour that ``kind:tile`` or ``stall:tile:seconds`` describes.

        Examples
        --------
        >>> Misbehaviour.parse("stall:7:2.5")
        Misbehaviour(kind='stall', tile_number=7, seconds=2.5)

        Raises
        ------
        ConfigurationError
            The kind is unknown or the tile no number.
        """
        kind, _, rest = text.partition(":")
        number, _, seconds = rest.partition(":")
        try:
            if kind not in get_args(MisbehaviourKind) or int(number) < 1:
                raise ValueError
            return cls(kind, int(number), float(seconds or 5.0))  # type: ignore[arg-type]
        except ValueError:
            raise ConfigurationError(
                f"unknown misbehaviour {text!r}; expected KIND:TILE[:SECONDS] with KIND one of "
                f"{', '.join(get_args(MisbehaviourKind))} and TILE from 1 up"
            ) from None


@dataclass(frozen=True)
class TileWritten:
    """Progress: one more tile has been dealt with."""

    tile: TileId
    path: Path
    number: int
    total: int
    kept: bool
    """The file was complete already."""


class VirtualRig:
    """Writes the raw tiles of a project.

    Parameters
    ----------
    config : ProjectConfig
        How the sample is scanned, and how files are named.
    settings : PhantomSettings
        The sample and the instrument.
    raw_folder : Path
        Where tiles appear; nothing else is ever put there.
    truth_folder : Path, optional
        Where the truth is stored; must lie outside `raw_folder` and the project.
    calibration_folder : Path, optional
        Where relative names of calibration files start; none are written without it, except those with absolute names.
    rate : float, optional
        Speed against the camera's line rate (1 = as fast as the real one); none: as fast as possible.
    workers : int
        Processes that make tiles ahead; files still appear in order. With 1 the tile is made while it is written.
    misbehaviours : tuple of Misbehaviour
        What goes wrong.
    clock, sleep : callable
        Time, for tests.

    Examples
    --------
    >>> from opticstream.config import config_from_mapping
    >>> config = config_from_mapping({"project": {"project_name": "p", "project_base_path": "/data/p"}})
    >>> VirtualRig(config, PhantomSettings(), Path("/data/raw"), Path("/data/raw/truth"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    opticstream.model.errors.ConfigurationError: truth_folder = /data/raw/truth lies inside ...
    """

    def __init__(
        self,
        config: ProjectConfig,
        settings: PhantomSettings,
        raw_folder: Path,
        truth_folder: Path | None = None,
        *,
        calibration_folder: Path | None = None,
        rate: float | None = None,
        workers: int = 1,
        misbehaviours: tuple[Misbehaviour, ...] = (),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        for forbidden in (raw_folder, config.base_path):
            if truth_folder is not None and truth_folder.absolute().is_relative_to(forbidden.absolute()):
                raise ConfigurationError(
                    f"truth_folder = {truth_folder} lies inside {forbidden}, where stages could read it"
                )
        if rate is not None and rate <= 0:
            raise ConfigurationError(f"rate must be positive, got {rate:g}")
        self.simulator = TileSimulator(config, settings)
        self.config, self.settings = config, settings
        self.raw_folder, self.truth_folder = raw_folder, truth_folder
        self.calibration_folder = calibration_folder
        self.rate, self.workers = rate, workers
        self.misbehaviours = misbehaviours
        self._clock, self._sleep = clock, sleep
        self._due: float | None = None

    def prepare(self) -> None:
        """Write the calibration files and the truth, where folders for them were given."""
        if self.calibration_folder is not None:
            write_calibration(
                self.simulator.spectrometer,
                self.config.scan,
                self.calibration_folder,
                reverse_channel2=self.config.processing.reconstruction.flip_channel2,
            )
        if self.truth_folder is not None:
            self._refuse_other_tiles(self.truth_folder)
            write_truth(self.simulator, self.truth_folder)

    def _refuse_other_tiles(self, truth_folder: Path) -> None:
        """Raise if the raw folder holds tiles of another phantom, which would count as complete ones of this."""
        key = truth_key_in(truth_folder)
        if key in (None, truth_key(self.simulator)) or not self.raw_folder.is_dir():
            return
        first = next(self.raw_folder.iterdir(), None)
        if first is not None:
            raise ConfigurationError(
                f"{self.raw_folder} holds files ({first.name}, ...) of another phantom or scan than these settings; "
                f"the truth in {truth_folder} belongs to them. Choose other folders, or empty both"
            )

    def run(self, *, progress: Callable[[TileWritten], None] = lambda event: None) -> None:
        """Write everything; complete files are kept, so that a killed rig can be started again.

        The bytes of a tile depend on the settings alone, whichever process makes it, and on how many cores.
        """
        with one_blas_thread():
            self._run(progress)

    def _run(self, progress: Callable[[TileWritten], None]) -> None:
        self.prepare()
        self.raw_folder.mkdir(parents=True, exist_ok=True)
        tiles = self.simulator.tiles()
        plan = self._plan(tiles)
        kept = [self._is_complete(step) for step in plan]
        made = self._made_ahead([step.tile for step, complete in zip(plan, kept, strict=True) if not complete])
        with contextlib.closing(made):
            for number, (step, complete) in enumerate(zip(plan, kept, strict=True), start=1):
                if not complete:
                    self._write(step, next(made))
                progress(TileWritten(step.tile, step.path, number, len(plan), complete))

    # -- order of work -----------------------------------------------------------------------------------------------

    def _plan(self, tiles: tuple[TileId, ...]) -> list[_Step]:
        """Return what is written, in order, with everything that goes wrong."""
        grammar = FileNameGrammar(self.config.scan.file_name, self.simulator.layout)
        wrong: dict[int, list[Misbehaviour]] = {}
        for m in self.misbehaviours:
            if m.tile_number > len(tiles):
                raise ConfigurationError(f"{m.kind}:{m.tile_number}: the acquisition has only {len(tiles)} tiles")
            wrong.setdefault(m.tile_number, []).append(m)
        order = list(range(1, len(tiles) + 1))
        for number in range(1, len(tiles)):
            if any(m.kind == "reorder" for m in wrong.get(number, [])):
                order[number - 1], order[number] = order[number], order[number - 1]
        steps: list[_Step] = []
        again: list[_Step] = []
        for number in order:
            tile = tiles[number - 1]
            kinds = {m.kind: m for m in wrong.get(number, [])}
            if "skip" in kinds:
                continue
            name = self._name(grammar, tile, 0)
            stall = kinds["stall"].seconds if "stall" in kinds else 0.0
            steps.append(_Step(tile, self.raw_folder / name, truncate="truncate" in kinds, stall_s=stall))
            steps += again
            again = []
            if "duplicate" in kinds:
                other = self._name(grammar, tile, 1)
                if other == name:
                    stem, dot, suffix = name.partition(".")
                    other = f"{stem} (1){dot}{suffix}"
                steps.append(_Step(tile, self.raw_folder / other))
            if "rewrite" in kinds:
                again = [_Step(tile, self.raw_folder / name, always=True)]
        return steps + again

    def _name(self, grammar: FileNameGrammar, tile: TileId, n: int) -> str:
        project = self.config.project
        word = "".join(c for c in project.project_name if c.isalnum()) or "project"
        return grammar.name_from_tile(tile, n=n, project=word, subject=project.subject_id)

    def _size(self, step: _Step) -> int:
        settings = self.config.processing.reconstruction
        cut = 24 * settings.zero_padding if settings.cut is None else settings.cut
        index = self.simulator.layout.illumination_index(step.tile.mosaic)
        whole = raw_size(self.config.scan, index, cut=cut, zero_padding=settings.zero_padding)
        return whole // 2 if step.truncate else whole

    def _is_complete(self, step: _Step) -> bool:
        if step.always:
            return False
        try:
            return step.path.stat().st_size == self._size(step)
        except FileNotFoundError:
            return False

    # -- making tiles ahead ------------------------------------------------------------------------------------------

    def _made_ahead(self, tiles: list[TileId]) -> Generator[_Blocks]:
        if self.workers <= 1:
            for tile in tiles:
                yield self.simulator.spectra(tile)
            return
        import multiprocessing
        import tempfile

        staging = Path(tempfile.mkdtemp(prefix="opticstream-rig-"))
        pool = ProcessPoolExecutor(
            self.workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(self.config, self.settings),
        )
        waiting: deque[Future[Path]] = deque()
        rest = iter(enumerate(tiles))
        try:
            # A bounded number of tiles is ahead, so that disk and memory stay bounded however long the acquisition is.
            for n, tile in rest:
                waiting.append(pool.submit(_make_tile, tile, staging / f"{n}.npy"))
                if len(waiting) > 2 * self.workers:
                    yield _blocks_from_file(waiting.popleft().result())
            while waiting:
                yield _blocks_from_file(waiting.popleft().result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            shutil.rmtree(staging, ignore_errors=True)

    # -- writing -----------------------------------------------------------------------------------------------------

    def _write(self, step: _Step, blocks: _Blocks) -> None:
        scan = self.config.scan
        index = self.simulator.layout.illumination_index(step.tile.mosaic)
        size = self._size(step)
        if scan.raw_format == "complex":
            if scan.spectral_file_name is not None:
                kept = list(blocks)
                grammar = FileNameGrammar(scan.spectral_file_name, self.simulator.layout)
                spectral = scan.model_copy(update={"raw_format": scan.spectral_format})
                name = self._name(grammar, step.tile, 0)
                write_slowly(self.raw_folder / name, spectral_pieces(kept, spectral, index))
                blocks = iter(kept)
            pieces = complex_pieces(self._complex(blocks), scan, index)
        else:
            pieces = spectral_pieces(blocks, scan, index)
        stalled = False
        a_lines, b_lines = scan.tile_shape(index)
        done = 0

        def pace(lines: int) -> None:
            nonlocal stalled, done
            done += lines
            if step.stall_s and not stalled and done * 2 >= a_lines * b_lines:
                stalled = True
                self._sleep(step.stall_s)
            if self.rate is not None:
                now = self._clock()
                self._due = (now if self._due is None else self._due) + lines / (scan.line_rate_hz * self.rate)
                if self._due > now:
                    self._sleep(self._due - now)

        write_slowly(step.path, pieces, pace=pace, limit_bytes=size if step.truncate else None)

    def _complex(self, blocks: _Blocks) -> np.ndarray[tuple[int, ...], np.dtype[np.complex64]]:
        settings = self.config.processing.reconstruction
        linear = isinstance(self.config.scan.calibration.linearization, NoLinearization)
        parts = [complex_from_counts(block, self.simulator.spectrometer, settings, linear=linear) for block in blocks]
        return np.concatenate(parts, axis=2)


@dataclass(frozen=True)
class _Step:
    tile: TileId
    path: Path
    truncate: bool = False
    stall_s: float = 0.0
    always: bool = False


_Blocks = Iterator[np.ndarray[tuple[int, ...], np.dtype[np.uint16]]]

_worker: TileSimulator | None = None


def _start_worker(config: ProjectConfig, settings: PhantomSettings) -> None:
    global _worker
    _worker = TileSimulator(config, settings)


def _make_tile(tile: TileId, path: Path) -> Path:
    assert _worker is not None
    index = _worker.layout.illumination_index(tile.mosaic)
    a_lines, b_lines = _worker.scan.tile_shape(index)
    out = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.uint16, shape=(b_lines, _worker.scan.channels, a_lines, _worker.scan.samples)
    )
    start = 0
    with one_blas_thread():
        for block in _worker.spectra(tile):
            out[start : start + len(block)] = block
            start += len(block)
    out.flush()
    return path


def _blocks_from_file(path: Path) -> _Blocks:
    whole = np.load(path, mmap_mode="r")
    step = max(1, -(-len(whole) // 8))
    for start in range(0, len(whole), step):
        yield np.array(whole[start : start + step])
    del whole
    path.unlink()
