"""Labels of one image, no study needed: the same units as the `segment` stage."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spatialscope_dist.engine.cluster import ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.pool import Pool
from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.geometry.tiles import Box
from spatialscope_dist.location import located
from spatialscope_dist.nuclei.checks import channel_problems, image_problems
from spatialscope_dist.nuclei.window_models import model_channels, model_files, model_framework, model_problems
from spatialscope_dist.options import SegmentOptions
from spatialscope_dist.readers.image_views import viewing_factors, viewing_shape
from spatialscope_dist.readers.images import LazyImage, open_image
from spatialscope_dist.steps.pixels import create_view, store_image, store_view_block
from spatialscope_dist.steps.slide import segment_slide
from spatialscope_dist.steps.slide_export import export_labels, export_table
from spatialscope_dist.steps.slide_spec import VIEW_PIXELS, Slide
from spatialscope_dist.store.ledger import Units, content_key


class ImageNuclei(NamedTuple):
    """What was found in an image: how many nuclei, and the places that could not be looked at, with the reasons."""

    n_nuclei: int
    damaged: dict[str, str]


def segment_one_image(
    image: Path,
    out: Path,
    cluster: ClusterSettings,
    *,
    options: SegmentOptions,
    pixel_size_um: float | None = None,
    nuclei: Path | None = None,
) -> ImageNuclei:
    """Return what was found; writes the label image (tiff, uint32) and optionally the table of nuclei.

    Work in progress lies in a hidden folder beside `out`, is taken up again after an
    interruption, and is removed at the end.

    Raises
    ------
    BadInput
        When the image or the model cannot be used.
    """
    opened = open_image(image)
    size = pixel_size_um or opened.pixel_size_um
    problems, _ = image_problems(str(image), size, options)
    problems += model_problems(options.model, where="--model")
    channels = model_channels(options.model)
    problems += channel_problems(str(image), opened.shape[0], channels, channel=options.channel)
    problems += [
        Problem(str(path), "no such folder", "an existing folder", "Create it first.")
        for path in (out, nuclei)
        if path is not None and not path.resolve().parent.is_dir()
    ]
    if problems or size is None:
        raise BadInput(problems)
    work = out.resolve().parent / f".{out.name}.{_work_key(image, size, options)[:16]}"
    units = Units(work / "units")
    pool, framework = Pool(cluster, Events()), model_framework(options.model, options.backend)
    try:

        def workers(function: Any, arguments: dict[str, dict[str, Any]]) -> dict[str, Any]:
            return pool.map(function, arguments, ledger_units=units, framework=framework)

        found = segment_slide(_slide(opened, size, options, work, workers), workers)
        labels = {"labels": str(work / "labels.zarr"), "out": str(out), "pixel_size_um": size}
        pool.map(export_labels, {"labels": labels}, framework=framework)
        if nuclei is not None:
            table = {"nuclei": str(work / "nuclei.parquet"), "out": str(nuclei)}
            pool.map(export_table, {"table": table}, framework=framework)
    finally:
        pool.close()
    shutil.rmtree(work)
    return ImageNuclei(int(found["nuclei"]), found["damaged"])


def _work_key(image: Path, pixel_size_um: float, options: SegmentOptions) -> str:
    stat = image.stat()
    files = model_files(options.model)
    weights = [] if files is None else sorted(files.iterdir()) if files.is_dir() else [files]
    marks = [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights if path.is_file()]
    parts = {"image": str(image.resolve()), "size": stat.st_size, "time": stat.st_mtime_ns, "pixel": pixel_size_um}
    return content_key("segment-image", 3, {**parts, "model": marks, "options": options.model_dump(mode="json")})


def _slide(image: LazyImage, pixel_size_um: float, options: SegmentOptions, work: Path, workers: Any) -> Slide:
    path, shape = image.path.resolve(), image.shape
    if not image.is_tiled:
        workers(decode_image, {"decode": {"image": str(path), "target": str(work / "image.zarr")}})
        path = work / "image.zarr"
    factors = viewing_factors((shape[1], shape[2]), pixel_size_um=pixel_size_um)
    fits = [f for f in factors if np.prod(viewing_shape((shape[1], shape[2]), f)) <= VIEW_PIXELS]
    factor = fits[0] if fits else factors[-1]
    view = work / "view.zarr"
    whole = {"image": str(path), "target": str(view), "factor": factor}
    boxes = workers(prepare_view, {"view": whole})["view"]["boxes"]
    workers(view_block, {f"view_{number:04d}": {**whole, "box": box} for number, box in enumerate(boxes)})
    return Slide(
        image=str(path),
        shape=shape,
        pixel_size_um=pixel_size_um,
        view=str(view),
        view_factor=float(factor),
        options=options,
        output=str(work),
    )


def decode_image(image: str, target: str) -> dict[str, Any]:
    """Write an image that cannot be read by region to Zarr, once (worker)."""
    opened = open_image(located(image))
    store_image(opened, Path(target))
    return {"shape": list(opened.shape)}


def prepare_view(image: str, target: str, factor: int) -> dict[str, Any]:
    """Return the boxes of the coarse view the tissue is found in, made ready to be written (worker)."""
    return {"boxes": create_view(open_image(located(image)), Path(target), factor=factor)}


def view_block(image: str, target: str, factor: int, box: Box) -> dict[str, Any]:
    """Write one box of the coarse view (worker)."""
    store_view_block(open_image(located(image)), Path(target), factor=factor, box=Box(*box))
    return {"box": box}
