"""Positions by ashlar: reads tiles.npy and nominal.json, writes positions; runs in ashlar's own environment."""

import json
import sys

import numpy as np
from ashlar import reg

tiles = np.load(sys.argv[1], mmap_mode="r")
task = json.loads(open(sys.argv[2]).read())
nominal = np.array(task["nominal"])
lowest, highest = float(np.percentile(tiles[:, ::7, ::7], 0.1)), float(np.percentile(tiles[:, ::7, ::7], 99.9))


class Metadata(reg.Metadata):
    _num_images = len(tiles)
    num_channels = 1
    pixel_size = 1.0
    pixel_dtype = np.dtype(np.uint16)

    def tile_position(self, i):
        return nominal[i][::-1]

    def tile_size(self, i):
        return np.array(tiles.shape[1:][::-1])


class Reader(reg.Reader):
    metadata = Metadata()

    def read(self, series, c):
        unit = np.clip((tiles[series].T - lowest) / (highest - lowest), 0, 1)
        return (unit * 60000).astype(np.uint16)


aligner = reg.EdgeAligner(
    Reader(), max_shift=task["margin"], filter_sigma=task.get("sigma", 2.0), do_make_thumbnail=False, verbose=False
)
aligner.run()
peak_mb = int(dict(line.split(":", 1) for line in open("/proc/self/status"))["VmHWM"].split()[0]) / 1024
json.dump({"positions": np.asarray(aligner.positions)[:, ::-1].tolist(), "peak_mb": peak_mb}, open(sys.argv[3], "w"))
