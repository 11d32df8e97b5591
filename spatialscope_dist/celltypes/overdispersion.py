"""Overdispersion σ_ε of the Poisson-lognormal model, chosen on a grid by likelihood."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.celltypes.likelihood import Density, LikelihoodTable, likelihood_table
from spatialscope_dist.celltypes.rctd import MAX_COUNT, fit_weights_as_rctd, spot_log_likelihoods_as_rctd
from spatialscope_dist.celltypes.weights import fit_weights

MAX_SPOTS = 1000
_START = 1.0
_MAX_ROUNDS = 8
_FEW_SPOTS = 128  # enough to come near


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
    rctd_compat: bool = False,
) -> float:
    """Return the σ_ε that fits the sampled spots best.

    Minimises min_w −Σ log Q over the grid: weights are fitted anew at every σ tried, each time from
    those of the σ before. A few spots lead near the minimum, all spots decide.

    Parameters
    ----------
    counts : (spots, genes), raw counts of the regression genes
    totals : (spots,), raw counts of the spot over all genes
    profiles : (types, genes), signatures with the platform effect in them
    kind : density of ε
    max_count : largest count of the section
    rctd_compat : RCTD's way instead: its capped fits, and σ moved with the weights held fixed, in turns
    """
    grid = overdispersion_grid()
    start = int(np.searchsorted(grid, _START))

    @lru_cache(maxsize=4)
    def table(position: int) -> LikelihoodTable:
        return likelihood_table(float(grid[position]), kind=kind, max_count=MAX_COUNT if rctd_compat else max_count)

    if rctd_compat:
        return float(grid[_in_turns((counts, totals, profiles), table, len(grid), start)])
    few = slice(None, None, -(-len(counts) // _FEW_SPOTS) or 1)
    near = minimise_on_grid(_profile_loss((counts[few], totals[few], profiles), table), len(grid), start, stride=16)
    return float(grid[minimise_on_grid(_profile_loss((counts, totals, profiles), table), len(grid), near, stride=1)])


_Spots = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
_Tables = Callable[[int], LikelihoodTable]


def _profile_loss(spots: _Spots, table: _Tables) -> Callable[[int], float]:
    """Return the function min_w −Σ log Q of the position on the grid; it remembers the last weights."""
    weights: NDArray[np.float64] | None = None

    def loss(position: int) -> float:
        nonlocal weights
        fit = fit_weights(*spots, table(position), start=weights)
        weights = fit.weights
        return -float(np.nansum(fit.log_likelihoods))

    return loss


def _in_turns(spots: _Spots, table: _Tables, size: int, position: int) -> int:
    """Return the position at which σ and weights stay, fitted in turns (at most 8 rounds), as RCTD does."""
    counts, totals, profiles = spots
    seen: set[int] = set()
    for _ in range(_MAX_ROUNDS):
        weights = fit_weights_as_rctd(*spots, table(position)).weights
        usable = np.flatnonzero(np.isfinite(weights).all(axis=1))
        loss = partial(_fixed_loss, (counts[usable], totals[usable], profiles), weights[usable], table)
        position = minimise_on_grid(loss, size, position, stride=8)
        if position in seen:
            break
        seen.add(position)
    return position


def _fixed_loss(spots: _Spots, weights: NDArray[np.float64], table: _Tables, position: int) -> float:
    counts, totals, profiles = spots
    return -float(spot_log_likelihoods_as_rctd(counts, totals, profiles, weights, table(position)).sum())


def minimise_on_grid(loss: Callable[[int], float], size: int, start: int, *, stride: int) -> int:
    """Return the position of the local minimum reached from `start` by strides halved down to 1."""
    values: dict[int, float] = {}

    def at(position: int) -> float:
        if position not in values:
            values[position] = loss(position)
        return values[position]

    best = start
    while stride >= 1:
        around = [p for p in (best - stride, best, best + stride) if 0 <= p < size]
        new = min(around, key=lambda p: (at(p), p))
        if new == best:
            stride //= 2
        best = new
    return best
