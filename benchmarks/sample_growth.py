"""What it costs to add a slice to a large sample: slabs that are written, memory and processor time.

Slices are squares of a synthetic tissue with all their maps, seen three times in depth; each is added by a process of
its own. All slices are links to the same volume, which is registered and blended as any other.

    python benchmarks/sample_growth.py --sizes 750 1500 3000 --planes 60 --slices 5
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from opticstream.config.processing import SampleSettings
from opticstream.io.nifti import write_nifti
from opticstream.io.zarr import SliceStore
from opticstream.stages.sample import SampleInput, update_sample
from opticstream.system.memory import start_with_few_arenas

SECTION_PLANES = 20
PLANE_UM = 10.0


def make_slice(folder: Path, size: int, planes: int) -> None:
    """Write the volume and the maps of a slice."""
    from scipy import ndimage

    rng = np.random.default_rng(size)
    rough = ndimage.gaussian_filter(rng.standard_normal((size // 3 + 8,) * 2, dtype=np.float32), 2.0)
    rough = ndimage.zoom(rough / rough.std(), 3, order=1)[:size, :size]
    x, y = np.ogrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    inside = x**2 + y**2 < 0.8
    base = np.where(inside, 5 * rough - 10, -38).astype(np.float32)

    def read(xs: slice, ys: slice) -> np.ndarray:
        some = np.random.default_rng([xs.start, ys.start])
        looks = some.standard_gamma(4, (*base[xs, ys].shape, planes), dtype=np.float32) / 4
        return base[xs, ys][:, :, None] - np.arange(planes, dtype=np.float32) * 0.15 + 10 * np.log10(looks)

    SliceStore(folder / "v.ome.zarr", planes, (10.0, 10.0, PLANE_UM)).put(0, (size, size), read)
    voxel = (0.01, 0.01, 0.2)
    write_nifti(folder / "aip.nii.gz", base, voxel_size_mm=voxel)
    write_nifti(folder / "inplane.nii.gz", 40 * np.tanh(rough), voxel_size_mm=voxel)
    axis = np.stack([np.cos(rough), np.sin(rough), np.zeros_like(rough)], axis=-1)[:, :, None]
    write_nifti(folder / "axis.nii.gz", axis, voxel_size_mm=voxel)


def slice_input(folder: Path, slice_id: int) -> SampleInput:
    """Return a slice, whose files are links to those of all slices."""
    own = folder / f"slice{slice_id}"
    own.mkdir(exist_ok=True)
    for name in ("v.ome.zarr", "aip.nii.gz", "inplane.nii.gz", "axis.nii.gz"):
        if not (own / name).exists():
            (own / name).symlink_to(folder / name)
    maps = {
        "normal_aip": own / "aip.nii.gz",
        "registered_inplane": own / "inplane.nii.gz",
        "registered_axis": own / "axis.nii.gz",
    }
    settings = SampleSettings(isotropic=True)
    volumes = {"normal_dBI": own / "v.ome.zarr"}
    thickness = SECTION_PLANES * PLANE_UM
    return SampleInput(folder / "sample", slice_id, maps, volumes, settings=settings, slice_thickness_um=thickness)


def chunks(folder: Path) -> dict[Path, int]:
    """Return when each chunk of the stacks was written."""
    return {p: p.stat().st_mtime_ns for p in (folder / "sample").rglob("c/**/*") if p.is_file()}


def slabs_written(before: dict[Path, int], after: dict[Path, int]) -> list[int]:
    """Return the slabs of the volume of which a chunk was written."""
    changed = {p for p, when in after.items() if before.get(p) != when and "isotropic" not in p.parts}
    volume = {p for p in changed if "normal_dBI.ome.zarr" in p.parts}
    return sorted({int(p.parts[-3]) + 1 for p in volume})


def peak_memory_mb() -> int:
    """Return the largest memory of this process so far; that of its parent does not count."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024


def add(folder: Path, slice_id: int) -> None:
    """Add one slice, and print what that took."""
    before, start = chunks(folder), time.process_time()
    made = update_sample(slice_input(folder, slice_id))
    figures = {
        "slice": slice_id,
        "slabs": slabs_written(before, chunks(folder)),
        "moved": list(made.moved),
        "seconds": round(time.process_time() - start, 1),
        "memory_mb": peak_memory_mb(),
    }
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[750, 1500], help="sides of the slices in pixels")
    parser.add_argument("--planes", type=int, default=60)
    parser.add_argument("--slices", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work; default: the temporary folder")
    parser.add_argument("--add", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    start_with_few_arenas()  # as the program does
    if given.add:
        add(given.folder, given.add)
        return
    if given.folder:
        given.folder.mkdir(parents=True, exist_ok=True)
    for size in given.sizes:
        with tempfile.TemporaryDirectory(prefix="sample-growth-", dir=given.folder) as name:
            make_slice(Path(name), size, given.planes)
            for slice_id in range(1, given.slices + 1):
                command = [sys.executable, __file__, "--folder", name, "--add", str(slice_id)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                print(f"{size} x {size} x {given.planes}: {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
