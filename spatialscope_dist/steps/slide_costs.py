"""Projected memory, disk and tasks of segmenting a slide: arithmetic on its shape."""

from __future__ import annotations

from spatialscope_dist.geometry.tiles import WindowGrid, shard_boxes
from spatialscope_dist.nuclei.resample import model_scale, model_shape
from spatialscope_dist.nuclei.stardist_model import BASE_ALIGN, TENSORFLOW_BYTES
from spatialscope_dist.options import SegmentOptions
from spatialscope_dist.steps.slide_nuclei import BAND_PIXELS, BATCH_ROWS, band_rows
from spatialscope_dist.steps.slide_spec import LABEL_SHARD, VIEW_PIXELS, WINDOW
from spatialscope_dist.steps.slide_windows import HISTOGRAM_BOX

# Measured with the official architecture.
NETWORK_MAPS = 125  # float32 values held per model pixel of a window
CANDIDATES_PER_MM2, CANDIDATE_BYTES, BATCH_BYTES = 150_000, 400, 150_000_000
NUCLEI_PER_MM2, NUCLEUS_BYTES = 5_000, 1_000
VIEW_BYTES = 40  # per pixel of the view while the tissue mask is made
TABLE_BYTES = 80  # per nucleus of the slide, while cells are counted


def projected_peak_bytes(shape: tuple[int, ...], pixel_size_um: float, options: SegmentOptions) -> int:
    """Return the projected peak memory of one worker process, bytes."""
    channels, height, width = shape
    scale = model_scale(pixel_size_um, options.model_pixel_size_um)
    area_mm2 = height * width * (pixel_size_um / 1000) ** 2
    tall, wide = (min(WINDOW, length + BASE_ALIGN) for length in model_shape((height, width), scale))
    network = tall * wide * 4 * NETWORK_MAPS
    window_source = int((WINDOW / scale + 4) ** 2 * channels * 12)
    block_mm2 = min(area_mm2, ((options.tile + WINDOW) * options.model_pixel_size_um / 1000) ** 2)
    suppression = int(block_mm2 * CANDIDATES_PER_MM2 * CANDIDATE_BYTES) + BATCH_BYTES
    intensities = HISTOGRAM_BOX**2 * channels * 3
    view = min(VIEW_PIXELS, int(area_mm2 * 1e6 / 4)) * VIEW_BYTES
    band_mm2 = min(height * width, 3 * BAND_PIXELS) * (pixel_size_um / 1000) ** 2
    band = int(NUCLEI_PER_MM2 * (band_mm2 * NUCLEUS_BYTES + area_mm2 * TABLE_BYTES)) + BATCH_ROWS * NUCLEUS_BYTES
    return TENSORFLOW_BYTES + max(network + window_source, suppression, intensities, view, band)


def projected_disk_bytes(shape: tuple[int, ...], pixel_size_um: float) -> int:
    """Return the projected bytes on disk: candidates while running, then labels and polygons."""
    _, height, width = shape
    area_mm2 = height * width * (pixel_size_um / 1000) ** 2
    per_candidate = 8 + 4 + 16 + 4 * 32
    return int(
        area_mm2 * CANDIDATES_PER_MM2 * per_candidate / 2 + height * width * 0.3 + area_mm2 * NUCLEI_PER_MM2 * 1200
    )


def projected_tasks(shape: tuple[int, ...], pixel_size_um: float, options: SegmentOptions) -> int:
    """Return about how many units a slide of that shape takes."""
    size = shape[1], shape[2]
    grid = WindowGrid(model_shape(size, model_scale(pixel_size_um, options.model_pixel_size_um)))
    bands = -(-shape[1] // band_rows(shape[2]))
    return 3 * len(grid.tasks(options.tile)) + n_boxes(shape) + 2 * bands + 5


def n_boxes(shape: tuple[int, ...]) -> int:
    """Return how many boxes of the image are counted and painted."""
    size = shape[1], shape[2]
    return sum(1 for edge in (LABEL_SHARD, HISTOGRAM_BOX) for _ in shard_boxes(size, edge))
