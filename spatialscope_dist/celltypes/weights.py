"""RCTD's full weights: how much of each type's signature a spot holds, spot by spot."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.celltypes.likelihood import LikelihoodTable, Lookup, log_likelihoods_into
from spatialscope_dist.celltypes.quadratic import damped_newton_step

DAMPING = 0.3
MAX_ITERATIONS = 50
MIN_CHANGE = 1e-3


@dataclass(frozen=True)
class SpotWeights:
    """Weights of a batch of spots.

    Attributes
    ----------
    weights : (spots, types), w ≥ 0; their sum is exp(α), NaN where the fit failed
    converged : (spots,), whether the last step moved less than MIN_CHANGE in L1
    """

    weights: NDArray[np.float64]
    converged: NDArray[np.bool_]


def fit_weights(
    counts: NDArray[np.int64], totals: NDArray[np.int64], profiles: NDArray[np.float64], table: LikelihoodTable
) -> SpotWeights:
    """Return the non-negative weights that maximise each spot's Poisson-lognormal likelihood.

    Each spot is fitted on its own, so the result does not depend on the batch.

    Parameters
    ----------
    counts : (spots, genes), raw counts of the regression genes
    totals : (spots,), N_i, raw counts of the spot over all genes
    profiles : (types, genes), signatures with the platform effect in them
    table : likelihood table at the section's overdispersion

    Notes
    -----
    Iteratively reweighted quadratic programme of RCTD "full" mode (Cable et al. 2022): at most
    50 iterations of 0.3 of a Newton step within w ≥ 0, from w = 1/K.
    """
    weights, converged = _fit(
        np.ascontiguousarray(counts, np.float64),
        np.asarray(totals, np.float64),
        np.ascontiguousarray(np.asarray(profiles, np.float64).T),
        table.lookup_for(np.asarray(counts)),
    )
    return SpotWeights(weights, converged)


def spot_log_likelihoods(
    counts: NDArray[np.int64],
    totals: NDArray[np.int64],
    profiles: NDArray[np.float64],
    weights: NDArray[np.float64],
    table: LikelihoodTable,
) -> NDArray[np.float64]:
    """Return Σ_g log Q(y_ig, N_i Σ_k w_ik μ_kg) of each spot, (spots,); arguments as fit_weights."""
    values: NDArray[np.float64] = _spot_log_likelihoods(
        np.ascontiguousarray(counts, np.float64),
        np.asarray(totals, np.float64),
        np.ascontiguousarray(np.asarray(profiles, np.float64).T),
        np.ascontiguousarray(weights, np.float64),
        table.lookup_for(np.asarray(counts)),
    )
    return values


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _rates(total: float, profiles: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return N Σ_k w_k μ_kg, at least RCTD's floor max(1e-4, 1e-7 N), (genes,); profiles (genes, types)."""
    floor = max(1e-4, total * 1e-7)
    rates = np.zeros(len(profiles))
    for gene in range(len(rates)):
        for k in range(len(weights)):
            rates[gene] += weights[k] * profiles[gene, k]
        rates[gene] = max(rates[gene] * total, floor)
    return rates


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _derivatives(
    counts: NDArray[np.float64],
    total: float,
    profiles: NDArray[np.float64],
    weights: NDArray[np.float64],
    table: Lookup,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return gradient (types,) and Hessian (types, types) of −Σ_g log Q in the weights."""
    n_types = len(weights)
    gradient, hessian = np.zeros(n_types), np.zeros((n_types, n_types))
    terms = np.empty((len(counts), 3))
    log_likelihoods_into(terms, counts, _rates(total, profiles, weights), table)
    for gene in range(len(counts)):
        d1, d2 = terms[gene, 1] * total, terms[gene, 2] * total * total
        profile = profiles[gene]
        for k in range(n_types):
            gradient[k] -= d1 * profile[k]
            scaled = d2 * profile[k]
            row = hessian[k]
            for other in range(k + 1):
                row[other] -= scaled * profile[other]
    for k in range(n_types):
        for other in range(k):
            hessian[other, k] = hessian[k, other]
    return gradient, hessian


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _fit(
    counts: NDArray[np.float64],
    totals: NDArray[np.float64],
    profiles: NDArray[np.float64],
    table: Lookup,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    n_spots, n_types = len(counts), profiles.shape[1]
    fitted = np.empty((n_spots, n_types))
    converged = np.zeros(n_spots, np.bool_)
    for spot in range(n_spots):
        weights = np.full(n_types, 1.0 / n_types)
        for _ in range(MAX_ITERATIONS):
            gradient, hessian = _derivatives(counts[spot], totals[spot], profiles, weights, table)
            if not np.isfinite(gradient).all():
                weights[:] = np.nan
                break
            new = damped_newton_step(gradient, hessian, weights, DAMPING)
            change = np.abs(new - weights).sum()
            weights = new
            if change <= MIN_CHANGE:
                converged[spot] = True
                break
        fitted[spot] = weights
    return fitted, converged


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _spot_log_likelihoods(
    counts: NDArray[np.float64],
    totals: NDArray[np.float64],
    profiles: NDArray[np.float64],
    weights: NDArray[np.float64],
    table: Lookup,
) -> NDArray[np.float64]:
    values = np.zeros(len(counts))
    terms = np.empty((counts.shape[1], 3))
    for spot in range(len(counts)):
        log_likelihoods_into(terms, counts[spot], _rates(totals[spot], profiles, weights[spot]), table)
        values[spot] = terms[:, 0].sum()
    return values
