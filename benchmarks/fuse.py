"""How fast volumes are stitched, against the cost of reading and writing every byte once, and against a peer.

    python benchmarks/fuse.py [--grid 4] [--tile 350 350 400] [--peer] [--modality dBI] [--repeat 3]

The limit is measured in the same run, with the same libraries and compression: each input file is read once into a
buffer, and a store of the result's shape and levels is written from memory once, at the same time. The peer
(multiview-stitcher) runs in an environment of its own that this script makes from PyPI, in two ways: to the same result
(OME-Zarr with its levels), and to one bare array, which is less work than ours.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ENVIRONMENTS = Path(__file__).parents[1] / "build" / "peers"
OVERLAP = 0.2


def write_tiles(folder: Path, grid: int, tile: tuple[int, int, int]) -> tuple[Path, list[list[float]]]:
    """Write noisy float32 NIfTI tiles with stage jitter, and the template of their true positions."""
    from opticstream.io.nifti_stream import nifti_header
    from opticstream.io.tilemap import TileMap, TilePlace, write_template

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    width, height, depth = tile
    header = nifti_header(tile, voxel_size_mm=(0.01, 0.01, 0.0025))
    noise = rng.normal(size=(64, height, width)).astype(np.float32)
    profile = 60 - 0.05 * np.arange(depth)
    places = []
    for k in range(grid * grid):
        column, row = divmod(k, grid)
        position = np.array([column * width, row * height]) * (1 - OVERLAP) + rng.uniform(-2, 2, 2)
        places.append(TilePlace(k + 1, (float(position[0]), float(position[1]))))
        with (folder / f"mosaic_001_image_{k + 1:04d}_dBI.nii").open("wb") as file:
            file.write(header)
            for z in range(depth):
                file.write((noise[(z + 7 * k) % 64] * 4 + np.float32(profile[z])).tobytes())
    template = write_template(folder / "tilemap.j2", TileMap("normal", (width, height), (grid, grid), tuple(places)))
    return template, [list(p.position_px) for p in places]


STITCH = """
import json, sys, time
start = time.perf_counter()
from pathlib import Path
from opticstream.config.processing import VolumeSettings
from opticstream.config.scan import IlluminationSettings, ScanSettings
from opticstream.io.tilemap import read_tilemap
from opticstream.model.ids import MosaicId
from opticstream.stages.mosaic import tiles_of_mosaic
from opticstream.stages.volume import stitch_modality
folder, out, grid, width, height, modality, budget = sys.argv[1:8]
folder, grid, width, height = Path(folder), int(grid), int(width), int(height)
scan = ScanSettings(b_lines=height, grid_size_y=grid, scan_order="column by column",
                    illuminations=(IlluminationSettings(name="normal", columns=grid, a_lines=width),))
tiles = tiles_of_mosaic(MosaicId(1), scan=scan, folder=folder, modalities=("dBI",))
object.__setattr__(tiles, "files", {modality: tiles.files["dBI"]})
stitch_modality(tiles, read_tilemap(folder / "tilemap.j2"), modality, Path(out), voxel_size_mm=(0.01, 0.01, 0.0025),
                settings=VolumeSettings(memory_budget_gb=float(budget)))
"""

PEAK = """
# Not getrusage: its peak begins with that of the process that was forked to start this one.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"seconds": time.perf_counter() - start, "peak_mb": int(status["VmHWM"].split()[0]) / 1024}))
"""

PEER = """
import json, sys, time
start = time.perf_counter()
import numpy as np, nibabel as nib, dask.array as da, zarr
from pathlib import Path
from multiview_stitcher import fusion, msi_utils, spatial_image_utils as si_utils
folder, out, positions = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
sims = []
for k, (x, y) in enumerate(positions):
    data = np.asarray(nib.load(folder / f"mosaic_001_image_{k + 1:04d}_dBI.nii").dataobj).T
    sims.append(si_utils.get_sim_from_array(
        da.from_array(data[None, None], chunks=(1, 1, 128, 256, 256)), dims=["t", "c", "z", "y", "x"],
        scale={"z": 1.0, "y": 1.0, "x": 1.0}, translation={"z": 0.0, "y": y, "x": x}, transform_key="stage"))
