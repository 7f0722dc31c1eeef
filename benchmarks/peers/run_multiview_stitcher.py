"""Positions by multiview-stitcher: phase correlation of smoothed tiles; runs in its own environment."""

import json
import sys

import dask
import dask.array as da
import numpy as np
from multiview_stitcher import msi_utils, param_utils, registration
from multiview_stitcher import spatial_image_utils as si_utils
from scipy import ndimage

tiles = np.load(sys.argv[1])
task = json.loads(open(sys.argv[2]).read())
images = []
for tile, (x, y) in zip(tiles, task["nominal"]):
    image = ndimage.gaussian_filter(np.log(tile.T + 0.3), 2)
    image = image - ndimage.gaussian_filter(image, 15)
    sim = si_utils.get_sim_from_array(
        da.from_array(image[None, None].astype(np.float32), chunks=(1, 1, *image.shape)),
        dims=["t", "c", "y", "x"],
        scale={"y": 1.0, "x": 1.0},
        translation={"y": y, "x": x},
        transform_key="stage",
    )
    images.append(msi_utils.get_msim_from_sim(sim, scale_factors=[]))
with dask.config.set(scheduler="threads", num_workers=2):
    registration.register(
        images,
        reg_channel_index=0,
        transform_key="stage",
        new_transform_key="found",
        pre_registration_pruning_method="keep_axis_aligned",
    )
positions = []
for image, (x, y) in zip(images, task["nominal"]):
    sim = msi_utils.get_sim_from_msim(image)
    affine = np.asarray(si_utils.get_affine_from_sim(sim, "found")).reshape(3, 3)
    shift = param_utils.translation_from_affine(affine)
    positions.append([x + float(shift[1]), y + float(shift[0])])
peak_mb = int(dict(line.split(":", 1) for line in open("/proc/self/status"))["VmHWM"].split()[0]) / 1024
json.dump({"positions": positions, "peak_mb": peak_mb}, open(sys.argv[3], "w"))
