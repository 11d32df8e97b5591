"""Label image from polygons, shard by shard: a polygon is rasterised in its own frame, then cut."""

from __future__ import annotations

import numpy as np
from numba import njit
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
    order = np.argsort(-np.asarray(rank, np.int64), kind="stable")
    _paint(labels, polygons[order], np.asarray(ids)[order].astype(np.uint32), box.y0, box.x0)
    return labels


@njit(cache=True)  # type: ignore[untyped-decorator]
def _paint(
    labels: NDArray[np.uint32], polygons: NDArray[np.float32], ids: NDArray[np.uint32], y0: int, x0: int
) -> None:  # pragma: no cover
    height, width = labels.shape
    crossings = np.empty((3, polygons.shape[1]), np.float64)
    for number in range(len(polygons)):
        vertices = polygons[number].astype(np.float64)
        base_y, base_x = int(np.floor(vertices[:, 0].min())), int(np.floor(vertices[:, 1].min()))
        vertices[:, 0] -= base_y
        vertices[:, 1] -= base_x
        last_y, last_x = int(np.ceil(vertices[:, 0].max())), int(np.ceil(vertices[:, 1].max()))
        for y in range(max(0, y0 - base_y), min(last_y + 1, y0 + height - base_y)):
            n_lower, n_upper, n_on = _crossings(vertices, y, crossings)
            for x in range(max(0, x0 - base_x), min(last_x + 1, x0 + width - base_x)):
                # An odd number of crossings to one side: inside, or, when the other side has an even one, on an edge.
                inside = (crossings[0, :n_lower] < x).sum() % 2 or (crossings[1, :n_upper] > x).sum() % 2
                if inside or (crossings[2, :n_on] == x).any():
                    labels[y + base_y - y0, x + base_x - x0] = ids[number]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _crossings(
    vertices: NDArray[np.float64], y: int, crossings: NDArray[np.float64]
) -> tuple[int, int, int]:  # pragma: no cover
    """Write where edges from above the row and from below it cross or reach it, and where vertices lie on it."""
    n_lower, n_upper, n_on = 0, 0, 0
    for ray in range(len(vertices)):
        from_y, to_y = vertices[ray - 1, 0] - y, vertices[ray, 0] - y
        if to_y == 0:
            crossings[2, n_on] = vertices[ray, 1]
            n_on += 1
        if from_y == to_y:
            continue
        at = (vertices[ray, 1] * from_y - vertices[ray - 1, 1] * to_y) / (from_y - to_y)
        if (from_y < 0) != (to_y < 0):
            crossings[0, n_lower] = at
            n_lower += 1
        if (from_y > 0) != (to_y > 0):
            crossings[1, n_upper] = at
            n_upper += 1
    return n_lower, n_upper, n_on


def polygon_pixels(polygon: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows and columns of the pixels whose centre lies in the polygon, (rays, 2) as (y, x).

    Moving a polygon by whole pixels moves its pixels alike: the fraction alone decides.
    """
    from skimage.draw import polygon as fill

    base = np.floor(polygon.min(axis=0).astype(np.float64)).astype(np.int64)
    local = polygon.astype(np.float64) - base
    rows, columns = fill(local[:, 0], local[:, 1])
    return rows + base[0], columns + base[1]
