"""Cells per spot without an image, from counts and composition (an idea of SpatialScope's Discussion).

    log UMI_i = log s + log M_i + log d_i + noise,   d_i = Σ_k p_ik d_k,

d_k the depth of type k relative to the mean. The scale s is tied down by composition: M cells drawn
from the local composition q show Simpson diversity (1 − 1/M)(1 − Σ q²), so the section's observed
and local diversities give its mean number of cells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

_MIN_SHARE = 0.05  # smaller weights are noise of the fit and would pass for diversity
_NEIGHBOURS = 19
_DEPTH_RANGE = 3.0
# The typical spot holds at most this share of the cap (8 of 20 cells at 55 µm): where neighbouring spots have the same
# composition, diversity says "many cells" without saying how many.
_TYPICAL_SHARE = 0.4


def estimate_cell_counts(
    totals: NDArray[np.int64],
    weights: NDArray[np.float64],
    points: NDArray[np.float64],
    type_depths: NDArray[np.float64],
    *,
    max_cells: int,
) -> NDArray[np.int64]:
    """Return the estimated number of cells of each spot, (spots,), at least 1, at most `max_cells`.

    Parameters
    ----------
    totals : (spots,), raw counts
    weights : (spots, types), RCTD weights; rows that are not finite take the mean composition
    points : (spots, 2), µm
    type_depths : (types,), mean raw counts of a reference cell of each type
    max_cells : cap
    """
    n_spots = len(totals)
    if max_cells <= 1 or n_spots == 0:
        return np.ones(n_spots, np.int64)
    shares = compositions(weights)
    relative = np.clip(type_depths / max(float(np.mean(type_depths)), 1e-300), 1 / _DEPTH_RANGE, _DEPTH_RANGE)
    amount = np.maximum(totals, 1) / (shares @ relative)
    mean_cells = min(diversity_cells(shares, points, max_cells=max_cells), max(1.0, _TYPICAL_SHARE * max_cells))
    centre = np.exp(np.median(np.log(amount)))
    return np.asarray(np.clip(np.rint(mean_cells * amount / centre), 1, max_cells), np.int64)


def compositions(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return weights as proportions, (spots, types), shares below 5 % removed; gaps get the mean."""
    finite = np.isfinite(weights).all(axis=1) & (np.nan_to_num(weights).sum(axis=1) > 0)
    shares = np.where(finite[:, None], np.nan_to_num(weights), 0.0)
    shares[finite] /= shares[finite].sum(axis=1, keepdims=True)
    shares[shares < _MIN_SHARE] = 0.0
    total = shares.sum(axis=1, keepdims=True)
    shares = shares / np.where(total > 0, total, 1.0)
    known = total[:, 0] > 0
    mean = shares[known].mean(axis=0) if known.any() else np.full(weights.shape[1], 1.0 / weights.shape[1])
    shares[~known] = mean
    return np.asarray(shares)


def diversity_cells(shares: NDArray[np.float64], points: NDArray[np.float64], *, max_cells: int) -> float:
    """Return the typical number of cells of a spot: 1 / (1 − Σ observed / Σ local diversity).

    Parameters
    ----------
    shares : (spots, types), proportions
    points : (spots, 2), µm; the local composition is the mean over the nearest spots
    max_cells : cap of the result
    """
    k = min(_NEIGHBOURS, len(points))
    _, near = cKDTree(points).query(points, k=k)
    local = shares[np.asarray(near).reshape(len(points), k)].mean(axis=1)
    observed = float((1.0 - (shares**2).sum(axis=1)).sum())
    expected = float((1.0 - (local**2).sum(axis=1)).sum())
    if expected <= 0:
        return 1.0
    ratio = min(observed / expected, 1.0 - 1.0 / max_cells)
    return float(np.clip(1.0 / (1.0 - ratio), 1.0, max_cells))


def place_cells(
    centres: NDArray[np.float64], n_cells: NDArray[np.int64], keys: NDArray[np.int64], *, radius_um: float
) -> NDArray[np.float64]:
    """Return positions for cells that were counted but not seen, (cells, 2), (y, x) µm.

    A sunflower pattern fills each spot's circle evenly, turned by an angle taken from the spot's key.

    Parameters
    ----------
    centres : (spots, 2), (y, x) µm
    n_cells : (spots,)
    keys : (spots,), random keys
    radius_um : radius of a spot
    """
    spot = np.repeat(np.arange(len(n_cells)), n_cells)
    first = np.repeat(np.cumsum(n_cells) - n_cells, n_cells)
    rank = np.arange(len(spot)) - first
    turn = 2 * np.pi * ((keys[spot] & 0xFFFFFFFF) + 0.5) / 4294967296.0
    angle = turn + rank * np.pi * (3.0 - np.sqrt(5.0))
    distance = radius_um * np.sqrt((rank + 0.5) / np.maximum(n_cells[spot], 1)) * (n_cells[spot] > 1)
    return np.asarray(centres[spot] + np.stack([distance * np.sin(angle), distance * np.cos(angle)], axis=1))
