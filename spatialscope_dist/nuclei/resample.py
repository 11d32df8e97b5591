"""Bringing an image to the model's pixel size, window by window in global coordinates.

Pixel centres are at integers; model pixel i looks at source position (i + ½)/scale − ½. Each
output pixel depends on its global index only, so how the image is divided cannot show.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.geometry.tiles import Box

NATIVE_TOLERANCE = 0.03


def model_scale(pixel_size_um: float, model_pixel_size_um: float) -> float:
    """Return model pixels per source pixel; exactly 1 when the two sizes differ by at most 3 %.

    Examples
    --------
    >>> model_scale(0.688, 0.25)
    2.752
    >>> model_scale(0.2525, 0.25)
    1.0
    """
    scale = pixel_size_um / model_pixel_size_um
    return 1.0 if abs(scale - 1) <= NATIVE_TOLERANCE else scale


def model_shape(shape: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return (height, width) in model pixels of an image of `shape` source pixels."""
    height, width = (max(1, int(np.floor(length * scale + 0.5))) for length in shape)
    return height, width


def source_coordinates(points: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """Return source-pixel positions of model-pixel positions (any shape)."""
    return points if scale == 1.0 else (points + 0.5) / scale - 0.5


def _reflect(index: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    if length == 1:
        return np.zeros_like(index)
    period = 2 * (length - 1)
    folded = np.abs(index) % period
    return np.where(folded >= length, period - folded, folded)


@dataclass(frozen=True)
class Axis:
    """Model pixels [start, stop) of one axis as weighted sums of source pixels.

    Positions beyond the image are mirrored. Enlarging is linear interpolation; reducing uses a
    triangle as wide as an output pixel, so nothing is skipped.
    """

    start: int
    stop: int
    length: int
    model_length: int
    scale: float

    @cached_property
    def taps(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Source indices and weights, both (pixels, taps); weights of a pixel add up to 1."""
        pixels = _reflect(np.arange(self.start, self.stop, dtype=np.int64), self.model_length)
        if self.scale == 1.0:
            return pixels[:, None], np.ones((len(pixels), 1), np.float32)
        centre = source_coordinates(pixels.astype(np.float64), self.scale)
        reach = max(1.0, 1.0 / self.scale)
        first = np.floor(centre - reach).astype(np.int64) + 1
        index = first[:, None] + np.arange(int(np.ceil(2 * reach)), dtype=np.int64)
        weight = np.maximum(0.0, 1.0 - np.abs(index - centre[:, None]) / reach)
        weight /= weight.sum(axis=1, keepdims=True)
        return np.clip(index, 0, self.length - 1), weight.astype(np.float32)

    @property
    def source(self) -> tuple[int, int]:
        """First source pixel needed and the one after the last."""
        index = self.taps[0]
        return int(index.min()), int(index.max()) + 1


@dataclass(frozen=True)
class WindowSource:
    """Which source pixels a window needs, and how they become the window."""

    box: Box
    shape: tuple[int, int]
    scale: float

    @cached_property
    def axes(self) -> tuple[Axis, Axis]:
        """Rows and columns of the window."""
        height, width = model_shape(self.shape, self.scale)
        rows = Axis(self.box.y0, self.box.y1, self.shape[0], height, self.scale)
        columns = Axis(self.box.x0, self.box.x1, self.shape[1], width, self.scale)
        return rows, columns

    @property
    def region(self) -> Box:
        """Source pixels needed."""
        return Box(*self.axes[0].source, *self.axes[1].source)

    def resample(self, block: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the window, (channels, y, x) intensities, from the source pixels of `region`."""
        rows, columns = self.axes
        narrow = _weigh(block.astype(np.float32), columns, self.region.x0, axis=2)
        return _weigh(narrow, rows, self.region.y0, axis=1)


def _weigh(block: NDArray[np.float32], taps: Axis, origin: int, *, axis: int) -> NDArray[np.float32]:
    index, weight = taps.taps
    if index.shape[1] == 1:
        return np.take(block, index[:, 0] - origin, axis=axis)
    shape = (1, 1, -1) if axis == 2 else (1, -1, 1)
    total = np.take(block, index[:, 0] - origin, axis=axis) * weight[:, 0].reshape(shape)
    for tap in range(1, index.shape[1]):
        total += np.take(block, index[:, tap] - origin, axis=axis) * weight[:, tap].reshape(shape)
    return total
