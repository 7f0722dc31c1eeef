"""One project: its name and folders, how it was scanned, and how it is processed."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, PrivateAttr, model_validator

from opticstream.config.base import Settings
from opticstream.config.processing import ProcessingSettings
from opticstream.config.publish_targets import PublishSettings
from opticstream.config.scan import ScanSettings
from opticstream.model.modalities import polarized


class ProjectSettings(Settings):
    """Name and folders of the project."""

    project_name: str = Field(min_length=1, max_length=200)
    """Name of the project; any text."""
    project_base_path: Path
    """Folder for all results; relative paths start at the folder of the project file."""
    archive_path: Path | None = None
    """Folder for the archive copies (the DANDISET); default: `DANDISET` in the project's folder."""
    raw_path: Path | None = None
    """Present folder of the raw tiles, if they were moved after they were found; default: where they were found."""
    subject_id: str = Field(default="01", pattern=r"^[A-Za-z0-9]+$")
    """Subject, as in `sub-{subject_id}`: letters and digits."""

    @property
    def archive_root(self) -> Path:
        return self.archive_path or self.project_base_path / "DANDISET"


class ProjectConfig(Settings):
    """Everything that a project file contains."""

    project: ProjectSettings
    """Name and folders of the project."""
    scan: ScanSettings = ScanSettings()
    """Facts about the instrument and the acquisition."""
    processing: ProcessingSettings = ProcessingSettings()
    """Choices of the scientist."""
    publish: PublishSettings = PublishSettings()
    """Where results are uploaded."""
    _configured: ProjectConfig | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        scan, processing = self.scan, self.processing
        if scan.channels == 1:
            for key, wanted in (
                ("processing.enface.modalities", processing.enface.modalities),
                ("processing.reconstruction.volume_modalities", processing.reconstruction.volume_modalities),
                ("processing.volume.modalities", processing.volume.modalities),
            ):
                refused = polarized(wanted)
                if refused:
                    raise ValueError(f"{key} has {refused}, which need two channels, but scan.channels = 1")
        if processing.reconstruction.background == "file" and scan.calibration.background_file is None:
            raise ValueError(
                'processing.reconstruction.background = "file" needs scan.calibration.background_file, which is not set'
            )
        if processing.archive.enabled and processing.archive.format == "zarr" and scan.archived_format == "complex":
            raise ValueError(
                'processing.archive.format = "zarr" is for spectra, but scan.raw_format = "complex" without '
                'scan.spectral_file_name archives complex tiles; expected "nii.gz"'
            )
        missing = sorted(set(processing.volume.modalities) - set(processing.reconstruction.volume_modalities))
        if processing.volume.enabled and processing.reconstruction.save_volumes and missing:
            raise ValueError(
                f"processing.volume.modalities has {missing}, which processing.reconstruction.volume_modalities lacks"
            )
        unknown = sorted(
            set(processing.mask.threshold_db) - {i.name for i in scan.illuminations} - {"normal", "tilted"}
        )
        if unknown:
            raise ValueError(f"processing.mask.threshold_db names illuminations that do not exist: {unknown}")
        return self

    @property
    def name(self) -> str:
        return self.project.project_name

    @property
    def base_path(self) -> Path:
        return self.project.project_base_path

    @property
    def as_configured(self) -> ProjectConfig:
        """The same with the paths as they were configured, where this host has other names for them.

        That is what is registered and what events carry, because each host has a path map of its own.
        """
        return self._configured or self

    def configured_as(self, configured: ProjectConfig, /) -> ProjectConfig:
        """Return this configuration, which keeps that its paths were configured otherwise."""
        copy = self.model_copy()
        copy._configured = configured.as_configured
        return copy

    @property
    def stitches_volumes(self) -> bool:
        """Whether volumes are stitched at all."""
        return self.processing.volume.enabled and self.processing.reconstruction.save_volumes
