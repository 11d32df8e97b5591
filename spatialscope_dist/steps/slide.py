"""Segmenting one slide on workers: what `segment` and `segment-image` share.

prepare (model, tissue) → percentiles → candidates per task of windows → one suppression → label
shards. Every unit opens the image by path, writes its own files whole, and returns little.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialscope_dist.errors import BadInput
from spatialscope_dist.geometry.tiles import Box, WindowGrid, shard_boxes
from spatialscope_dist.nuclei.candidates import concatenate, window_candidates
from spatialscope_dist.nuclei.checks import channel_problems
from spatialscope_dist.nuclei.normalise import histogram_percentiles, intensity_histogram, normalise
from spatialscope_dist.nuclei.paint import overlaps_box, paint_labels
from spatialscope_dist.nuclei.polygons import Nuclei, trace_nuclei
from spatialscope_dist.nuclei.resample import WindowSource, model_scale, model_shape
from spatialscope_dist.nuclei.stardist_model import (
    TENSORFLOW_BYTES,
    ModelFacts,
    load_network,
    read_model_facts,
    resolve_model,
)
from spatialscope_dist.nuclei.suppression import suppress
from spatialscope_dist.nuclei.tissue import tissue_mask, windows_with_tissue
from spatialscope_dist.options import SegmentOptions
from spatialscope_dist.readers.images import open_image
from spatialscope_dist.store.arrays import create_array, open_array, read_array, write_array, write_region
from spatialscope_dist.store.documents import write_bytes
from spatialscope_dist.store.frames import read_frame, write_frame

LABEL_SHARD, LABEL_CHUNK = 2048, 512
HISTOGRAM_BOX = 4096
FRAMEWORK = "tensorflow"
WINDOW = 1024
POLYGON_ROWS = 16_384
VIEW_PIXELS = 16_000_000

# Projection of memory, measured with the official architecture.
NETWORK_MAPS = 110  # float32 values held per model pixel of a window
CANDIDATES_PER_MM2, CANDIDATE_BYTES, BATCH_BYTES = 150_000, 48, 150_000_000
NUCLEI_PER_MM2 = 5_000
VIEW_BYTES = 40  # per pixel of the view while the tissue mask is made


#: Runs a function over named units and returns the result of each; finished units are not run again.
Workers = Callable[[Callable[..., Any], dict[str, dict[str, Any]]], dict[str, Any]]


@dataclass(frozen=True)
class Slide:
    """One image to segment and where its results go; small enough to send to workers.

    Parameters
    ----------
    image : str
        Path of an image that can be read by region.
    shape : tuple of int
        (channels, height, width), source pixels.
    pixel_size_um : float
        µm per source pixel.
    view : str or None
        Zarr array (channels, y, x) uint8 the tissue is found in; None predicts every window.
    view_factor : float
        Source pixels per pixel of the view.
    options : SegmentOptions
        What to do.
    output : str
        Folder for results.
    """

    image: str
    shape: tuple[int, int, int]
    pixel_size_um: float
    view: str | None
    view_factor: float
    options: SegmentOptions
    output: str

    @property
    def folder(self) -> Path:
        """Output folder."""
        return Path(self.output)

    @property
    def scale(self) -> float:
        """Model pixels per source pixel."""
        return model_scale(self.pixel_size_um, self.options.model_pixel_size_um)

    def grid(self, facts: ModelFacts) -> WindowGrid:
        """Return the windows the network sees."""
        shape = model_shape((self.shape[1], self.shape[2]), self.scale)
        window = max(WINDOW // facts.align, 4 * facts.halo // facts.align) * facts.align
        return WindowGrid(shape, window=window, halo=facts.halo, align=facts.align)

    def thresholds(self, facts: ModelFacts) -> tuple[float, float]:
        """Return the probability and overlap thresholds: given, or the model's own."""
        return self.options.prob_threshold or facts.prob_threshold, self.options.nms_threshold or facts.nms_threshold


