"""RCTD's full weights: how much of each type's signature a spot holds, spot by spot.

The weights minimise −Σ_g log Q(y_ig, N_i Σ_k w_ik μ_kg) within w ≥ 0. Where RCTD takes at most 50 steps of
0.3 towards the minimum of a quadratic model, here the whole step is taken and shortened only when
the objective would not fall: the same optimum in about seven steps (`rctd` holds RCTD's own rule).
A step treats only the types that are present or whose weight wants to grow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.celltypes.likelihood import MIN_RATE, LikelihoodTable, Lookup, log_likelihood_into
from spatialscope_dist.celltypes.quadratic import minimise_nonnegative

MAX_ITERATIONS = 100
MIN_CHANGE = 1e-4
DESCENT = 1e-4  # Armijo's constant: share of the predicted fall that must be reached
ROUNDING = 1e-12  # of the objective: what a fall may lack because of rounding
SHORTEST = 1e-3
RIDGE = 1e-6
MOST_FALL = 0.8  # of the sum of the weights in one step: where all rates are tiny the objective is flat
_SUM_ORDER = {"reassoc", "contract", "nsz"}  # lets sums over genes use vector instructions


@dataclass(frozen=True)
class SpotWeights:
    """Weights of a batch of spots.

    Attributes
    ----------
    weights : (spots, types), w ≥ 0; their sum is exp(α), NaN where the fit failed
    converged : (spots,), whether the last step moved no more than MIN_CHANGE in L1
    log_likelihoods : (spots,), Σ_g log Q at the weights
    """

    weights: NDArray[np.float64]
    converged: NDArray[np.bool_]
    log_likelihoods: NDArray[np.float64]


def fit_weights(
    counts: NDArray[np.int64],
    totals: NDArray[np.int64],
    profiles: NDArray[np.float64],
    table: LikelihoodTable,
    *,
    start: NDArray[np.float64] | None = None,
) -> SpotWeights:
    """Return the non-negative weights that maximise each spot's Poisson-lognormal likelihood.

    Each spot is fitted on its own, so the result does not depend on the batch.

    Parameters
    ----------
    counts : (spots, genes), raw counts of the regression genes
    totals : (spots,), N_i, raw counts of the spot over all genes
    profiles : (types, genes), signatures with the platform effect in them
    table : likelihood table at the section's overdispersion
    start : (spots, types), where to start; None = 1/K, as RCTD does

    Raises
    ------
    ValueError : when a signature is not finite, or a count lies beyond the table

    Notes
    -----
    Objective of RCTD "full" mode (Cable et al. 2022); projected Newton steps with Armijo's rule
    (Bertsekas 1982) until a step moves at most 1e-4 in L1. Where outlying genes make the Hessian
    indefinite, they are left out of it.
    """
    signatures = finite_profiles(profiles)
    fitted = np.full((len(counts), len(signatures)), 1.0 / len(signatures))
    if start is not None:
        np.copyto(fitted, start, where=np.isfinite(start))
    converged, log_likelihoods = _fit(
        fitted,
        np.ascontiguousarray(counts, np.int64),
        np.asarray(totals, np.float64),
        signatures,
        table.lookup_for(np.asarray(counts)),
    )
    return SpotWeights(fitted, converged, log_likelihoods)


def finite_profiles(profiles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the signatures as the kernels take them, (types, genes).

    Raises
    ------
    ValueError : when one is not finite
    """
    if not np.isfinite(profiles).all():
        message = f"found {int((~np.isfinite(profiles)).sum())} signature entries that are not finite; expected none"
        raise ValueError(message)
    return np.ascontiguousarray(profiles, np.float64)


def spot_log_likelihoods(
    counts: NDArray[np.int64],
    totals: NDArray[np.int64],
    profiles: NDArray[np.float64],
    weights: NDArray[np.float64],
    table: LikelihoodTable,
) -> NDArray[np.float64]:
    """Return Σ_g log Q(y_ig, N_i Σ_k w_ik μ_kg) of each spot, (spots,); arguments as fit_weights."""
    values: NDArray[np.float64] = _spot_log_likelihoods(
        np.ascontiguousarray(counts, np.int64),
        np.asarray(totals, np.float64),
        finite_profiles(profiles),
        np.ascontiguousarray(weights, np.float64),
        table.lookup_for(np.asarray(counts)),
    )
    return values


@numba.njit(cache=True, fastmath=_SUM_ORDER)  # type: ignore[untyped-decorator]
def expected_into(
    rates: NDArray[np.float64], total: float, profiles: NDArray[np.float64], weights: NDArray[np.float64]
) -> None:
    """Write N Σ_k w_k μ_kg, at least RCTD's floor max(1e-4, 1e-7 N), (genes,) (compiled)."""
    rates[:] = 0.0
    for k in range(len(weights)):
        scale = weights[k] * total
        if scale != 0.0:
            profile = profiles[k]
            for gene in range(len(rates)):
                rates[gene] += scale * profile[gene]
    floor = max(MIN_RATE, total * 1e-7)
    for gene in range(len(rates)):
        rates[gene] = max(rates[gene], floor)


@numba.njit(cache=True, fastmath=_SUM_ORDER)  # type: ignore[untyped-decorator]
def gradient_into(
    gradient: NDArray[np.float64], first: NDArray[np.float64], total: float, profiles: NDArray[np.float64]
) -> None:
    """Write ∂(−Σ_g log Q)/∂w, (types,), from the derivatives in λ (compiled)."""
    for k in range(len(gradient)):
        slope = 0.0
        profile = profiles[k]
        for gene in range(len(first)):
            slope += first[gene] * profile[gene]
        gradient[k] = -total * slope


