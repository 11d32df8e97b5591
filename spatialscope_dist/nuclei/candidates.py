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
    """Return the candidates above `threshold` whose pixel the window owns.

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
    rows, columns = np.nonzero(probability > threshold)
    step_y = window.box.shape[0] // probability.shape[0]
    step_x = window.box.shape[1] // probability.shape[1]
    y, x = window.box.y0 + rows * step_y, window.box.x0 + columns * step_x
    keep = _owned(y, window.core.y0, window.core.y1) & _owned(x, window.core.x0, window.core.x1)
    keep &= _inside(y, grid.padded_shape[0], step_y) & _inside(x, grid.padded_shape[1], step_x)
    points = np.stack([y[keep], x[keep]], axis=1).astype(np.int32)
    chosen = rows[keep], columns[keep]
    return Candidates(points, np.maximum(distances[chosen], np.float32(MIN_DISTANCE)), probability[chosen])


def _owned(position: NDArray[np.int64], start: int, stop: int) -> NDArray[np.bool_]:
    return (position >= start) & (position < stop)


def _inside(position: NDArray[np.int64], padded: int, step: int) -> NDArray[np.bool_]:
    return (position >= BORDER * step) & (position < padded - BORDER * step)
