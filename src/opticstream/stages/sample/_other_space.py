"""A transform from the sample to another space, such as that of an MRI, found by a command of the configuration.

The command gets the sample in cubes of 100 um and the poses, and leaves a transform; it is kept in `transforms/` with
what it was made from, and takes part in the scenes: as a matrix where it is affine, else as a displacement field.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.config.processing import SampleHookSettings
from opticstream.engines import run_command
from opticstream.io.atomic import atomic_path, write_text
from opticstream.io.nifti import nifti_geometry, read_nifti, write_nifti
from opticstream.io.nifti_header import read_nifti_header
from opticstream.io.zarr import FIELDS, ISOTROPIC_UM, DisplacementField, open_zarr_image, write_displacements
from opticstream.model.errors import ConfigurationError, InputError, OpticStreamError, ProcessingError, StateError
from opticstream.state.record import sha256_of_path
from opticstream.system.temporary_names import temporary_beside

FOLDER = "transforms"
_TRANSFORMS = (".tfm", ".h5", ".mat", ".txt")
_FIELDS = (".nii.gz", ".nii")
_SETTING = "processing.sample.hook.command"
_LPS = np.diag([-1.0, -1.0, 1.0])
"""From the axes of NIfTI to those of ITK, and back."""
_DISPLACEMENTS = 1006
"""Intent of NIfTI for displacements; ITK takes these, and only these, as along NIfTI's axes."""
_MOST_POINTS = 2_000_000
"""Of the grid on which a transform that is not linear is sampled for the scenes."""


@dataclass(frozen=True)
class OtherSpace:
    """A transform that was found.

    Attributes
    ----------
    name : str
        Name of the other space.
    transform : Path
        The file as the command left it.
    record : Path
        JSON: what it was made from.
    facts : dict
        Content of the record.
    """

    name: str
    transform: Path
    record: Path
    facts: dict[str, Any]


def register_to_other_space(
    folder: Path, cubes: Path, settings: SampleHookSettings, /, *, poses_version: int = 0
) -> OtherSpace:
    """Run the command of the configuration on the sample, and keep the transform that it leaves.

    Parameters
    ----------
    folder : Path
        Folder of the stacks.
    cubes : Path
        Store of the sample in cubes.
    settings : SampleHookSettings
        The command.
    poses_version : int
        Version of the poses, for the record.

    Raises
    ------
    ConfigurationError
        There is no command, no such program, or an unknown placeholder.
    InputError
        The sample is not there in cubes.
    ProcessingError
        The command failed, took too long, or did not leave one valid transform.
    """
    if not settings.command:
        raise ConfigurationError(f"{_SETTING} is empty: expected a program and its arguments")
    if not (cubes / "zarr.json").exists():
        raise InputError(
            f"{cubes}: the sample is not there in cubes of 100 um; it takes volumes, and processing.sample.isotropic"
        )
    kept = folder / FOLDER
    kept.mkdir(parents=True, exist_ok=True)
    work = temporary_beside(kept / "work")
    output = work / "output"
    output.mkdir(parents=True)
    try:
        image = coarsest_cubes_as_nifti(cubes, work / "sample_100um.nii.gz")
        places = {"image": image, "zarr": cubes, "poses": folder / "poses.json", "output": output}
        command = [
            _filled(part, {name: str(path.absolute()) for name, path in places.items()}) for part in settings.command
        ]
        lines = run_command(command, folder=output, time_limit_s=settings.time_limit_s, setting=_SETTING)
        found = _only_transform(output)
        facts = {
            "space": settings.name,
            "direction": "from points of the sample to points of the other space, as ITK maps fixed to moving points",
            "command": list(settings.command),
            "image_sha256": sha256_of_path(image),
            "poses_version": poses_version,
            **_checked(found, image),
            "output": list(lines[-20:]),
        }
        suffix = next(s for s in (*_TRANSFORMS, *_FIELDS) if found.name.endswith(s))
        target, record = kept / f"{settings.name}{suffix}", kept / f"{settings.name}.json"
        field = kept / f"{settings.name}_displacements.ome.zarr"
        if facts["kind"] != "affine":
            write_displacements(field, _displacements(found, image), space="sample")
            facts["displacements"] = field.name
        facts |= {"file": target.name, "sha256": sha256_of_path(found)}
        with atomic_path(target) as part:
            shutil.copyfile(found, part)
        write_text(record, json.dumps(facts, indent=1) + "\n")
        if facts["kind"] == "affine" and field.exists():
            shutil.rmtree(field)
        for other in kept.glob(f"{settings.name}.*"):
            if other not in (target, record) and other.name.endswith((*_TRANSFORMS, *_FIELDS)):
                other.unlink()
        return OtherSpace(settings.name, target, record, facts)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def other_spaces(folder: Path, /) -> list[OtherSpace]:
    """Return the transforms that are kept, by the name of the space.

    Raises
    ------
    StateError
        A record cannot be read.
    """
    found = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            facts = json.loads(path.read_bytes())
            found.append(OtherSpace(facts["space"], path.with_name(facts["file"]), path, facts))
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(f"{path}: cannot be read ({error!r}); remove it, and register the sample again") from error
    return found


