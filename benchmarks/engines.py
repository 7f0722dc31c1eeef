"""One tile by our own code and by MATLAB or Octave, both to files: times, and the largest differences.

.venv/bin/python benchmarks/engines.py --samples 2048 --a-lines 100 --b-lines 100
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from opticstream.config import DeploymentSettings
from opticstream.model.ids import TileId
from opticstream.sim.settings import InstrumentSettings, PhantomSettings, SampleSettings
from opticstream.sim.tiles import TileSimulator
from opticstream.stages.tile import compare_engines
from opticstream.testing.raw_tiles import write_spectral_nifti
from opticstream.testing.tile_phantom import one_tile_config


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--a-lines", type=int, default=96)
    parser.add_argument("--b-lines", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    config = one_tile_config(samples=options.samples, a_lines=options.a_lines, b_lines=options.b_lines)
    scan = config.scan.model_copy(update={"calibration": type(config.scan.calibration)()})
    phantom = PhantomSettings(
        seed=1, slices=1, sample=SampleSettings(outline="full"), instrument=InstrumentSettings(scattering_db=-36.0)
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts = np.concatenate(list(TileSimulator(config, phantom).spectra(TileId(1, 1))))
        raw = write_spectral_nifti(folder / "mosaic_001_image_0001_spectral_0000.nii", counts)
        native, matlab = [], []
        for turn in range(options.repeats + 1):
            made = compare_engines(
                raw,
                TileId(1, 1),
                scan=scan,
                processing=config.processing,
                deployment=DeploymentSettings(),
                folder=folder / str(turn),
            )
            if turn or not options.repeats:  # the first one compiles
                native.append(made.native_s)
                matlab.append(made.matlab_s)
    lines = options.a_lines * options.b_lines
    print(f"tile of {options.samples} samples x {options.a_lines} x {options.b_lines} x 2 channels")
    print(f"own code {np.median(native):.2f} s, MATLAB or Octave {np.median(matlab):.2f} s with its start:")
    print(f"{np.median(matlab) / np.median(native):.1f} times, {lines / np.median(matlab):.0f} A-lines/s")
    for one in made.differences:
        print(f"  {one.product}: {one.largest:.2g} {one.unit}{'' if one.is_small else '  beyond its limit'}")


if __name__ == "__main__":
    main()
