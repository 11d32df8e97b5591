"""RCTD's own way to the weights (R spacexr), for comparison with its numbers (Cable et al. 2022).

Counts are capped at 100 and rates at 111.7; from w = 1/K, at most 50 steps of 0.3 of the way to the
minimum of a quadratic model, until a step moves less than 1e-3 in L1.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.celltypes.likelihood import LikelihoodTable, Lookup, log_likelihood_into
from spatialscope_dist.celltypes.quadratic import damped_newton_steps
from spatialscope_dist.celltypes.weights import SpotWeights, expected_into, finite_profiles, gradient_into, hessian_into

MAX_COUNT = 100
MAX_RATE = 111.7
DAMPING = 0.3
MAX_ITERATIONS = 50
MIN_CHANGE = 1e-3
_SPOTS_AT_ONCE = 4096  # bounds the memory of their Hessians


def fit_weights_as_rctd(
    counts: NDArray[np.int64], totals: NDArray[np.int64], profiles: NDArray[np.float64], table: LikelihoodTable
) -> SpotWeights:
    """Return the weights RCTD's "full" mode gives to each spot; arguments as `weights.fit_weights`."""
    parts = []
    for low in range(0, max(len(counts), 1), _SPOTS_AT_ONCE):
        some = slice(low, low + _SPOTS_AT_ONCE)
        parts.append(_fit(*_inputs(counts[some], totals[some], profiles, table)))
    return SpotWeights(*(np.concatenate(of_all) for of_all in zip(*parts, strict=True)))


def spot_log_likelihoods_as_rctd(
    counts: NDArray[np.int64],
    totals: NDArray[np.int64],
    profiles: NDArray[np.float64],
    weights: NDArray[np.float64],
    table: LikelihoodTable,
) -> NDArray[np.float64]:
    """Return Σ_g log Q of each spot with RCTD's caps, (spots,); arguments as `weights.spot_log_likelihoods`."""
    capped, depths, signatures, lookup = _inputs(counts, totals, profiles, table)
    values: NDArray[np.float64] = _derivatives(capped, depths, signatures, np.ascontiguousarray(weights), lookup)[0]
    return values


_Inputs = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], Lookup]


def _inputs(
    counts: NDArray[np.int64], totals: NDArray[np.int64], profiles: NDArray[np.float64], table: LikelihoodTable
) -> _Inputs:
    capped = np.ascontiguousarray(np.minimum(counts, MAX_COUNT), np.int64)
    return capped, np.asarray(totals, np.float64), finite_profiles(profiles), table.lookup_for(capped)


def _fit(
    counts: NDArray[np.int64], totals: NDArray[np.float64], profiles: NDArray[np.float64], table: Lookup
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    weights = np.full((len(counts), len(profiles)), 1.0 / len(profiles))
    converged = np.zeros(len(counts), bool)
    moving = np.arange(len(counts))
    for _ in range(MAX_ITERATIONS):
        _, gradients, hessians = _derivatives(counts[moving], totals[moving], profiles, weights[moving], table)
        finite = np.isfinite(gradients).all(axis=1)
        weights[moving[~finite]] = np.nan
        moving = moving[finite]
        new = damped_newton_steps(gradients[finite], hessians[finite], weights[moving], damping=DAMPING)
        still = np.abs(new - weights[moving]).sum(axis=1) > MIN_CHANGE
        weights[moving] = new
        converged[moving[~still]] = True
        moving = moving[still]
        if len(moving) == 0:
            break
    return weights, converged, _derivatives(counts, totals, profiles, weights, table)[0]


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _derivatives(
    counts: NDArray[np.int64],
    totals: NDArray[np.float64],
    profiles: NDArray[np.float64],
    weights: NDArray[np.float64],
    table: Lookup,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return Σ_g log Q (spots,), gradient (spots, types) and Hessian (spots, types, types) of its negative."""
    n_types, n_genes = profiles.shape
    values, gradients = np.empty(len(counts)), np.empty((len(counts), n_types))
    hessians, types = np.empty((len(counts), n_types, n_types)), np.arange(n_types)
    rates, first, second = np.empty(n_genes), np.empty(n_genes), np.empty(n_genes)
    for spot in range(len(counts)):
        expected_into(rates, totals[spot], profiles, weights[spot])
        for gene in range(n_genes):
            rates[gene] = min(rates[gene], MAX_RATE)
        values[spot] = log_likelihood_into(first, second, counts[spot], rates, table)
        gradient_into(gradients[spot], first, totals[spot], profiles)
        hessian_into(hessians[spot], second, totals[spot], profiles, types)
    return values, gradients, hessians
