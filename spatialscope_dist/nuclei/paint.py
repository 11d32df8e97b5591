"""Label image from polygons, shard by shard: a polygon is rasterised in its own frame, then cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.geometry.tiles import Box


def overlaps_box(polygons: NDArray[np.float32], box: Box) -> NDArray[np.int64]:
    """Return rows of the polygons, (polygons, rays, 2) as (y, x), whose bounding box touches `box`."""
    low, high = polygons.min(axis=1), polygons.max(axis=1)
    touches = (high[:, 0] >= box.y0) & (low[:, 0] < box.y1) & (high[:, 1] >= box.x0) & (low[:, 1] < box.x1)
    return np.flatnonzero(touches)


def paint_labels(
    polygons: NDArray[np.float32], ids: NDArray[np.integer], *, rank: NDArray[np.integer], box: Box
) -> NDArray[np.uint32]:
    """Return the label image of `box`, (y, x) uint32, 0 = background.

    Parameters
    ----------
    polygons : ndarray
        (polygons, rays, 2), outlines (y, x) in source pixels of the whole image.
    ids : ndarray
        (polygons,), labels > 0.
    rank : ndarray
        (polygons,): where polygons overlap the one of lowest rank wins.
    box : Box
        Pixels to paint.
    """
    labels = np.zeros(box.shape, np.uint32)
    for row in np.argsort(-np.asarray(rank, np.int64), kind="stable"):
        rows, columns = polygon_pixels(polygons[row])
        inside = (rows >= box.y0) & (rows < box.y1) & (columns >= box.x0) & (columns < box.x1)
        labels[rows[inside] - box.y0, columns[inside] - box.x0] = ids[row]
    return labels


def polygon_pixels(polygon: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows and columns of the pixels whose centre lies in the polygon, (rays, 2) as (y, x).

    Moving a polygon by whole pixels moves its pixels alike: the fraction alone decides.
    """
    from skimage.draw import polygon as fill

    base = np.floor(polygon.min(axis=0).astype(np.float64)).astype(np.int64)
    local = polygon.astype(np.float64) - base
    rows, columns = fill(local[:, 0], local[:, 1])
    return rows + base[0], columns + base[1]
