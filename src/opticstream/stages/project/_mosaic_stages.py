"""Which settings and files of a project each stage of a mosaic takes: said once, for commands and pipeline."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from opticstream.config import DeploymentSettings, ProjectConfig
from opticstream.config.processing import StitchSettings, VolumeSettings
from opticstream.io.paths import ProjectPaths
from opticstream.model.ids import MosaicId
from opticstream.stages import mosaic as mosaic_stages
from opticstream.stages import volume as volume_stages
from opticstream.stages.mosaic import CoordinatesResult, FocusResult, MosaicResult
from opticstream.stages.volume import VolumeResult

Progress = Callable[[float], None]


@dataclass(frozen=True)
class MosaicStages:
    """The stages of one mosaic of a project.

    Attributes
    ----------
    config : ProjectConfig
        Settings of the project.
    paths : ProjectPaths
        Its folders.
    mosaic : MosaicId
        The mosaic.
    results_folder : Path, optional
        Folder of maps, volumes and quality pictures; the project's own if None. Template and focus map belong to the
        illumination and always lie in the project.
    deployment : DeploymentSettings, optional
        How other programs are started on this host; default: as the environment says.
    """

    config: ProjectConfig
    paths: ProjectPaths
    mosaic: MosaicId
    results_folder: Path | None = None
    deployment: DeploymentSettings | None = None

    @property
    def folder(self) -> Path:
        """Folder of maps, volumes and quality pictures."""
        return self.results_folder or self.paths.stitched_folder(self.mosaic)

    @property
    def tiles_folder(self) -> Path:
        """Folder of the tiles' products."""
        return self.paths.processed_folder(self.mosaic)

    @property
    def template(self) -> Path:
        """Coordinate template of the mosaic's illumination."""
        return self.paths.tilemap(self._illumination)

    @property
    def focus_map(self) -> Path:
        """Focus map of the mosaic's illumination."""
        return self.paths.focus(self._illumination)

    @property
    def mask(self) -> Path:
        """Mask beside the results; that of the project where there is none. It may not exist."""
        of_project = self.paths.readable(self.paths.mosaic_product(self.mosaic, "mask"))
        beside = self.folder / of_project.name
        return beside if beside.exists() else of_project

    @property
    def shading(self) -> Path | None:
        """Shading of the mosaic, of the same run as the mask; None without `processing.stitch.shading_correction`."""
        if not self.config.processing.stitch.shading_correction:
            return None
        of_project = self.paths.readable(self.paths.mosaic_product(self.mosaic, "shading"))
        beside = self.folder / of_project.name
        return beside if beside.exists() else of_project

    @property
    def _illumination(self) -> str:
        return self.paths.layout.illumination_of(self.mosaic).name

    def find_coordinates(self, *, refresh: bool = False, margin_px: int | None = None) -> CoordinatesResult:
        """Determine the illumination's template from this mosaic, or return the one that is there.

        Parameters
        ----------
        refresh : bool
            Replace a template that is there, whatever the settings say.
        margin_px : int, optional
            In place of `processing.coordinates.margin_px`.
        """
        changes = ({"margin_px": margin_px} if margin_px else {}) | (
            {"force_refresh_coordinates": True} if refresh else {}
        )
        return mosaic_stages.find_coordinates(
            self.mosaic,
            scan=self.config.scan,
            settings=self.config.processing.coordinates.model_copy(update=changes),
            tiles_folder=self.tiles_folder,
            template_path=self.template,
            qc_folder=self.folder,
            deployment=self.deployment,
        )

    def find_focus(self, *, refresh: bool = False) -> FocusResult:
        """Determine the illumination's focus map from this mosaic, or return the one that is there.

        Parameters
        ----------
        refresh : bool
            Replace a focus map that is there, whatever the settings say.
        """
        return mosaic_stages.find_focus(
            self.mosaic,
            scan=self.config.scan,
            settings=self.config.processing.focus.model_copy(update={"force_refresh": True} if refresh else {}),
            tiles_folder=self.tiles_folder,
            template_path=self.template,
            focus_path=self.focus_map,
            qc_folder=self.folder,
        )

    def stitch_mosaic(
        self, *, settings: StitchSettings | None = None, progress: Progress | None = None
    ) -> MosaicResult:
        """Stitch the maps.

        Parameters
        ----------
        settings : StitchSettings, optional
            In place of `processing.stitch`.
        progress : callable, optional
            Told the fraction done.
        """
        processing = self.config.processing
        return mosaic_stages.stitch_mosaic(
            self.mosaic,
            scan=self.config.scan,
            enface=processing.enface,
            mask=processing.mask,
            stitch=settings or processing.stitch,
            tiles_folder=self.tiles_folder,
            template_path=self.template,
            stitched_folder=self.folder,
            progress=progress,
        )

    def stitch_volume(
        self,
        *,
        settings: VolumeSettings | None = None,
        progress: Progress | None = None,
        executor: Executor | None = None,
    ) -> VolumeResult:
        """Stitch the volumes.

        Parameters
        ----------
        settings : VolumeSettings, optional
            In place of `processing.volume`.
        progress : callable, optional
            Told the fraction done.
        executor : concurrent.futures.Executor, optional
            Does the blocks elsewhere.
        """
        return volume_stages.stitch_volume(
            self.mosaic,
            scan=self.config.scan,
            settings=settings or self.config.processing.volume,
            tiles_folder=self.tiles_folder,
            template_path=self.template,
            focus_path=self.focus_map,
            mask_path=self.mask,
            shading_path=self.shading,
            stitched_folder=self.folder,
            threads=self.config.processing.reconstruction.threads,
            progress=progress,
            executor=executor,
        )