def segment_slide(slide: Slide, workers: Workers) -> dict[str, Any]:
    """Return counts of what was found; leaves nuclei.parquet, polygons.zarr and labels.zarr in the slide's folder.

    Raises
    ------
    BadInput
        When image and model do not fit together or cannot be read.
    """
    prepared = workers(prepare, {"prepare": {"slide": slide}})["prepare"]
    facts = ModelFacts(**prepared["model"])
    low, high = _percentiles(slide, workers)
    wanted = set(prepared["windows"])
    tasks = slide.grid(facts).tasks(slide.options.tile)
    units = {
        name: {"slide": slide, "name": name, "windows": chosen, "low": low, "high": high}
        for task, windows in tasks.items()
        if (chosen := [index for index in windows if index in wanted])
        and (name := f"predict_{slide.options.tile}_{task}")
    }
    predicted = workers(predict_windows, units)
    settled = workers(
        settle_nuclei, {"settle": {"slide": slide, "names": sorted(unit["name"] for unit in units.values())}}
    )["settle"]
    _paint(slide, settled["reach_px"], workers)
    shutil.rmtree(slide.folder / "candidates", ignore_errors=True)
    n_candidates = sum(done["candidates"] for done in predicted.values())
    return {
        "nuclei": settled["nuclei"],
        "median_area_um2": settled["median_area_um2"],
        "candidates": n_candidates,
        "windows": len(slide.grid(facts)),
        "windows_predicted": len(wanted),
        "tissue_share": prepared["tissue_share"],
        "percentiles": [low, high],
        "thresholds": slide.thresholds(facts),
        "scale": slide.scale,
        "tasks": len(units) + _n_boxes(slide.shape) + 2,
    }


def _percentiles(slide: Slide, workers: Workers) -> tuple[float, float]:
    boxes = shard_boxes((slide.shape[1], slide.shape[2]), HISTOGRAM_BOX)
    units = {f"histogram_{number:05d}": {"slide": slide, "box": box} for number, box in enumerate(boxes)}
    units = {name: {**arguments, "name": name} for name, arguments in units.items()}
    workers(count_intensities, units)
    total = sum(np.load(slide.folder / "histograms" / f"{name}.npy") for name in units)
    low, high = histogram_percentiles(np.asarray(total), slide.options.percentiles)
    return low, high


def _paint(slide: Slide, reach_px: float, workers: Workers) -> None:
    shape = slide.shape[1], slide.shape[2]
    labels = slide.folder / "labels.zarr"
    if not (labels / "zarr.json").exists():
        sizes = (LABEL_CHUNK, LABEL_CHUNK), (LABEL_SHARD, LABEL_SHARD)
        create_array(labels, shape=shape, dtype=np.uint32, chunks=sizes[0], shards=sizes[1], axes=("y", "x"))
    boxes = shard_boxes(shape, LABEL_SHARD)
    units = {
        f"paint_{number:05d}": {"slide": slide, "box": box, "reach_px": reach_px} for number, box in enumerate(boxes)
    }
    workers(paint_shard, units)


def prepare(slide: Slide) -> dict[str, Any]:
    """Return the model's facts and the windows to predict; writes the tissue mask (worker).

    Raises
    ------
    BadInput
        When the model cannot be had or takes another number of channels.
    """
    facts = read_model_facts(resolve_model(slide.options.model))
    problems = channel_problems(slide.image, slide.shape[0], facts.n_channels)
    if problems:
        raise BadInput(problems)
    grid = slide.grid(facts)
    windows, share = list(range(len(grid))), 1.0
    if slide.view is not None and slide.options.tissue_mask == "auto" and slide.shape[0] == 3:
        mask = tissue_mask(read_array(Path(slide.view)), pixel_size_um=slide.pixel_size_um * slide.view_factor)
        _save(slide.folder / "tissue.npy", mask)
        windows = windows_with_tissue(grid, mask, view_pixels_per_model_pixel=1 / (slide.scale * slide.view_factor))
        share = float(mask.mean())
    return {"model": facts.__dict__, "windows": windows, "tissue_share": share}


