"""Estimates without a network: what the score model has to beat, and what is used when it does not.

All are pure functions of the spots and of the reference's profiles and return (cells, genes) reference counts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma

from spatialscope_dist.expression.allocation import Estimate, SpotCells, fill_in, missing, shares
from spatialscope_dist.expression.intervals import SCALED, UNTIED, Spread
from spatialscope_dist.expression.profiles import ReferenceProfiles

Float = NDArray[np.float32]


def capture_estimate(
    total_counts: NDArray[np.float64],
    cells_per_type: NDArray[np.float64],
    *,
    profiles: ReferenceProfiles,
    effect: Float,
) -> float:
    """Return counts measured per reference count: all counts of a section over what its labels lead to expect.

    Parameters
    ----------
    total_counts
        (genes,), raw counts over all spots with cells.
    cells_per_type
        (types,), number of cells.
    profiles
        of the reference.
    effect
        (genes,), platform effect exp(gamma_g); 0 for genes not measured.
    """
    expected = float(cells_per_type @ (profiles.mean_counts.astype(np.float64) @ effect.astype(np.float64)))
    seen = float(np.asarray(total_counts, np.float64)[effect > 0].sum())
    return seen / expected if expected > 0 and seen > 0 else 1.0


def exposures(capture: float, effect: Float) -> Float:
    """Return counts measured per reference count, (genes,), from capture and platform effect (0: not measured).

    Values from 0.9 to 1.1 are taken as 1: the cells of two data sets differ in size by more than that.
    """
    value = capture * effect.astype(np.float64)
    near = (value > 0.9) & (value < 1.1)
    return np.where(near, 1.0, value).astype(np.float32)


def type_mean(spots: SpotCells, profiles: ReferenceProfiles) -> Estimate:
    """Return the mean profile of each cell's type: what typing alone gives."""
    mean = profiles.mean_counts[spots.types]
    variance = mean + mean**2 / profiles.dispersion[spots.types]
    return Estimate(mean, np.sqrt(variance).astype(np.float32))


def proportional(spots: SpotCells, profiles: ReferenceProfiles) -> Estimate:
    """Return y_g mu_kg / Σ mu_kg over the spot's cells, per exposure; type means for genes not measured."""
    mean = profiles.mean_counts[spots.types]
    share, seen = shares(mean, spots), spots.exposure > 0
    per_count = np.where(seen, spots.exposure, 1.0).astype(np.float32)
    measured = spots.measured[spots.spot]
    rest = 1 - share + missing(per_count)
    variance = np.where(seen, measured * share * rest / per_count**2, mean)
    return Estimate(
        np.where(seen, measured * share / per_count, mean).astype(np.float32), np.sqrt(variance).astype(np.float32)
    )


def sized(spots: SpotCells, profiles: ReferenceProfiles) -> Estimate:
    """Return proportional allocation with a size per cell; what was not captured is size times type mean."""
    rates = cell_sizes(spots, profiles)[:, None] * profiles.mean_counts[spots.types]
    return fill_in(rates, shares(rates, spots), spots)


def cell_sizes(spots: SpotCells, profiles: ReferenceProfiles, *, n_rounds: int = 30) -> Float:
    """Return each cell's size, (cells,), relative to its type's mean: Poisson EM with a Gamma prior of mean 1.

    y_g ~ Poisson(exposure_g Σ_m size_m mean_mg); the cells of one spot and type get equal sizes.
    """
    mean = profiles.mean_counts[spots.types]
    shape = profiles.size_shape[spots.types]
    expected = (mean * spots.exposure).sum(axis=1)
    measured = spots.measured[spots.spot]
    size = np.ones(len(mean), np.float32)
    for _ in range(n_rounds):
        split = measured * shares(size[:, None] * mean, spots)
        size = ((shape + split.sum(axis=1)) / (shape + expected)).astype(np.float32)
    return size


def shrinkage(spots: SpotCells, profiles: ReferenceProfiles, *, n_rounds: int = 1) -> Estimate:
    """Return the Gamma-Poisson mean field: every gene of a cell may leave its type's mean, as far as types vary.

    rate_mg ~ Gamma(dispersion_kg) with mean size_m mean_kg, y_g ~ Poisson(exposure_g Σ_m rate_mg); the measured
    counts are split by exp(E log rate), and the posterior mean of the rate stands for what was not captured.
    One round is best on held-out cells of several data sets: with more, a cell keeps what it was given by chance.
    """
    shape, inverse, share = _mean_field(spots, profiles, n_rounds=n_rounds)
    rates = (shape / inverse).astype(np.float32)
    estimate = fill_in(rates, share, spots)
    spread = missing(spots.exposure) ** 2 * rates / inverse  # the rate itself is not known
    return Estimate(estimate.mean, np.sqrt(estimate.sd**2 + spread).astype(np.float32))


def _mean_field(spots: SpotCells, profiles: ReferenceProfiles, *, n_rounds: int = 1) -> tuple[Float, Float, Float]:
    """Return shape and inverse scale of each rate's Gamma distribution, and the shares, (cells, genes) each."""
    mean = cell_sizes(spots, profiles)[:, None] * profiles.mean_counts[spots.types]
    shape = profiles.dispersion[spots.types]
    inverse = shape / mean + spots.exposure
    measured = spots.measured[spots.spot]
    share = shares(mean, spots)
    for _ in range(n_rounds):
        share = shares((np.exp(digamma(shape + measured * share)) / inverse).astype(np.float32), spots)
    return shape + measured * share, inverse, share


BASELINES: dict[str, Callable[[SpotCells, ReferenceProfiles], Estimate]] = {
    "type_mean": type_mean,
    "proportional": proportional,
    "sized": sized,
    "shrinkage": shrinkage,
}


def baseline_spread(spots: SpotCells, profiles: ReferenceProfiles, *, name: str) -> Spread:
    """Return what the draws of a baseline are made of."""
    mean = profiles.mean_counts[spots.types]
    if name == "type_mean":
        return Spread.of(mean, shape=profiles.dispersion[spots.types], tie=UNTIED)
    if name == "proportional":
        return Spread.of(mean, tie=SCALED)
    if name == "sized":
        return Spread.of(cell_sizes(spots, profiles)[:, None] * mean)
    shape, inverse, _ = _mean_field(spots, profiles)
    return Spread.of((shape / inverse).astype(np.float32), shape=shape)
