"""Our own code against MATLAB or Octave, on the same tile and the same slice: time, processor time, differences.

    .venv/bin/python benchmarks/engines.py                                              # a small tile, a small slice
    .venv/bin/python benchmarks/engines.py --samples 2048 --a-lines 150 --b-lines 150   # a quarter of a rig's tile

Everything goes from files to files; the time of MATLAB has its start in it. OPTICSTREAM_MATLAB_COMMAND names the
program; without it, it is the first of matlab, octave-cli and octave on the PATH.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from opticstream.compute.registration import register_images
from opticstream.config import DeploymentSettings
from opticstream.config.engines import MatlabEngine
from opticstream.engines import matlab_program
from opticstream.model.ids import TileId
from opticstream.sim.settings import InstrumentSettings, PhantomSettings, SampleSettings
from opticstream.sim.tiles import TileSimulator
from opticstream.stages.slice import mapping_finder_by_matlab
from opticstream.stages.tile import MatlabTiles, compare_engines, process_tile
from opticstream.testing.raw_tiles import write_spectral_nifti
from opticstream.testing.slice_phantom import Picture, make_slice
from opticstream.testing.tile_phantom import one_tile_config

TILE = TileId(1, 1)


def measured(step, repeats):
    """Return the medians of wall time and processor time, that of the programs that were started included."""
    walls, processors = [], []
    for _ in range(repeats):
        wall, before = time.perf_counter(), os.times()
        step()
        after = os.times()
        walls.append(time.perf_counter() - wall)
        processors.append(sum(after[:4]) - sum(before[:4]))
    return float(np.median(walls)), float(np.median(processors))


def told(name, native, matlab):
    print(f"{name}:")
    print(f"  own code          {native[0]:7.2f} s, {native[1]:7.2f} s of processor")
    print(f"  MATLAB or Octave  {matlab[0]:7.2f} s, {matlab[1]:7.2f} s of processor")
    print(f"  ratio             {matlab[0] / native[0]:7.1f}  , {matlab[1] / native[1]:7.1f}")


def tiles(options, folder):
    config = one_tile_config(samples=options.samples, a_lines=options.a_lines, b_lines=options.b_lines)
    scan = config.scan.model_copy(update={"calibration": type(config.scan.calibration)()})
    phantom = PhantomSettings(
        seed=1, slices=1, sample=SampleSettings(outline="full"), instrument=InstrumentSettings(scattering_db=-36.0)
    )
    counts = np.concatenate(list(TileSimulator(config, phantom).spectra(TILE)))
    raw = write_spectral_nifti(folder / "mosaic_001_image_0001_spectral_0000.nii", counts)
    reconstruction = config.processing.reconstruction.model_copy(update={"save_volumes": True, "threads": 1})
    processing = config.processing.model_copy(update={"reconstruction": reconstruction})
    by_matlab = processing.model_copy(update={"engine": MatlabEngine()})

    def native():
        process_tile(raw, TILE, scan=scan, processing=processing, out_dir=folder / "native")

    def matlab():
        with MatlabTiles(
            {TILE: raw}, scan=scan, processing=by_matlab, deployment=DeploymentSettings(), folder=folder / "matlab"
        ) as call:
            process_tile(raw, TILE, scan=scan, processing=by_matlab, out_dir=folder / "matlab", matlab=call)

    native()  # compiles
    size = f"{options.samples} samples x {options.a_lines} x {options.b_lines} x 2 channels"
    times = measured(native, options.repeats), measured(matlab, options.repeats)
    told(f"tile of {size}, with volumes, one thread of our own code", *times)
    lines = options.a_lines * options.b_lines
    print(f"  A-lines/s         {lines / times[0][0]:7.0f}  , {lines / times[1][0]:7.0f}")
    made = compare_engines(
        raw, TILE, scan=scan, processing=processing, deployment=DeploymentSettings(), folder=folder / "compared"
    )
    for one in made.differences:
        print(f"  {one.product}: {one.most:.2g} {one.unit}{'' if one.is_small else '  beyond its limit'}")


def slices(options, folder):
    shape = (options.slice, options.slice)
    tilted = Picture(tilt_deg=-15.0, rotation_deg=2.0, shift_px=(10.0, -7.0), shape=shape, scale=(0.97, 1.0))
    one, other = make_slice((Picture(shape=shape), tilted)).beams
    finder = mapping_finder_by_matlab(MatlabEngine(), DeploymentSettings(), folder, name="slice 1")
    found = {}

    def registered(name, finder):
        found[name] = register_images(
            one.birefringence,
            other.birefringence,
            details=[(one.intensity, other.intensity)],
            scale_guess=(0.966, 1.0),
            finder=finder,
        )

    registered("native", None)  # loads ITK
    times = (
        measured(lambda: registered("native", None), options.repeats),
        measured(lambda: registered("matlab", finder), options.repeats),
    )
    told(f"registration of two illuminations of {shape[0]} x {shape[1]} px", *times)
    corners = [[0, 0], [shape[0], 0], [0, shape[1]], shape]
    apart = np.abs(found["native"].mapping.points(corners) - found["matlab"].mapping.points(corners)).max()
    print(f"  largest distance of the mappings at the corners: {apart:.4f} px")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--a-lines", type=int, default=64)
    parser.add_argument("--b-lines", type=int, default=64)
    parser.add_argument("--slice", type=int, default=240, help="Size of a mosaic along both axes, in pixels; 0: none.")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    print(f"program: {matlab_program(DeploymentSettings(), MatlabEngine()).path}")
    with tempfile.TemporaryDirectory() as name:
        tiles(options, Path(name))
        if options.slice:
            slices(options, Path(name))


if __name__ == "__main__":
    main()
