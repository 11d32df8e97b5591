"""What the segmentation benchmarks share: where data and weights are, StarDist on one thread, how results are kept."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.he_mosaic import PIXEL_SIZE_UM
from benchmarks.provenance import provenance

HERE = Path(__file__).parent
COMMAND = Path(sys.executable).with_name("spatialscope")
PERCENTILES = 1, 99.8
GIB = 1 << 30


def data_folder() -> Path:
    """Return the folder of real data."""
    folder = os.environ.get("SPATIALSCOPE_DATA")
    if not folder:
        sys.exit("SPATIALSCOPE_DATA is not set: real data is not available")
    return Path(folder)


def model_folder() -> Path:
    """Return the StarDist weights beside the data."""
    return data_folder().parent / "models" / "he_hybrid"


def save(name: str, result: dict[str, Any]) -> None:
    """Write a result with where it comes from."""
    packages = ("stardist", "tensorflow-cpu", "numpy", "tifffile", "zarr", "dask")
    about = {
        **provenance(" ".join(["segmentation", *sys.argv[1:]])),
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "python": sys.version.split()[0],
        "model": model_folder().name,
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"segmentation_{name}.json").write_text(json.dumps(about | result, indent=1) + "\n")


def load_stardist() -> Any:
    """Return StarDist's own model on one thread."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf
    from stardist.models import StarDist2D

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    return StarDist2D(None, name=model_folder().name, basedir=str(model_folder().parent))


def normalised(pixels: Any) -> Any:
    """Return pixels, (y, x, c), whose percentiles over all channels together are 0 and 1."""
    from csbdeep.utils import normalize

    return normalize(pixels, *PERCENTILES, axis=(0, 1, 2))


def slide_of(image: Path, folder: Path, *, tile: int = 2048) -> Any:
    """Return the slide of an image as `segment-image` makes it."""
    from spatialscope_dist.options import SegmentOptions
    from spatialscope_dist.readers.images import open_image
    from spatialscope_dist.steps.pixels import store_view
    from spatialscope_dist.steps.slide_spec import Slide

    factor = 8
    store_view(open_image(image), folder / "view.zarr", factor=factor)
    options = SegmentOptions(model=str(model_folder()), tile=tile)
    shape = open_image(image).shape
    return Slide(str(image), shape, PIXEL_SIZE_UM, str(folder / "view.zarr"), float(factor), options, str(folder))
