"""Crops of a real slide at 0.688 µm per pixel: our windows beside one prediction of the whole crop, rescaled."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.segmentation_setting import PERCENTILES, data_folder
from spatialscope_dist.geometry.tiles import Box
from spatialscope_dist.nuclei.paint import paint_labels
from spatialscope_dist.nuclei.resample import WindowSource, model_scale, model_shape

PIXEL_SIZE_UM, MODEL_UM = 0.688, 0.25
CROP_PX = 1000
CORNERS = (5600, 1500), (6400, 2300), (6200, 4200)


def rescaled_crops(
    stardist: Any, score: Callable[[Any, Any], dict[str, Any]], labels_of: Callable[[Path, float], Any]
) -> dict[str, Any]:
    """Return, for each crop, how many nuclei both find, and the PQ between the two."""
    Image.MAX_IMAGE_PIXELS = None
    slide = Image.open(data_folder() / "slides" / "her2_B4_HE.jpg").convert("RGB")
    rows: dict[str, Any] = {}
    for y, x in CORNERS:
        crop = slide.crop((x, y, x + CROP_PX, y + CROP_PX))
        with tempfile.TemporaryDirectory() as folder:
            crop.save(Path(folder) / "crop.png")
            ours = labels_of(Path(folder) / "crop.png", PIXEL_SIZE_UM)
        whole = _whole_image(stardist, np.asarray(crop))
        between = score(whole, ours)
        rows[f"y {y}, x {x}"] = {
            "nuclei": {"segment_image": between["n_predicted"], "stardist_whole_image": between["n_true"]},
            "pq_between": round(between["pq"], 6),
            "pixels_that_differ_in_foreground": int(((whole > 0) != (ours > 0)).sum()),
        }
    return rows


def _whole_image(stardist: Any, crop: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return labels in pixels of the crop by one prediction of all of it at the model's pixel size."""
    scale = model_scale(PIXEL_SIZE_UM, MODEL_UM)
    height, width = model_shape((CROP_PX, CROP_PX), scale)
    source = WindowSource(Box(0, height, 0, width), (CROP_PX, CROP_PX), scale)
    enlarged = source.resample(crop.transpose(2, 0, 1)).transpose(1, 2, 0)
    low, high = np.percentile(crop, PERCENTILES)
    pixels = ((enlarged - np.float32(low)) / np.float32(high - low + 1e-20)).astype(np.float32)
    _, found = stardist.predict_instances(pixels, show_tile_progress=False)
    outlines = ((found["coord"].transpose(0, 2, 1) + 0.5) / scale - 0.5).astype(np.float32)
    ids, rank = np.arange(1, len(outlines) + 1), np.argsort(np.argsort(-found["prob"], kind="stable"))
    return paint_labels(outlines, ids, rank=rank, box=Box(0, CROP_PX, 0, CROP_PX))
