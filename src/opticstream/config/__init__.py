"""All settings, in three frozen trees: scan (facts about instrument and sample), processing (choices of the scientist)
and deployment (paths, hosts, limits; the only tree that reads the environment).
"""

from opticstream.config.deployment import DeploymentSettings
from opticstream.config.loading import config_from_mapping, load_project, parameters_hash
from opticstream.config.overrides import OptionText
from opticstream.config.processing import ProcessingSettings
from opticstream.config.project import ProjectConfig, ProjectSettings
from opticstream.config.scan import CalibrationSettings, IlluminationSettings, ScanSettings

__all__ = [
    "CalibrationSettings",
    "DeploymentSettings",
    "IlluminationSettings",
    "OptionText",
    "ProcessingSettings",
    "ProjectConfig",
    "ProjectSettings",
    "ScanSettings",
    "config_from_mapping",
    "load_project",
    "parameters_hash",
]
