"""RCTD's full weights: how much of each type's signature a spot holds, spot by spot."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.celltypes.likelihood import LikelihoodTable, Lookup, log_likelihood
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
    Iteratively reweighted quadratic programme of RCTD "full" mode (Cable et al. 2022; method
    section 2.5): at most 50 iterations of 0.3 of a Newton step within w ≥ 0, from w = 1/K.
    """
    weights, converged = _fit(
        np.ascontiguousarray(counts, np.float64),
        np.asarray(totals, np.float64),
        np.ascontiguousarray(profiles, np.float64),
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
        np.ascontiguousarray(profiles, np.float64),
        np.ascontiguousarray(weights, np.float64),
        table.lookup_for(np.asarray(counts)),
    )
    return values


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _floor(total: float) -> float:
    return max(1e-4, total * 1e-7)


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
    for gene in range(len(counts)):
        rate = 0.0
        for k in range(n_types):
            rate += weights[k] * profiles[k, gene]
        rate = max(rate * total, _floor(total))
        _, in_log, in_log_twice = log_likelihood(counts[gene], np.log(rate), table)
        d1 = in_log / rate * total
        d2 = (in_log_twice - in_log) / (rate * rate) * total * total
        for k in range(n_types):
            gradient[k] -= d1 * profiles[k, gene]
            scaled = d2 * profiles[k, gene]
            for other in range(k + 1):
                hessian[k, other] -= scaled * profiles[other, gene]
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
    n_spots, n_types = len(counts), len(profiles)
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
    for spot in range(len(counts)):
        for gene in range(counts.shape[1]):
            rate = 0.0
            for k in range(len(profiles)):
                rate += weights[spot, k] * profiles[k, gene]
            rate = max(rate * totals[spot], _floor(totals[spot]))
            values[spot] += log_likelihood(counts[spot, gene], np.log(rate), table)[0]
    return values