def count_intensities(slide: Slide, name: str, box: Box) -> dict[str, Any]:
    """Write the intensity histogram of one box of the image (worker)."""
    block = open_image(Path(slide.image)).read(*box)
    mask = slide.folder / "tissue.npy"
    where = None
    if slide.options.normalise_over == "tissue" and mask.exists():
        where = _mask_at(np.load(mask), Box(*box), slide.view_factor)
    histogram = intensity_histogram(block, where=where)
    _save(slide.folder / "histograms" / f"{name}.npy", histogram)
    return {"pixels": int(histogram.sum())}


def _mask_at(mask: NDArray[np.bool_], box: Box, factor: float) -> NDArray[np.bool_]:
    rows = np.minimum((np.arange(box.y0, box.y1) / factor).astype(np.int64), mask.shape[0] - 1)
    columns = np.minimum((np.arange(box.x0, box.x1) / factor).astype(np.int64), mask.shape[1] - 1)
    return mask[np.ix_(rows, columns)]


def predict_windows(slide: Slide, name: str, windows: list[int], low: float, high: float) -> dict[str, Any]:
    """Write the candidates of the windows' cores (worker)."""
    folder = resolve_model(slide.options.model)
    facts = read_model_facts(folder)
    network, grid = load_network(str(folder)), slide.grid(facts)
    image = open_image(Path(slide.image))
    threshold, _ = slide.thresholds(facts)
    parts = []
    for index in windows:
        window = grid[index]
        source = WindowSource(window.box, (slide.shape[1], slide.shape[2]), slide.scale)
        pixels = normalise(source.resample(image.read(*source.region)), low, high)
        if pixels.shape[0] != facts.n_channels:
            pixels = np.repeat(pixels, facts.n_channels, axis=0)
        probability, distances = network.predict(pixels)
        parts.append(window_candidates(probability, distances, window=window, grid=grid, threshold=threshold))
    found = concatenate(parts, n_rays=facts.n_rays)
    for part in ("points", "probability", "distances"):
        _save(slide.folder / "candidates" / f"{name}.{part}.npy", getattr(found, part))
    return {"windows": len(windows), "candidates": len(found)}


def settle_nuclei(slide: Slide, names: list[str]) -> dict[str, Any]:
    """Write the nuclei that survive the suppression over the whole slide, in canonical order (worker)."""
    facts = read_model_facts(resolve_model(slide.options.model))
    stored = _StoredCandidates(slide.folder / "candidates", names, facts.n_rays)
    _, threshold = slide.thresholds(facts)
    survivors = suppress(stored.points, stored.probability, stored.distances, threshold=threshold)
    nuclei = trace_nuclei(survivors, scale=slide.scale)
    um = slide.pixel_size_um
    frame = pd.DataFrame(
        {
            "nucleus_id": np.arange(1, len(nuclei) + 1),
            "y_px": nuclei.centroids[:, 0],
            "x_px": nuclei.centroids[:, 1],
            "y_um": nuclei.centroids[:, 0] * um,
            "x_um": nuclei.centroids[:, 1] * um,
            "area_um2": nuclei.areas * um**2,
            "probability": nuclei.probability,
            "paint_rank": nuclei.paint_rank,
        }
    )
    rows = max(1, min(len(nuclei), POLYGON_ROWS))
    write_array(
        slide.folder / "polygons.zarr",
        nuclei.polygons,
        axes=("nucleus", "ray", "coordinate"),
        chunks=(rows, facts.n_rays, 2),
    )
    write_frame(slide.folder / "nuclei.parquet", frame)
    return {
        "nuclei": len(nuclei),
        "reach_px": _reach(nuclei),
        "median_area_um2": float(frame["area_um2"].median()) if len(nuclei) else None,
    }


def _reach(nuclei: Nuclei) -> float:
    if len(nuclei) == 0:
        return 0.0
    return float(np.abs(nuclei.polygons - nuclei.centroids[:, None, :]).max()) + 1.0


