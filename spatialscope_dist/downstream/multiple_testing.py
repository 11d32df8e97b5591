"""Adjusting and combining p-values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


def adjust(p: Array) -> Array:
    """Return Benjamini-Hochberg adjusted p-values, (tests,); NaN stays NaN and is not counted."""
    adjusted = np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        adjusted[known] = stats.false_discovery_control(p[known])
    return adjusted


def adjust_within(p: Array, groups: NDArray[np.generic]) -> Array:
    """Return p-values adjusted separately inside every group, (tests,)."""
    adjusted = np.full(len(p), np.nan)
    for group in np.unique(groups):
        members = groups == group
        adjusted[members] = adjust(p[members])
    return adjusted


def combine_cauchy(p: Array) -> Array:
    """Return the Cauchy combination of dependent p-values along the last axis (Liu & Xie 2020).

    p = 1/2 - arctan(mean tan((1/2 - p_j) π)) / π, with tan ≈ 1/(π p) where p is too small for the tangent.
    Values above 0.99 count as 0.99, as in SPARK: one kernel that fits exactly worse than chance (p = 1, tangent
    -infinity) must not cancel another that fits.
    """
    small = p < 1e-15
    inner = np.clip(p, 1e-15, 0.99)
    terms = np.where(small, 1 / (np.maximum(p, 1e-300) * np.pi), np.tan((0.5 - inner) * np.pi))
    mean = terms.mean(axis=-1)
    large = mean > 1e15
    return np.asarray(np.where(large, 1 / (np.maximum(mean, 1.0) * np.pi), 0.5 - np.arctan(mean) / np.pi))
