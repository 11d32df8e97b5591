"""Labels of one image, no study needed: the same units as the `segment` stage."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from spatialscope_dist.engine.cluster import ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.pool import Pool
from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.nuclei.checks import image_problems
from spatialscope_dist.nuclei.window_models import model_files, model_framework, model_problems
from spatialscope_dist.options import SegmentOptions
from spatialscope_dist.readers.image_views import viewing_factors, viewing_shape
from spatialscope_dist.readers.images import LazyImage, open_image
from spatialscope_dist.steps.pixels import store_image, store_view
from spatialscope_dist.steps.slide import segment_slide
from spatialscope_dist.steps.slide_spec import LABEL_CHUNK, VIEW_PIXELS, Slide
from spatialscope_dist.store.arrays import open_array
from spatialscope_dist.store.frames import read_frame, write_frame
from spatialscope_dist.store.ledger import Units, content_key

_COLUMNS = ("nucleus_id", "y_px", "x_px", "y_um", "x_um", "area_um2", "probability")


def segment_one_image(
    image: Path,
    out: Path,
    cluster: ClusterSettings,
    *,
    model: str,
    pixel_size_um: float | None = None,
    tile: int | None = None,
    nuclei: Path | None = None,
) -> int:
    """Return the number of nuclei found; writes the label image (tiff, uint32) and optionally their table.

    Work in progress lies in a hidden folder beside `out`, is taken up again after an
    interruption, and is removed at the end.

    Raises
    ------
    BadInput
        When the image or the model cannot be used.
    """
    opened = open_image(image)
    size = pixel_size_um or opened.pixel_size_um
    options = _options(model, tile)
    problems, _ = image_problems(str(image), size, options)
    problems += model_problems(model, where="--model")
    if not out.resolve().parent.is_dir():
        problems.append(Problem(str(out), "no such folder", "an existing folder", "Create it first."))
    if problems or size is None:
        raise BadInput(problems)
    work = out.resolve().parent / f".{out.name}.{_work_key(image, size, options)[:16]}"
    units = Units(work / "units")
    pool, framework = Pool(cluster, Events()), model_framework(options.model, options.backend)
    try:

        def workers(function: Any, arguments: dict[str, dict[str, Any]]) -> dict[str, Any]:
            return pool.map(function, arguments, ledger_units=units, framework=framework)

        slide = _slide(opened, size, options, work, workers)
        found = segment_slide(slide, workers)
    finally:
        pool.close()
    if nuclei is not None:
        write_frame(nuclei, read_frame(work / "nuclei.parquet", columns=list(_COLUMNS)))
    _write_tiff(out, work / "labels.zarr", size)
    shutil.rmtree(work)
    return int(found["nuclei"])


def _options(model: str, tile: int | None) -> SegmentOptions:
    try:
        return SegmentOptions(model=model, **({} if tile is None else {"tile": tile}))
    except ValidationError as error:
        expected = "; ".join(detail["msg"] for detail in error.errors())
        raise BadInput(Problem("--tile", str(tile), expected, "Leave it out: it never changes the result.")) from error


def _work_key(image: Path, pixel_size_um: float, options: SegmentOptions) -> str:
    stat = image.stat()
    files = model_files(options.model)
    weights = [] if files is None else sorted(files.iterdir()) if files.is_dir() else [files]
    marks = [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights if path.is_file()]
    parts = {"image": str(image.resolve()), "size": stat.st_size, "time": stat.st_mtime_ns, "pixel": pixel_size_um}
    return content_key("segment-image", 2, {**parts, "model": marks, "options": options.model_dump(mode="json")})


def _slide(image: LazyImage, pixel_size_um: float, options: SegmentOptions, work: Path, workers: Any) -> Slide:
    path, shape = image.path.resolve(), image.shape
    if not image.is_tiled:
        workers(decode_image, {"decode": {"image": str(path), "target": str(work / "image.zarr")}})
        path = work / "image.zarr"
    factors = viewing_factors((shape[1], shape[2]), pixel_size_um=pixel_size_um)
    fits = [f for f in factors if np.prod(viewing_shape((shape[1], shape[2]), f)) <= VIEW_PIXELS]
    factor = fits[0] if fits else factors[-1]
    workers(view_image, {"view": {"image": str(path), "target": str(work / "view.zarr"), "factor": factor}})
    return Slide(
        image=str(path),
        shape=shape,
        pixel_size_um=pixel_size_um,
        view=str(work / "view.zarr"),
        view_factor=float(factor),
        options=options,
        output=str(work),
    )


def decode_image(image: str, target: str) -> dict[str, Any]:
    """Write an image that cannot be read by region to Zarr, once (worker)."""
    opened = open_image(Path(image))
    store_image(opened, Path(target))
    return {"shape": list(opened.shape)}


def view_image(image: str, target: str, factor: int) -> dict[str, Any]:
    """Write the coarse view the tissue is found in (worker)."""
    store_view(open_image(Path(image)), Path(target), factor=factor)
    return {"factor": factor}


def _write_tiff(out: Path, labels: Path, pixel_size_um: float) -> None:
    import tifffile

    array = open_array(labels)
    partial = out.with_name(f".{out.name}.partial")
    tifffile.imwrite(
        partial,
        _label_tiles(array),
        shape=array.shape,
        dtype=np.uint32,
        tile=(LABEL_CHUNK, LABEL_CHUNK),
        compression="zlib",
        photometric="minisblack",
        bigtiff=array.shape[0] * array.shape[1] * 4 >= 1 << 31,
        resolution=(1e4 / pixel_size_um, 1e4 / pixel_size_um),
        resolutionunit="CENTIMETER",
    )
    partial.replace(out)


def _label_tiles(array: Any) -> Iterator[NDArray[np.uint32]]:
    height, width = array.shape
    for y0 in range(0, height, LABEL_CHUNK):
        band = np.asarray(array[y0 : y0 + LABEL_CHUNK])
        for x0 in range(0, width, LABEL_CHUNK):
            tile = np.zeros((LABEL_CHUNK, LABEL_CHUNK), np.uint32)
            part = band[:, x0 : x0 + LABEL_CHUNK]
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile
