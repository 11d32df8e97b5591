"""What is segmented: one slide, its windows, and where its results go."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.geometry.tiles import Box, WindowGrid
from spatialscope_dist.location import located
from spatialscope_dist.nuclei.resample import model_scale, model_shape
from spatialscope_dist.nuclei.stardist_model import ModelFacts
from spatialscope_dist.options import SegmentOptions
from spatialscope_dist.readers.images import LazyImage
from spatialscope_dist.store.documents import write_bytes

LABEL_SHARD, LABEL_CHUNK = 2048, 512
WINDOW = 1536
VIEW_PIXELS = 16_000_000

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
    level : int
        Level of the image that is read: the one that suits the model.
    level_shape : tuple of int or None
        (height, width) of that level; None for full resolution.
    level_factor : float
        Source pixels per pixel of that level.
    window : int
        Edge of what the network sees at once, model pixels; another one may change last bits of the result.
    """

    image: str
    shape: tuple[int, int, int]
    pixel_size_um: float
    view: str | None
    view_factor: float
    options: SegmentOptions
    output: str
    level: int = 0
    level_shape: tuple[int, int] | None = None
    level_factor: float = 1.0
    window: int = WINDOW

    @property
    def folder(self) -> Path:
        """Output folder."""
        return located(self.output)

    @property
    def read_shape(self) -> tuple[int, int]:
        """Height and width of the level that is read."""
        return self.level_shape or (self.shape[1], self.shape[2])

    @property
    def read_scale(self) -> float:
        """Model pixels per pixel of the level that is read."""
        return model_scale(self.pixel_size_um * self.level_factor, self.options.model_pixel_size_um)

    @property
    def scale(self) -> float:
        """Model pixels per source pixel."""
        return self.read_scale / self.level_factor

    @property
    def n_channels(self) -> int:
        """Channels that are looked at."""
        return self.shape[0] if self.options.channel is None else 1

    def read(self, image: LazyImage, box: Box) -> NDArray[np.integer[Any]]:
        """Return the looked-at channels of a box of the level, (channels, y, x)."""
        pixels = image.read(*box, level=self.level)
        return pixels if self.options.channel is None else pixels[self.options.channel][None]

    def grid(self, facts: ModelFacts) -> WindowGrid:
        """Return the windows the network sees."""
        shape = model_shape(self.read_shape, self.read_scale)
        window = max(self.window // facts.align, 4 * facts.halo // facts.align) * facts.align
        return WindowGrid(shape, window=window, halo=facts.halo, align=facts.align)

    def thresholds(self, facts: ModelFacts) -> tuple[float, float]:
        """Return the probability and overlap thresholds: given, or the model's own."""
        return self.options.prob_threshold or facts.prob_threshold, self.options.nms_threshold or facts.nms_threshold


def save_array(path: Path, values: NDArray[Any]) -> None:
    """Write an array as .npy, atomically."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def mask_at(mask: NDArray[np.bool_], box: Box, factor: float) -> NDArray[np.bool_]:
    """Return the mask, (y, x) on every `factor`-th pixel, on every pixel of a box."""
    rows = np.minimum((np.arange(box.y0, box.y1) / factor).astype(np.int64), mask.shape[0] - 1)
    columns = np.minimum((np.arange(box.x0, box.x1) / factor).astype(np.int64), mask.shape[1] - 1)
    return mask[np.ix_(rows, columns)]
