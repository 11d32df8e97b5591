"""Overdispersion σ_ε of the Poisson-lognormal model, chosen on a grid by likelihood."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.celltypes.likelihood import Density, LikelihoodTable, likelihood_table
from spatialscope_dist.celltypes.weights import fit_weights, spot_log_likelihoods

MAX_SPOTS = 1000
_START = 1.0
_MAX_ROUNDS = 8
_COARSE = 8


def overdispersion_grid() -> NDArray[np.float64]:
    """Return RCTD's candidate values of σ_ε: 0.10–0.70 by 0.01, 0.72–2.00 by 0.02, (126,)."""
    return np.round(np.concatenate([np.arange(10, 71) / 100.0, np.arange(72, 201, 2) / 100.0]), 2)


def sample_spots(keys: NDArray[np.int64], totals: NDArray[np.int64], *, min_total: int = 300) -> NDArray[np.int64]:
    """Return the spots σ is estimated on, ascending: at most 1000, lowest keys first.

    Spots with at least `min_total` counts (RCTD: 300), or the deeper half when too few have them.

    Parameters
    ----------
    keys : (spots,), one random key per spot
    totals : (spots,), raw counts
    """
    enough = np.flatnonzero(totals >= min_total)
    if len(enough) < min(100, len(totals)):
        enough = np.flatnonzero(totals >= np.median(totals)) if len(totals) else enough
    chosen = enough[np.argsort(keys[enough], kind="stable")][:MAX_SPOTS]
    return np.sort(chosen).astype(np.int64)


def estimate_overdispersion(
    counts: NDArray[np.int64],
    totals: NDArray[np.int64],
    profiles: NDArray[np.float64],
    *,
    kind: Density = "heavy_tailed",
    max_count: int = 1000,
) -> float:
    """Return the σ_ε that fits the sampled spots best.

    Weights are fitted at the current σ, then σ is moved to the grid value of highest likelihood,
    until it stays (at most 8 rounds), as RCTD does.

    Parameters
    ----------
    counts : (spots, genes), raw counts of the regression genes
    totals : (spots,), raw counts of the spot over all genes
    profiles : (types, genes), signatures with the platform effect in them
    """
    grid = overdispersion_grid()
    position = int(np.searchsorted(grid, _START))
    seen: set[int] = set()
    for _ in range(_MAX_ROUNDS):
        weights = fit_weights(counts, totals, profiles, _table(grid, position, kind, max_count)).weights
        usable = np.flatnonzero(np.isfinite(weights).all(axis=1))
        fixed = (counts[usable], totals[usable], profiles, weights[usable])
        loss = partial(_negative_log_likelihood, fixed, grid, kind, max_count)
        position = minimise_on_grid(loss, len(grid), position)
        if position in seen:
            break
        seen.add(position)
    return float(grid[position])


_Fixed = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]


def _negative_log_likelihood(
    fixed: _Fixed, grid: NDArray[np.float64], kind: Density, max_count: int, position: int
) -> float:
    return -float(spot_log_likelihoods(*fixed, _table(grid, position, kind, max_count)).sum())


def minimise_on_grid(loss: Callable[[int], float], size: int, start: int) -> int:
    """Return the position of the local minimum reached by halving strides from `start`."""
    values: dict[int, float] = {}

    def at(position: int) -> float:
        if position not in values:
            values[position] = loss(position)
        return values[position]

    stride, best = _COARSE, start
    while stride >= 1:
        around = [p for p in (best - stride, best, best + stride) if 0 <= p < size]
        new = min(around, key=lambda p: (at(p), p))
        if new == best:
            stride //= 2
        best = new
    return best


def _table(grid: NDArray[np.float64], position: int, kind: Density, max_count: int) -> LikelihoodTable:
    return likelihood_table(float(grid[position]), kind=kind, max_count=max_count)
