"""Placing sections in common coordinates: rigid maps from couplings, affine maps of points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def rigid_map(moving: Array, fixed: Array, coupling: Array) -> Array:
    """Return the rotation and shift that bring coupled places together, (3, 3), (x, y, 1) of moving → fixed.

    Weighted Procrustes (Kabsch 1976; PASTE, Zeira et al. 2022, Methods): minimises
    Σ_ij π_ij |R b_j + t − a_i|² over rotations R, without reflection.

    Parameters
    ----------
    moving : (n, 2), (x, y) in µm
    fixed : (m, 2), (x, y) in µm
    coupling : (m, n), weights π of pairs (fixed, moving), ≥ 0

    Examples
    --------
    >>> square = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> rigid_map(square, square + [3, 4], np.eye(3)).round(9)[:, 2].tolist()
    [3.0, 4.0, 1.0]
    """
    weights = coupling / coupling.sum()
    middle_fixed, middle_moving = weights.sum(axis=1) @ fixed, weights.sum(axis=0) @ moving
    covariance = (fixed - middle_fixed).T @ weights @ (moving - middle_moving)
    left, _, right = np.linalg.svd(covariance)
    rotation = left @ np.diag([1.0, np.sign(np.linalg.det(left @ right))]) @ right
    affine = np.eye(3)
    affine[:2, :2] = rotation
    affine[:2, 2] = middle_fixed - rotation @ middle_moving
    return affine


def mapped(affine: Array, points: Array) -> Array:
    """Return points moved by an affine map, (n, 2), (x, y)."""
    moved: Array = points @ affine[:2, :2].T + affine[:2, 2]
    return moved