def scene_transforms(folder: Path, /) -> tuple[list[dict[str, Any]], dict[str, Path]]:
    """Return the transforms to other spaces as NGFF has them, um along z, y, x, and their displacement fields."""
    transforms: list[dict[str, Any]] = []
    fields: dict[str, Path] = {}
    for space in other_spaces(folder):
        ends = {"input": {"name": "sample"}, "output": {"name": space.name}, "name": f"sample to {space.name}"}
        if space.facts.get("affine_zyx_um") is not None:
            transforms.append({"type": "affine", **ends, "affine": space.facts["affine_zyx_um"]})
        elif "displacements" in space.facts:
            fields[space.name] = space.record.with_name(space.facts["displacements"])
            where = f"{FIELDS}/{space.name}"
            transforms.append({"type": "displacements", **ends, "path": where, "interpolation": "linear"})
    return transforms, fields


def coarsest_cubes_as_nifti(cubes: Path, target: Path, /) -> Path:
    """Write the cubes of 100 um of a sample as NIfTI, in mm of the sample's space, and return its path."""
    level = len(ISOTROPIC_UM) - 1
    array = np.asarray(open_zarr_image(cubes / str(level)).array.read().result()).transpose(2, 1, 0)
    attributes = json.loads((cubes / "zarr.json").read_bytes())["attributes"]
    steps = attributes["ome"]["multiscales"][0]["datasets"][level]["coordinateTransformations"]
    shift_um = next(step["translation"] for step in steps if step["type"] == "translation")
    edge_mm = ISOTROPIC_UM[level] / 1000
    x, y, z = (float(s) / 1000 for s in shift_um[::-1])
    return write_nifti(target, array, voxel_size_mm=(edge_mm,) * 3, origin_mm=(x, y, z), description="sample, 100 um")


def _filled(part: str, places: dict[str, str]) -> str:
    try:
        return part.format(**places)
    except (KeyError, IndexError, ValueError) as error:
        names = ", ".join("{" + name + "}" for name in places)
        raise ConfigurationError(f"{_SETTING}: {part!r}: {error!r}; known placeholders are {names}") from error


def _only_transform(output: Path) -> Path:
    found = sorted(p for p in output.rglob("*") if p.is_file() and p.name.endswith((*_TRANSFORMS, *_FIELDS)))
    if len(found) != 1:
        told = ", ".join(p.name for p in found) or "nothing"
        raise ProcessingError(
            f"the command of {_SETTING} left {told} in {{output}}; expected one transform of ITK "
            f"({', '.join(_TRANSFORMS)}) or one displacement field (.nii, .nii.gz)"
        )
    return found[0]


