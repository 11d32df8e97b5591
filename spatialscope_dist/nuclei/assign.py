"""Nuclei to spots: the centroid decides, the nearest spot wins."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEAREST_SPOTS = 8
NUCLEI_AT_ONCE = 1 << 16


def default_cap(spot_diameter_um: float) -> int:
    """Return the most cells a spot may hold: ceil(20 · (diameter / 55 µm)²).

    Examples
    --------
    >>> default_cap(55.0), default_cap(100.0)
    (20, 67)
    """
    return math.ceil(20 * (spot_diameter_um / 55.0) ** 2)


def assign_to_spots(
    centroids_um: NDArray[np.float64], spots_um: NDArray[np.float64], *, radius_um: float
) -> NDArray[np.int64]:
    """Return the row of the spot holding each centroid, (nuclei,), −1 outside every spot.

    Parameters
    ----------
    centroids_um, spots_um : ndarray
        (nuclei, 2) and (spots, 2), (y, x) in µm.
    radius_um : float
        Spot radius; a centroid on the circle is inside. Of equally near spots the first wins.
    """
    from scipy.spatial import cKDTree

    result = np.full(len(centroids_um), -1, np.int64)
    if len(spots_um) == 0:
        return result
    tree = cKDTree(spots_um)
    for start in range(0, len(centroids_um), NUCLEI_AT_ONCE):
        here = slice(start, start + NUCLEI_AT_ONCE)
        result[here] = _nearest(tree, centroids_um[here], spots_um, radius_um=radius_um)
    return result


def _nearest(
    tree: Any, centroids_um: NDArray[np.float64], spots_um: NDArray[np.float64], *, radius_um: float
) -> NDArray[np.int64]:
    n_nearest = min(NEAREST_SPOTS, len(spots_um))
    _, rows = tree.query(centroids_um, k=np.arange(1, n_nearest + 1))
    rows = np.sort(rows, axis=1)
    squared = ((spots_um[rows] - centroids_um[:, None, :]) ** 2).sum(axis=2)
    nearest = squared.argmin(axis=1)[:, None]
    inside = np.take_along_axis(squared, nearest, axis=1)[:, 0] <= radius_um**2
    return np.where(inside, np.take_along_axis(rows, nearest, axis=1)[:, 0], -1).astype(np.int64)


def keep_most_probable(
    spot_of_nucleus: NDArray[np.int64], probability: NDArray[np.float32], *, cap: int
) -> NDArray[np.bool_]:
    """Return which nuclei become cells, (nuclei,): inside a spot and among its `cap` most probable.

    Equally probable nuclei are kept in the order given (canonical ids).
    """
    order = np.lexsort((np.arange(len(probability)), -probability, spot_of_nucleus))
    spots = spot_of_nucleus[order]
    rank = np.arange(len(spots)) - np.searchsorted(spots, spots, side="left")
    keep = np.zeros(len(spots), np.bool_)
    keep[order] = (spots >= 0) & (rank < cap)
    return keep
