"""Candidate polygons: what the network proposes in the pixels a window owns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.geometry.tiles import Window, WindowGrid

BORDER = 2
MIN_DISTANCE = 1e-3


@dataclass(frozen=True)
class Candidates:
    """Star-convex polygons proposed by the network.

    Parameters
    ----------
    points : ndarray
        (candidates, 2) int32, pixel (y, x) in model pixels of the whole image.
    distances : ndarray
        (candidates, rays) float32, model pixels from the point to the outline.
    probability : ndarray
        (candidates,) float32.
    """

    points: NDArray[np.int32]
    distances: NDArray[np.float32]
    probability: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.points)

    def take(self, index: NDArray[np.integer] | NDArray[np.bool_] | slice) -> Candidates:
        """Return the candidates of an index or mask, in its order."""
        return Candidates(self.points[index], self.distances[index], self.probability[index])


def canonical_order(points: NDArray[np.int32], probability: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return indices by falling probability, ties by (y, x): the one order every division shares."""
    return np.lexsort((points[:, 1], points[:, 0], -probability)).astype(np.int64)


def concatenate(parts: Sequence[Candidates], *, n_rays: int = 32) -> Candidates:
    """Return all candidates of the parts in one; none when there are no parts."""
    rays = parts[0].distances.shape[1] if parts else n_rays
    return Candidates(
        np.concatenate([np.empty((0, 2), np.int32), *(part.points for part in parts)]),
        np.concatenate([np.empty((0, rays), np.float32), *(part.distances for part in parts)]),
        np.concatenate([np.empty(0, np.float32), *(part.probability for part in parts)]),
    )


def window_candidates(
    probability: NDArray[np.float32],
    distances: NDArray[np.float32],
    *,
    window: Window,
    grid: WindowGrid,
    threshold: float,
) -> Candidates:
    """Return the candidates above `threshold` whose pixel the window owns, in global coordinates.

    Pixels closer than two prediction pixels to the border of the padded image propose nothing,
    as in StarDist.

    Parameters
    ----------
    probability : ndarray
        (rows, columns) on every n-th pixel of the window, n = window height / rows.
    distances : ndarray
        (rows, columns, rays), model pixels.
    window, grid : Window, WindowGrid
        The window the prediction was made in, and its grid.
    threshold : float
        Probability a candidate must exceed.
    """
    step = window.box.shape[0] // probability.shape[0]
    found = dense_candidates(probability, distances, step=step, threshold=threshold)
    return owned_candidates(found, window=window, grid=grid, border=BORDER * step)


def dense_candidates(
    probability: NDArray[np.float32], distances: NDArray[np.float32], *, step: int, threshold: float
) -> Candidates:
    """Return the candidates above `threshold` of a whole window, in pixels of the window.

    Parameters
    ----------
    probability, distances : ndarray
        (rows, columns) and (rows, columns, rays) on every `step`-th pixel of the window.
    step : int
        Window pixels per prediction pixel.
    threshold : float
        Probability a candidate must exceed.
    """
    rows, columns = np.nonzero(probability > threshold)
    points = np.stack([rows * step, columns * step], axis=1).astype(np.int32)
    return Candidates(
        points, np.maximum(distances[rows, columns], np.float32(MIN_DISTANCE)), probability[rows, columns]
    )


def owned_candidates(found: Candidates, *, window: Window, grid: WindowGrid, border: int = 0) -> Candidates:
    """Return the candidates whose pixel the window owns, moved from window to global coordinates.

    Parameters
    ----------
    found : Candidates
        In pixels of the window.
    window, grid : Window, WindowGrid
        Where they were found.
    border : int
        Pixels this close to the border of the padded image own nothing.
    """
    points = found.points + np.array([window.box.y0, window.box.x0], np.int32)
    core = window.core
    keep = np.ones(len(points), np.bool_)
    for position, length, start, stop in (
        (points[:, 0], grid.padded_shape[0], core.y0, core.y1),
        (points[:, 1], grid.padded_shape[1], core.x0, core.x1),
    ):
        keep &= (position >= max(start, border)) & (position < min(stop, length - border))
    return Candidates(points, found.distances, found.probability).take(keep)


def beyond_sight(found: Candidates, *, window: Window, grid: WindowGrid) -> NDArray[np.bool_]:
    """Return which polygons reach past what the window saw though the image goes on there, (candidates,).

    Parameters
    ----------
    found : Candidates
        In global coordinates.
    window, grid : Window, WindowGrid
        Where they were found.
    """
    box, (height, width) = window.box, grid.padded_shape
    bounds = polygon_bounds(found)
    past = np.zeros(len(found), np.bool_)
    past |= (bounds[:, 0] < box.y0) & (box.y0 > 0)
    past |= (bounds[:, 1] >= box.y1) & (box.y1 < height)
    past |= (bounds[:, 2] < box.x0) & (box.x0 > 0)
    past |= (bounds[:, 3] >= box.x1) & (box.x1 < width)
    return past


def polygon_bounds(candidates: Candidates) -> NDArray[np.int32]:
    """Return (candidates, 4) boxes y0, y1, x0, x1, both ends inside, that hold the polygons and a pixel around.

    The pixel allows for StarDist's whole-pixel vertices.
    """
    n_rays = candidates.distances.shape[1]
    angles = np.linspace(0, 2 * np.pi, n_rays, endpoint=False)
    ends = []
    for axis, direction in enumerate((np.sin(angles), np.cos(angles))):
        vertices = candidates.points[:, axis, None] + candidates.distances * direction
        vertices = np.clip(vertices, -(2**30), 2**30)
        ends += [np.floor(vertices.min(axis=1)) - 1, np.ceil(vertices.max(axis=1)) + 1]
    return np.stack(ends, axis=1).astype(np.int32)