class _StoredCandidates:
    """Candidates of all tasks: points and probabilities in memory, distances left on disk."""

    def __init__(self, folder: Path, names: list[str], n_rays: int) -> None:
        self._files = [folder / f"{name}.distances.npy" for name in names]
        points = [np.load(folder / f"{name}.points.npy") for name in names]
        self.points = np.concatenate([np.empty((0, 2), np.int32), *points])
        probability = [np.load(folder / f"{name}.probability.npy") for name in names]
        self.probability = np.concatenate([np.empty(0, np.float32), *probability])
        self._starts = np.cumsum([0, *(len(part) for part in points)])
        self._n_rays = n_rays

    def distances(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the (n, rays) distances of candidates, in the order asked for."""
        result = np.empty((len(index), self._n_rays), np.float32)
        order = np.argsort(index, kind="stable")
        bounds = np.searchsorted(index[order], self._starts)
        for number, file in enumerate(self._files):
            rows = order[bounds[number] : bounds[number + 1]]
            if len(rows):
                result[rows] = np.load(file, mmap_mode="r")[index[rows] - self._starts[number]]
        return result


def paint_shard(slide: Slide, box: Box, reach_px: float) -> dict[str, Any]:
    """Write one shard of the label image (worker)."""
    box = Box(*box)
    frame = read_frame(slide.folder / "nuclei.parquet", columns=["y_px", "paint_rank"])
    # Rows are sorted by y: the nuclei near the shard lie together.
    first, last = np.searchsorted(frame["y_px"], (box.y0 - reach_px, box.y1 + reach_px))
    polygons = np.asarray(open_array(slide.folder / "polygons.zarr")[first:last])
    near = overlaps_box(polygons, box) if last > first else np.empty(0, np.int64)
    if len(near) == 0:
        return {"nuclei": 0}
    rows = first + near
    labels = paint_labels(polygons[near], rows + 1, rank=frame["paint_rank"].to_numpy()[rows], box=box)
    write_region(slide.folder / "labels.zarr", box.slices, labels)
    return {"nuclei": len(near)}


def _save(path: Path, values: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def projected_peak_bytes(shape: tuple[int, ...], pixel_size_um: float, options: SegmentOptions) -> int:
    """Return the projected peak memory of one worker process, bytes."""
    channels, height, width = shape
    scale = model_scale(pixel_size_um, options.model_pixel_size_um)
    area_mm2 = height * width * (pixel_size_um / 1000) ** 2
    network = WINDOW * WINDOW * 4 * NETWORK_MAPS
    suppression = int(area_mm2 * CANDIDATES_PER_MM2 * CANDIDATE_BYTES) + BATCH_BYTES
    window_source = int((WINDOW / scale + 4) ** 2 * channels * 12)
    intensities = HISTOGRAM_BOX**2 * channels * 3
    view = min(VIEW_PIXELS, int(area_mm2 * 1e6 / 4)) * VIEW_BYTES
    return TENSORFLOW_BYTES + max(network + window_source, suppression, intensities, view)


def projected_disk_bytes(shape: tuple[int, ...], pixel_size_um: float) -> int:
    """Return the projected bytes on disk: candidates while running, then labels and polygons."""
    _, height, width = shape
    area_mm2 = height * width * (pixel_size_um / 1000) ** 2
    per_candidate = 8 + 4 + 4 * 32
    return int(
        area_mm2 * CANDIDATES_PER_MM2 * per_candidate / 2 + height * width * 0.3 + area_mm2 * NUCLEI_PER_MM2 * 400
    )


def projected_tasks(shape: tuple[int, ...], pixel_size_um: float, options: SegmentOptions) -> int:
    """Return the most units a slide of that shape takes."""
    size = shape[1], shape[2]
    grid = WindowGrid(model_shape(size, model_scale(pixel_size_um, options.model_pixel_size_um)))
    return len(grid.tasks(options.tile)) + _n_boxes(shape) + 3


def _n_boxes(shape: tuple[int, ...]) -> int:
    size = shape[1], shape[2]
    return sum(1 for edge in (LABEL_SHARD, HISTOGRAM_BOX) for _ in shard_boxes(size, edge))
