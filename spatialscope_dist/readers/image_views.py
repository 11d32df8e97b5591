"""Viewing levels of an image: reduced by area mean, block by block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.geometry.tiles import Box, shard_boxes
from spatialscope_dist.readers.images import LazyImage, Pixels

VIEW_PIXEL_SIZE_UM = 2.0
VIEW_SMALLEST_PX = 1024
_READ_PIXELS = 8_000_000


def viewing_factors(shape: tuple[int, int], *, pixel_size_um: float) -> tuple[int, ...]:
    """Return source pixels per pixel of each viewing level, finest (≥ 2 µm, or the image itself) first.

    Examples
    --------
    >>> viewing_factors((9923, 9272), pixel_size_um=0.688)
    (3, 6, 12)
    >>> viewing_factors((600, 569), pixel_size_um=17.0)
    (1,)
    """
    factors = [max(1, int(np.ceil(VIEW_PIXEL_SIZE_UM / pixel_size_um - 1e-6)))]
    while max(shape) / factors[-1] > VIEW_SMALLEST_PX:
        factors.append(factors[-1] * 2)
    return tuple(factors)


def viewing_shape(shape: tuple[int, int], factor: int) -> tuple[int, int]:
    """Return (height, width) of an image reduced by `factor`."""
    return -(-shape[0] // factor), -(-shape[1] // factor)


def viewing_blocks(image: LazyImage, factor: int, *, size: int = 1024) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
    """Return the blocks (box in level pixels, (channels, y, x) uint8) of the image reduced by area mean.

    16-bit images keep their upper 8 bits. Memory is one block and a few million source pixels.
    """
    for box in shard_boxes(viewing_shape((image.shape[1], image.shape[2]), factor), size):
        yield box, viewing_block(image, factor, box)


def viewing_block(image: LazyImage, factor: int, box: Box) -> NDArray[np.uint8]:
    """Return one block, (channels, y, x) uint8, of the image reduced by area mean; `box` in level pixels."""
    height, width = image.shape[1], image.shape[2]
    rows = max(1, _READ_PIXELS // (factor * factor * box.shape[1]))
    strips = []
    for y0 in range(box.y0, box.y1, rows):
        y1 = min(y0 + rows, box.y1)
        source = image.read(y0 * factor, min(y1 * factor, height), box.x0 * factor, min(box.x1 * factor, width))
        strips.append(_area_mean(source, factor))
    mean = np.concatenate(strips, axis=1)
    return (mean / (257 if image.dtype == np.uint16 else 1)).round().astype(np.uint8)


def _area_mean(block: Pixels, factor: int) -> NDArray[np.float64]:
    tops, lefts = (np.arange(0, length, factor) for length in block.shape[1:])
    narrow = np.add.reduceat(block, lefts, axis=2, dtype=np.uint64)  # along the rows first: they lie together
    sums = np.add.reduceat(narrow, tops, axis=1)
    tall, wide = (
        np.minimum(starts + factor, length) - starts
        for starts, length in zip((tops, lefts), block.shape[1:], strict=True)
    )
    mean: NDArray[np.float64] = sums / (tall[:, None] * wide[None, :])
    return mean
