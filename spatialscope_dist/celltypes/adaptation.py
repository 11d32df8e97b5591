"""Signatures adapted to a section: what a platform does to one type and not to another.

Where reference and section come from different technologies, the effect on a gene depends on the
type. Given weights, the counts of a spot are shared out among its types; a type's signature then
follows what it was given, against a prior that it is the reference's,

    μ_kg ~ Gamma(κ, κ / μ⁰_kg),   y_ig ~ Poisson(u_ig N_i Σ_k w_ik μ_kg),   u_ig ~ Gamma(r, r),

r = 1 / (exp(σ²) − 1). κ = 1/τ² says by what share τ a signature is expected to deviate. One
expectation step gives S_kg = Σ_i E[counts of k], E_kg = Σ_i N_i w_ik E[u_ig], and the maximum is
μ_kg = (κ + S_kg) / (κ / μ⁰_kg + E_kg). Steps alternate with new weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.celltypes.keyed_random import philox_words
from spatialscope_dist.celltypes.likelihood import LikelihoodTable
from spatialscope_dist.celltypes.weights import fit_weights, spot_log_likelihoods

ROUNDS = 4
STEPS = 15
_LARGEST_OVERDISPERSION = 0.8  # beyond it the tails of h_σ, not its width, make σ large
_STANDARD_ERRORS = 2.0
_FEWEST_SPOTS = 20


@dataclass(frozen=True)
class SpotSample:
    """Spots of a section that a model is learnt from.

    Attributes
    ----------
    counts : (spots, genes), raw counts of the regression genes
    totals : (spots,), raw counts over all genes
    keys : (spots,), random keys
    """

    counts: NDArray[np.int64]
    totals: NDArray[np.int64]
    keys: NDArray[np.int64]

    def take(self, which: NDArray[np.bool_]) -> SpotSample:
        """Return some of the spots."""
        return SpotSample(self.counts[which], self.totals[which], self.keys[which])


def adapt_signatures(
    sample: SpotSample, profiles: NDArray[np.float64], table: LikelihoodTable, *, stiffness: float
) -> NDArray[np.float64]:
    """Return signatures adapted to the sampled spots, (types, genes).

    Parameters
    ----------
    sample : spots of the section
    profiles : (types, genes), signatures with the platform effect in them, the centre of the prior
    table : likelihood table at the section's overdispersion, for the weights
    stiffness : κ
    """
    adapted = profiles
    shape = 1.0 / np.expm1(min(table.overdispersion, _LARGEST_OVERDISPERSION) ** 2)
    for _ in range(ROUNDS):
        weights = fit_weights(sample.counts, sample.totals, adapted, table).weights
        exposure = sample.totals[:, None] * weights
        usable = np.isfinite(weights).all(axis=1)
        adapted = _maximise(
            np.ascontiguousarray(sample.counts[usable], np.float64),
            np.ascontiguousarray(exposure[usable]),
            np.ascontiguousarray(profiles.T),
            shape,
            stiffness,
        ).T
    return np.ascontiguousarray(adapted)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _maximise(
    counts: NDArray[np.float64],
    exposure: NDArray[np.float64],
    centre: NDArray[np.float64],
    shape: float,
    stiffness: float,
) -> NDArray[np.float64]:
    """Return the signatures after STEPS steps at fixed exposure, (genes, types); centre likewise."""
    profiles = centre.copy()
    total, exposed = counts.sum(), exposure.sum(axis=0)
    for _ in range(STEPS):
        # Mean 1 of u only fixes the scale of the weights, which RCTD leaves free: take it out.
        scale = total / max((profiles.sum(axis=0) * exposed).sum(), 1e-300)
        given, seen = shared_counts(counts, exposure * scale, profiles, shape)
        profiles = (stiffness + given) / (stiffness / np.maximum(centre, 1e-300) + seen)
    return profiles


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def shared_counts(
    counts: NDArray[np.float64], exposure: NDArray[np.float64], profiles: NDArray[np.float64], shape: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return S, expected counts of each type, and E, exposure with its noise, both (genes, types).

    counts (spots, genes), exposure (spots, types), profiles (genes, types) (compiled).
    """
    n_genes, n_types = profiles.shape
    given, seen = np.zeros((n_genes, n_types)), np.zeros((n_genes, n_types))
    for spot in range(len(counts)):
        held = np.flatnonzero(exposure[spot])
        for gene in range(n_genes):
            rate = 1e-10
            for k in held:
                rate += exposure[spot, k] * profiles[gene, k]
            ratio = counts[spot, gene] / rate
            noise = (shape + counts[spot, gene]) / (shape + rate)
            for k in held:
                given[gene, k] += exposure[spot, k] * profiles[gene, k] * ratio
                seen[gene, k] += exposure[spot, k] * noise
    return given, seen


def held_out_gain(
    sample: SpotSample, profiles: NDArray[np.float64], table: LikelihoodTable, *, stiffness: float
) -> tuple[float, float]:
    """Return the mean gain of log likelihood per spot by adaptation, and its standard error.

    Signatures are adapted on one half of the spots. On the other half, weights are fitted on half of
    the counts (each count kept with probability ½), and the likelihood is that of the rest. Fewer than
    20 spots tell nothing: no gain, standard error 1.
    """
    learning = (sample.keys & 1) == 0
    test = sample.take(~learning)
    adapted = adapt_signatures(sample.take(learning), profiles, table, stiffness=stiffness)
    fitted = thin_by_half(test.counts, test.keys)
    rest, half = test.counts - fitted, np.maximum(test.totals // 2, 1)
    before, after = (
        spot_log_likelihoods(rest, half, some, fit_weights(fitted, half, some, table).weights, table)
        for some in (profiles, adapted)
    )
    gains = (after - before)[np.isfinite(after) & np.isfinite(before)]
    if len(gains) < _FEWEST_SPOTS:
        return 0.0, 1.0
    return float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))


def is_worth_adapting(gain: float, standard_error: float) -> bool:
    """Return whether held-out spots are better explained beyond doubt (two standard errors)."""
    return gain > _STANDARD_ERRORS * standard_error


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def thin_by_half(counts: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many of each count are kept with probability ½, (spots, genes); keyed by spot and gene."""
    kept = np.zeros(counts.shape, np.int64)
    for spot in range(len(counts)):
        for gene in range(counts.shape[1]):
            left, draw = counts[spot, gene], 0
            while left > 0:
                for word in philox_words(keys[spot], gene, draw, 0, 0):
                    used = min(left, 32)
                    for bit in range(used):
                        kept[spot, gene] += (word >> bit) & 1
                    left -= used
                draw += 1
    return kept