@numba.njit(cache=True, fastmath=_SUM_ORDER)  # type: ignore[untyped-decorator]
def hessian_into(
    hessian: NDArray[np.float64],
    second: NDArray[np.float64],
    total: float,
    profiles: NDArray[np.float64],
    types: NDArray[np.int64],
) -> None:
    """Write the Hessian of −Σ_g log Q in the weights of `types`, (types, types) (compiled)."""
    scaled = np.empty(len(second))
    for i in range(len(types)):
        profile = profiles[types[i]]
        for gene in range(len(second)):
            scaled[gene] = -total * total * second[gene] * profile[gene]
        for j in range(i + 1):
            other = profiles[types[j]]
            product = 0.0
            for gene in range(len(second)):
                product += scaled[gene] * other[gene]
            hessian[i, j] = product
            hessian[j, i] = product


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _direction_into(  # noqa: PLR0913
    step: NDArray[np.float64],
    gradient: NDArray[np.float64],
    second: NDArray[np.float64],
    total: float,
    profiles: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> None:
    """Write the step to the minimum of the quadratic model within w ≥ 0, (types,); `second` may change."""
    types, n = np.empty(len(weights), np.int64), 0
    for k in range(len(weights)):
        step[k] = 0.0
        if weights[k] > 0.0 or gradient[k] < 0.0:
            types[n] = k
            n += 1
    types = types[:n]
    hessian, linear, target = np.empty((n, n)), np.empty(n), np.empty(n)
    hessian_into(hessian, second, total, profiles, types)
    if not _minimise_model(target, linear, hessian, gradient, weights, types):
        for gene in range(len(second)):
            second[gene] = min(second[gene], 0.0)
        hessian_into(hessian, second, total, profiles, types)
        for i in range(n):
            hessian[i, i] += RIDGE * (hessian[i, i] + 1.0)
        _minimise_model(target, linear, hessian, gradient, weights, types)
    for i in range(n):
        step[types[i]] = target[i] - weights[types[i]]


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _minimise_model(  # noqa: PLR0913
    target: NDArray[np.float64],
    linear: NDArray[np.float64],
    hessian: NDArray[np.float64],
    gradient: NDArray[np.float64],
    weights: NDArray[np.float64],
    types: NDArray[np.int64],
) -> bool:
    """Write the minimum of the quadratic model of the chosen types; False where the Hessian is indefinite."""
    for i in range(len(types)):
        target[i] = weights[types[i]]
        linear[i] = -gradient[types[i]]
        for j in range(len(types)):
            linear[i] += hessian[i, j] * weights[types[j]]
    definite: bool = minimise_nonnegative(hessian, linear, target)
    return definite


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _reach(
    step: NDArray[np.float64], gradient: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Return the step's L1 length, the rise of the log likelihood along it, and the share of it to try first."""
    change, rise, fall, most = 0.0, 0.0, 0.0, 0.0
    for k in range(len(step)):
        change += abs(step[k])
        rise -= gradient[k] * step[k]
        fall -= step[k]
        most += MOST_FALL * weights[k]
    share = 1.0
    while share * fall > most:
        share *= 0.5
    return change, rise, share


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _fit_spot(
    weights: NDArray[np.float64],
    counts: NDArray[np.int64],
    total: float,
    profiles: NDArray[np.float64],
    table: Lookup,
) -> tuple[bool, float]:
    """Move the weights to the optimum; return whether it was reached, and Σ_g log Q there."""
    rates, first, second = np.empty(len(counts)), np.empty(len(counts)), np.empty(len(counts))
    gradient, step, new = np.empty(len(weights)), np.empty(len(weights)), np.empty(len(weights))
    expected_into(rates, total, profiles, weights)
    value = log_likelihood_into(first, second, counts, rates, table)
    if not np.isfinite(value):
        weights[:] = np.nan
        return False, value
    for _ in range(MAX_ITERATIONS):
        gradient_into(gradient, first, total, profiles)
        _direction_into(step, gradient, second, total, profiles, weights)
        change, rise, length = _reach(step, gradient, weights)
        while True:
            for k in range(len(step)):
                new[k] = max(weights[k] + length * step[k], 0.0)
            expected_into(rates, total, profiles, new)
            new_value = log_likelihood_into(first, second, counts, rates, table)
            if new_value >= value + DESCENT * length * rise - ROUNDING * abs(value):
                break
            if length < SHORTEST:
                return False, value
            length *= 0.5
        for k in range(len(step)):
            weights[k] = new[k]
        value = new_value
        if change <= MIN_CHANGE:
            return True, value
    return False, value


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _fit(
    weights: NDArray[np.float64],
    counts: NDArray[np.int64],
    totals: NDArray[np.float64],
    profiles: NDArray[np.float64],
    table: Lookup,
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    converged, values = np.empty(len(counts), np.bool_), np.empty(len(counts))
    for spot in range(len(counts)):
        converged[spot], values[spot] = _fit_spot(weights[spot], counts[spot], totals[spot], profiles, table)
    return converged, values


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _spot_log_likelihoods(
    counts: NDArray[np.int64],
    totals: NDArray[np.float64],
    profiles: NDArray[np.float64],
    weights: NDArray[np.float64],
    table: Lookup,
) -> NDArray[np.float64]:
    n_genes = counts.shape[1]
    rates, first, second = np.empty(n_genes), np.empty(n_genes), np.empty(n_genes)
    values = np.empty(len(counts))
    for spot in range(len(counts)):
        expected_into(rates, totals[spot], profiles, weights[spot])
        values[spot] = log_likelihood_into(first, second, counts[spot], rates, table)
    return values
