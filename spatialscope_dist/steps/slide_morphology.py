"""Measuring the nuclei of a slide: each in the one square that holds its centroid, then one table of all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialscope_dist.geometry.tiles import Box
from spatialscope_dist.location import located
from spatialscope_dist.nuclei.morphology import measure_names, measure_nuclei
from spatialscope_dist.nuclei.polygons import Nuclei
from spatialscope_dist.readers.images import LazyImage, open_image
from spatialscope_dist.steps.damaged import MendedImage
from spatialscope_dist.steps.slide_nuclei import Band, load_traced
from spatialscope_dist.steps.slide_spec import Slide, Workers, save_array
from spatialscope_dist.store.arrays import load_npy
from spatialscope_dist.store.frames import write_frame_parts

SQUARE_PX = 2048


def measure_morphology(slide: Slide, workers: Workers, bands: list[Band]) -> None:
    """Leave morphology.parquet in the slide's folder: one row per nucleus, in the order of nuclei.parquet.

    Parameters
    ----------
    slide : Slide
        Its `candidates` folder holds the nuclei by bands.
    workers : callable
        Runs the units.
    bands : list of Band
        Where the nuclei are.
    """
    numbers = [band["band"] for band in bands]
    workers(measure_band, {f"measure_{number:05d}": {"slide": slide, "band": number} for number in numbers})
    workers(write_morphology, {"write_morphology": {"slide": slide, "bands": bands}})


def measure_band(slide: Slide, band: int) -> dict[str, Any]:
    """Write the measures of the nuclei of one band, square by square (worker)."""
    nuclei, image = load_traced(slide, f"band{band:05d}"), MendedImage(open_image(located(slide.image)))
    measures = np.full((len(nuclei), len(measure_names(slide.n_channels))), np.nan, np.float32)
    squares, square = np.unique(np.floor(nuclei.centroids / SQUARE_PX), axis=0, return_inverse=True)
    for number in range(len(squares)):
        rows = np.flatnonzero(square == number)
        measures[rows] = _measured(slide, image, nuclei.take(rows))
    save_array(_file(slide, band), measures)
    return {"nuclei": len(nuclei)}


def _measured(slide: Slide, image: LazyImage, nuclei: Nuclei) -> NDArray[np.float32]:
    outlines = (nuclei.polygons.astype(np.float64) + 0.5) / slide.level_factor - 0.5
    region = _region(outlines, slide.read_shape)
    um = slide.pixel_size_um * slide.level_factor
    return measure_nuclei(slide.read(image, region), outlines, origin=(region.y0, region.x0), um=um)


def _region(outlines: NDArray[np.float64], shape: tuple[int, int]) -> Box:
    """Return the box of all outlines and one pixel around them, inside the image."""
    (y0, x0), (y1, x1) = np.floor(outlines.min(axis=(0, 1))) - 1, np.ceil(outlines.max(axis=(0, 1))) + 2
    height, width = shape
    return Box(max(0, int(y0)), min(height, int(y1)), max(0, int(x0)), min(width, int(x1)))


def _file(slide: Slide, band: int) -> Path:
    return slide.folder / "candidates" / f"band{band:05d}.measures.npy"


def write_morphology(slide: Slide, bands: list[Band]) -> dict[str, Any]:
    """Write the measures of all nuclei, band by band, in the order of their ids (worker)."""
    names = measure_names(slide.n_channels)

    def frames() -> Iterator[pd.DataFrame]:
        yield _frame(np.empty((0, len(names)), np.float32), names, first=0)
        for band in bands:
            yield _frame(load_npy(_file(slide, band["band"])), names, first=band["first"])

    write_frame_parts(slide.folder / "morphology.parquet", frames())
    return {"nuclei": sum(band["nuclei"] for band in bands)}


def _frame(measures: NDArray[np.float32], names: tuple[str, ...], *, first: int) -> pd.DataFrame:
    ids = np.arange(first + 1, first + len(measures) + 1)
    return pd.DataFrame({"nucleus_id": ids, **{name: measures[:, at] for at, name in enumerate(names)}})
