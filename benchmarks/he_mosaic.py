"""Slides of any size from the real H&E fields: each place holds one field, turned or mirrored by chance.

Nothing is periodic, and a smaller slide is the top left corner of a larger one, unless glass is asked for around an
ellipse of tissue, as on real slides.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

FIELD_PX, PLACES, TILE_PX = 1000, 64, 512
PIXEL_SIZE_UM = 0.25
GLASS = (243, 241, 245)


def read_fields(data: Path) -> list[NDArray[np.uint8]]:
    """Return the real fields, (y, x, 3), in name order."""
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted((data / "nuclei").glob("*.png"))]


def rows_of_mosaic(fields: list[NDArray[np.uint8]], width: int, rows: range) -> NDArray[np.uint8]:
    """Return some rows of the mosaic, (y, width, 3)."""
    chosen = np.random.default_rng(3).integers(0, 8 * len(fields), (PLACES, PLACES))
    band = np.empty((len(rows), width, 3), np.uint8)
    for row in range(rows.start // FIELD_PX, (rows.stop - 1) // FIELD_PX + 1):
        low, high = max(rows.start, row * FIELD_PX), min(rows.stop, (row + 1) * FIELD_PX)
        for column in range(-(-width // FIELD_PX)):
            turn, field = divmod(int(chosen[row, column]), len(fields))
            turned = np.rot90(fields[field] if turn < 4 else fields[field][:, ::-1], turn % 4)
            part = turned[low - row * FIELD_PX : high - row * FIELD_PX, : width - column * FIELD_PX]
            start = column * FIELD_PX
            band[low - rows.start : high - rows.start, start : start + part.shape[1]] = part
    return band


def lay_glass(band: NDArray[np.uint8], shape: tuple[int, int], rows: range, *, tissue_share: float) -> None:
    """Replace what lies outside the central ellipse with that share of the slide by faintly noisy glass, in place."""
    noise = np.random.default_rng(5).integers(-2, 3, (TILE_PX, TILE_PX, 1))
    glass = (np.array(GLASS) + noise).astype(np.uint8)
    radius = np.sqrt(tissue_share / np.pi)
    y, x = (
        (np.asarray(places) + 0.5) / length - 0.5 for places, length in zip((rows, range(shape[1])), shape, strict=True)
    )
    outside = y[:, None] ** 2 + x**2 > radius**2
    for x0 in range(0, shape[1], TILE_PX):
        part, here = band[:, x0 : x0 + TILE_PX], outside[:, x0 : x0 + TILE_PX]
        part[here] = glass[: part.shape[0], : part.shape[1]][here]


def write_mosaic(
    path: Path,
    fields: list[NDArray[np.uint8]],
    shape: tuple[int, int],
    *,
    jpeg: bool = False,
    tissue_share: float = 1.0,
) -> None:
    """Write a tiled BigTIFF of the mosaic with its pixel size, one row of tiles in memory at a time."""

    def tiles() -> Iterator[NDArray[np.uint8]]:
        for y0 in range(0, shape[0], TILE_PX):
            rows = range(y0, min(y0 + TILE_PX, shape[0]))
            band = rows_of_mosaic(fields, shape[1], rows)
            if tissue_share < 1:
                lay_glass(band, shape, rows, tissue_share=tissue_share)
            for x0 in range(0, shape[1], TILE_PX):
                part = band[:, x0 : x0 + TILE_PX]
                yield np.pad(part, [(0, TILE_PX - part.shape[0]), (0, TILE_PX - part.shape[1]), (0, 0)], "edge")

    tifffile.imwrite(
        path,
        tiles(),
        shape=(*shape, 3),
        dtype=np.uint8,
        tile=(TILE_PX, TILE_PX),
        bigtiff=True,
        photometric="rgb",
        compression="jpeg" if jpeg else None,
        compressionargs={"level": 90} if jpeg else None,
        resolution=(1e4 / PIXEL_SIZE_UM, 1e4 / PIXEL_SIZE_UM),
        resolutionunit="CENTIMETER",
    )