def _checked(path: Path, image: Path) -> dict[str, Any]:
    """Return the kind of a transform and its affine mapping, if it is one; raise ProcessingError if it is not valid."""
    if path.name.endswith(_FIELDS):
        return _checked_field(path, image)
    import SimpleITK as sitk  # noqa: N813

    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        why = " ".join(str(error).split())[-300:]
        raise ProcessingError(f"{path.name}: is not a transform that ITK reads ({_SETTING}): {why}") from error
    if transform.GetDimension() != 3:
        raise ProcessingError(f"{path.name}: expected a transform in 3 dimensions, got {transform.GetDimension()}")
    matrix = _affine_of(transform)
    if not np.isfinite(matrix).all():
        raise ProcessingError(f"{path.name}: the transform maps points of the sample to no finite points ({_SETTING})")
    if not transform.IsLinear():
        return {"kind": "transform", "affine_zyx_um": None}
    if abs(np.linalg.det(matrix[:, :3])) < 1e-6:
        raise ProcessingError(f"{path.name}: the transform cannot be inverted ({_SETTING})")
    return {"kind": "affine", "affine_zyx_um": np.round(matrix, 9).tolist()}


def _affine_of(transform: Any) -> NDArray[np.float64]:
    """Return the affine mapping of a linear transform of ITK (mm, LPS), um along z, y, x, shape (3, 4)."""
    corners = np.vstack([np.zeros(3), np.eye(3)])
    mapped = np.array([transform.TransformPoint(tuple(map(float, point))) for point in corners])
    matrix, offset = (mapped[1:] - mapped[0]).T, mapped[0]
    matrix, offset = _LPS @ matrix @ _LPS, _LPS @ offset * 1000
    return np.column_stack([matrix[::-1, ::-1], offset[::-1]])


def _checked_field(path: Path, image: Path) -> dict[str, Any]:
    try:
        field, wanted = read_nifti(path), nifti_geometry(image)
        geometry, shape = nifti_geometry(path), read_nifti(image).shape
    except OpticStreamError as error:
        raise ProcessingError(f"{path.name}: cannot be read as a displacement field: {error}") from error
    if field.shape not in ((*shape, 1, 3), (*shape, 3)):
        raise ProcessingError(
            f"{path.name}: expected displacements of the shape {(*shape, 1, 3)} on the grid of the image, got "
            f"{field.shape}"
        )
    if not np.allclose(geometry.affine_mm, wanted.affine_mm, atol=1e-3):
        raise ProcessingError(f"{path.name}: the displacements lie on another grid than the image")
    if not np.isfinite(field).all():
        raise ProcessingError(f"{path.name}: holds displacements that are not finite")
    return {"kind": "displacements", "affine_zyx_um": None}


def _displacements(path: Path, image: Path) -> DisplacementField:
    """Return a transform that is not linear as displacements along the axes of the sample, on the grid of the image.

    A transform is sampled more coarsely where the grid is large.
    """
    geometry, shape = nifti_geometry(image), read_nifti_header(image).shape[:3]
    voxel_mm, origin_mm = np.array(geometry.voxel_size_mm), geometry.affine_mm[:3, 3]
    if path.name.endswith(_FIELDS):
        vectors = read_nifti(path).reshape(*shape, 3)
        if int(read_nifti_header(path).fields["intent_code"]) != _DISPLACEMENTS:
            vectors = vectors * np.diag(_LPS)
    else:
        import SimpleITK as sitk  # noqa: N813

        coarser = max(1, int(np.ceil((np.prod(shape) / _MOST_POINTS) ** (1 / 3))))
        shape, voxel_mm = tuple(-(-(n - 1) // coarser) + 1 for n in shape), voxel_mm * coarser
        field = sitk.TransformToDisplacementField(
            sitk.ReadTransform(str(path)),
            sitk.sitkVectorFloat32,
            [int(n) for n in shape],
            (_LPS @ origin_mm).tolist(),
            voxel_mm.tolist(),
            _LPS.ravel().tolist(),
        )
        vectors = sitk.GetArrayFromImage(field).transpose(2, 1, 0, 3) * np.diag(_LPS)
    # (x, y, z, component along x, y, z) here is (component along z, y, x; z, y, x) there
    to_um = np.asarray(vectors[..., ::-1] * 1000, np.float32).transpose(3, 2, 1, 0)
    z, y, x = (float(size * 1000) for size in voxel_mm[::-1])
    at_z, at_y, at_x = (float(place * 1000) for place in origin_mm[::-1])
    return DisplacementField(to_um, (z, y, x), (at_z, at_y, at_x))