fused = fusion.fuse(sims, transform_key="stage", output_chunksize={"z": 128, "y": 256, "x": 256})
"""
PEER_WRITES = {
    "peer": "from multiview_stitcher import ngff_utils; ngff_utils.write_sim_to_ome_zarr(fused, out, overwrite=True)\n",
    "peer_bare_array": "fused.data.squeeze().to_zarr(out, overwrite=True)\n",
}


def run_json(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def limit_seconds(folder: Path, store: Path, scratch: Path) -> float:
    """Return the time to read every input byte once and write every output byte once, at the same time."""
    from concurrent.futures import ThreadPoolExecutor

    from opticstream.io.zarr import LevelArrays, read_attributes, read_volume, store_layout

    attributes = read_attributes(store)
    levels = len(attributes["ome"]["multiscales"][0]["datasets"])
    data = [np.ascontiguousarray(read_volume(store, level=level).T) for level in range(levels)]
    layout = store_layout(data[0].shape, voxel_size_um=(2.5, 10, 10))
    files = sorted(folder.glob("*_dBI.nii"))

    def read(path: Path) -> None:
        buffer = bytearray(16 << 20)
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    start = time.perf_counter()
    target = LevelArrays(scratch, layout, threads=2)
    with ThreadPoolExecutor(2) as pool:
        reading = [pool.submit(read, path) for path in files]
        for level, volume in enumerate(data):
            shard = layout.level_shard(level)
            for z in range(0, volume.shape[0], shard[0]):
                target.write(level, (z, 0, 0), volume[z : z + shard[0]]).result()
        for future in reading:
            future.result()
    # The stage brings its store to the disk before it names it; so does the limit.
    from opticstream.io.atomic import sync_path

    for file in scratch.rglob("*"):
        if file.is_file():
            sync_path(file)
    return time.perf_counter() - start


def peer_python() -> Path:
    """Return the interpreter of the peer's environment, made where it is not there."""
    folder = ENVIRONMENTS / "multiview-stitcher"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "-q", "multiview-stitcher", "nibabel"], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=int, default=4)
    parser.add_argument("--tile", type=int, nargs=3, default=(350, 350, 400))
    parser.add_argument("--modality", default="dBI", help="O3D blends the same bytes as angles of an axis")
    parser.add_argument("--budget", type=float, default=4.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--peer", action="store_true", help="minutes more")
    parser.add_argument("--scratch", type=Path, default=None)
    choices = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(dir=choices.scratch))
    try:
        tiles = scratch / "tiles"
        _, positions = write_tiles(tiles, choices.grid, tuple(choices.tile))
        size_in = sum(p.stat().st_size for p in tiles.glob("*.nii")) / 1e9
        ours: list[dict[str, float]] = []
        limits: list[float] = []
        arguments = [str(choices.grid), str(choices.tile[0]), str(choices.tile[1]), choices.modality]
        store = scratch / "v.ome.zarr"
        for _ in range(choices.repeat):  # taken in turns, so that a busy machine is busy for both
            shutil.rmtree(store, ignore_errors=True)
            command = [sys.executable, "-c", STITCH + PEAK, str(tiles), str(store), *arguments, str(choices.budget)]
            ours.append(run_json(command))
            shutil.rmtree(scratch / "limit", ignore_errors=True)
            limits.append(limit_seconds(tiles, store, scratch / "limit"))
        size_out = sum(p.stat().st_size for p in store.rglob("*") if p.is_file()) / 1e9
        result = {
            "in_gb": round(size_in, 2),
            "out_gb": round(size_out, 2),
            "ours_s": round(statistics.median(o["seconds"] for o in ours), 2),
            "limit_s": round(statistics.median(limits), 2),
            "ratio": round(statistics.median(o["seconds"] / w for o, w in zip(ours, limits, strict=True)), 2),
            "peak_mb": round(max(o["peak_mb"] for o in ours)),
            "budget_gb": choices.budget,
        }
        if choices.peer:
            arguments = [str(tiles), str(scratch / "p.zarr"), json.dumps(positions)]
            for name, write in PEER_WRITES.items():
                shutil.rmtree(scratch / "p.zarr", ignore_errors=True)
                peer = run_json([str(peer_python()), "-c", PEER + write + PEAK, *arguments])
                result |= {f"{name}_s": round(peer["seconds"], 1), f"{name}_peak_mb": round(peer["peak_mb"])}
                result[f"{name}_times_slower"] = round(peer["seconds"] / result["ours_s"], 1)
        print(json.dumps(result, indent=1))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
