"""Positions by OpticStream, as the others: a process of its own that reads one map of tiles, or more."""

import json
import sys

import numpy as np

from opticstream.compute.stitching import filtered_tiles, high_pass_for_overlap, positions_from_tiles, usual_overlap_px

tiles = np.load(sys.argv[1])
task = json.loads(open(sys.argv[2]).read())
sigma_px = high_pass_for_overlap(usual_overlap_px(task["nominal"], tile_shape=tiles.shape[1:]))
maps = [filtered_tiles(one, sigma_px=sigma_px) for one in (tiles, *(np.load(path) for path in sys.argv[4:]))]
found = positions_from_tiles(maps, task["nominal"], margin_px=task["margin"])
peak_mb = int(dict(line.split(":", 1) for line in open("/proc/self/status"))["VmHWM"].split()[0]) / 1024
json.dump(
    {
        "positions": found.positions_px.tolist(),
        "uncertainty": found.uncertainty_px.tolist(),
        "alone": found.by_stage_only.tolist(),
        "peak_mb": peak_mb,
    },
    open(sys.argv[3], "w"),
)
