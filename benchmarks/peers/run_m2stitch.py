"""Positions by m2stitch, its best settings here: smoothed, mean removed, a narrow search; in its own environment."""

import json
import sys

import m2stitch
import numpy as np
from scipy import ndimage

tiles = np.load(sys.argv[1])
task = json.loads(open(sys.argv[2]).read())
cells = np.array(task["cells"])
# It looks for the best peak of a whitened correlation: speckle has to be smoothed away and means removed first.
images = np.stack([ndimage.gaussian_filter(np.log(t + 0.3), 1) for t in tiles.transpose(0, 2, 1)])
images = images - np.array([ndimage.gaussian_filter(i, 7) for i in images])
# Rows count along the first axis of its images, columns along the second; positions are guessed in the same order.
rows, columns = cells[:, 1].tolist(), cells[:, 0].tolist()
for threshold in (0.1, 0.05, 0.01):
    try:
        found, _ = m2stitch.stitch_images(
            images,
            rows,
            columns,
            row_col_transpose=False,
            ncc_threshold=threshold,
            overlap_diff_threshold=100 * task["margin"] / min(images.shape[1:]),  # percent of a tile
            position_initial_guess=np.array(task["nominal"])[:, ::-1],
        )
        break
    except Exception as error:
        found, reason = None, repr(error)
if found is None:
    json.dump({"error": reason}, open(sys.argv[3], "w"))
else:
    positions = np.stack([found["x_pos"], found["y_pos"]], axis=1).astype(float)
    peak_mb = int(dict(line.split(":", 1) for line in open("/proc/self/status"))["VmHWM"].split()[0]) / 1024
    json.dump({"positions": positions.tolist(), "peak_mb": peak_mb}, open(sys.argv[3], "w"))
