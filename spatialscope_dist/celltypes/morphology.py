"""What the nuclei of each cell type look like, learnt within a section from the counts of its spots.

The measures of a nucleus of type k at place x are

    f ~ (1 − ε) N(t(x) + m_k, S_k) + ε N(t(x) + m_0, S_0),

t a trend of the staining over the section, (m_0, S_0) those of all nuclei, ε the share measured wrong.
Counts say how many cells of a spot have each type, not which. The posterior r of a spot's labels given
counts and measures is exact (`spot_posterior`), so is EM (Dempster et al. 1977) over (m, S):

    m_k = Σ_n r_nk f_n / (n_k + κ),   S_k = (ν S + Σ_n r_nk (f_n − m_k)(f_n − m_k)ᵀ + κ m_k m_kᵀ) / (n_k + ν),

the modes under normal-inverse-Wishart priors around the mean of all nuclei and the covariance S within
types. A cell's field is −log of the density ratio of each type to all nuclei.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numba
import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.celltypes.multisets import QUANTUM, MultisetCache
from spatialscope_dist.celltypes.spot_posterior import Posterior, spot_posteriors

MISMEASURED = 0.05
PRIOR_CELLS = 10.0
PRIOR_FREEDOM = 60.0
ROUNDS = 15
TREND_SPOTS = 40
LARGEST_DEVIATION = 4.0
LARGEST_LOG_RATIO = 50.0
RIDGE = 0.02  # variance of a measure, in squares of its spread, that no type falls below

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """How measures are made comparable: logarithm, then robust location and spread.

    Attributes
    ----------
    logged : (measures,), whether the logarithm is taken: all values of the section are positive
    centre, spread : (measures,), median and 1.4826 · median absolute deviation
    """

    logged: NDArray[np.bool_]
    centre: Array
    spread: Array

    def take(self, kept: NDArray[np.bool_]) -> Scale:
        """Return the scale of some of the measures."""
        return Scale(self.logged[kept], self.centre[kept], self.spread[kept])

    def standardise(self, measures: Array) -> Array:
        """Return measures, (cells, measures), in spreads, within ±4; NaN where unknown."""
        with np.errstate(invalid="ignore", divide="ignore"):
            values = np.where(self.logged, np.log(measures), measures)
        values = np.where(np.isfinite(values), values, np.nan)
        return np.clip((values - self.centre) / self.spread, -LARGEST_DEVIATION, LARGEST_DEVIATION)


def robust_scale(measures: Array) -> Scale:
    """Return the scale of measures, (cells, measures); spread 0 where half of the cells have one value."""
    logged = np.nanmin(measures, axis=0) > 0
    values = np.where(logged, np.log(np.where(logged, measures, 1.0)), measures)
    centre = np.nanmedian(values, axis=0)
    return Scale(logged, centre, 1.4826 * np.nanmedian(np.abs(values - centre), axis=0))


@dataclass(frozen=True)
class Sample:
    """Spots that the looks of nuclei are learnt from.

    Attributes
    ----------
    cache : multiset energies
    places : (spots, 2), (y, x) µm
    measures : (cells, measures), standardised, spots one after another; NaN where unknown
    n_types : number of types
    """

    cache: MultisetCache
    places: Array
    measures: Array
    n_types: int

    @cached_property
    def spot(self) -> NDArray[np.int64]:
        """Spot of each cell, (cells,)."""
        return np.repeat(np.arange(len(self.cache.n_cells)), self.cache.n_cells)

    @cached_property
    def types(self) -> NDArray[np.int64]:
        """Candidates of each cell, (cells, slots)."""
        return np.asarray(self.cache.candidates.types[self.spot], np.int64)

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """Cells whose measures are known, (cells,)."""
        return np.asarray(np.isfinite(self.measures).all(axis=1))

    @cached_property
    def near(self) -> NDArray[np.int64]:
        """Spots the trend at each spot is taken from, (spots, neighbours)."""
        return nearest_spots(self.places, self.places)

    @cached_property
    def from_counts(self) -> Array:
        """Posterior of each candidate from counts alone, (cells, slots)."""
        return spot_posteriors(self.cache, np.ones(self.types.shape)).shares


@dataclass(frozen=True)
class Looks:
    """Gaussians of the standardised measures of nuclei, after the trend.

    Attributes
    ----------
    mean, covariance : (types, measures) and (types, measures, measures)
    any_mean, any_covariance : (measures,) and (measures, measures), of all nuclei
    residuals, counted : (spots, measures) and (spots,), sums the trend is made of and cells in them
    places : (spots, 2), (y, x) µm of these spots
    """

    mean: Array
    covariance: Array
    any_mean: Array
    any_covariance: Array
    residuals: Array
    counted: Array
    places: Array

    def trend(self, near: NDArray[np.int64]) -> Array:
        """Return the mean residual over the spots near each place, (places, measures), for (places, neighbours)."""
        count = np.maximum(self.counted[near].sum(axis=1), 1.0)
        return np.asarray(self.residuals[near].sum(axis=1) / count[:, None])

    def ratios(self, measures: Array) -> Array:
        """Return p(f | type) / p(f | any nucleus), (cells, types), of measures after the trend; 1 where unknown."""
        known = np.isfinite(measures).all(axis=1)
        base = _log_normal(measures[known], self.any_mean, self.any_covariance)
        ratios = np.ones((len(measures), len(self.mean)))
        for kind, (mean, covariance) in enumerate(zip(self.mean, self.covariance, strict=True)):
            log_ratio = np.minimum(_log_normal(measures[known], mean, covariance) - base, LARGEST_LOG_RATIO)
            ratios[known, kind] = MISMEASURED + (1 - MISMEASURED) * np.exp(log_ratio)
        return ratios


def nearest_spots(places: Array, points: Array) -> NDArray[np.int64]:
    """Return the `TREND_SPOTS` spots nearest to each point, (points, neighbours), fewer when there are fewer."""
    from scipy.spatial import cKDTree

    wanted = min(TREND_SPOTS, len(places))
    found = cKDTree(places).query(points, wanted)[1]
    return np.asarray(found, np.int64).reshape(len(points), wanted)


def learn_looks(sample: Sample, *, learnt_from: NDArray[np.bool_] | None = None) -> Looks:
    """Return what the nuclei of each type look like, by EM from the regression of measures on composition.

    Parameters
    ----------
    sample : the spots
    learnt_from : (spots,), spots whose cells are used; None: all
    """
    used = sample.known if learnt_from is None else sample.known & learnt_from[sample.spot]
    looks = _regressed(sample, used)
    for _ in range(ROUNDS):
        looks = _maximised(sample, used, looks)
    return looks


def look_posterior(sample: Sample, looks: Looks) -> Posterior:
    """Return the posterior of the labels given counts and measures, and the log evidence of the measures."""
    return spot_posteriors(sample.cache, _of_candidates(sample, looks.ratios(_flattened(sample, looks))))


def cell_field(looks: Looks, measures: Array, types: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the energy of each candidate of each cell by its nucleus alone, (cells, slots), in quanta.

    Parameters
    ----------
    looks : of the section's types
    measures : (cells, measures), standardised, less the trend; NaN where unknown: these cells have no field
    types : (cells, slots), candidates; unused slots, -1, get 0
    """
    energy = -np.log(np.take_along_axis(looks.ratios(measures), np.maximum(types, 0), axis=1))
    return np.where(types >= 0, np.rint(energy / QUANTUM), 0).astype(np.int64)


def _flattened(sample: Sample, looks: Looks) -> Array:
    """Return the measures less the trend, (cells, measures)."""
    return np.asarray(sample.measures - looks.trend(sample.near)[sample.spot])


def _of_candidates(sample: Sample, of_types: Array) -> Array:
    return np.asarray(np.take_along_axis(of_types, np.maximum(sample.types, 0), axis=1))


def _regressed(sample: Sample, used: NDArray[np.bool_]) -> Looks:
    """Return looks with the means of a ridge regression on the composition by counts, and one covariance."""
    measures, expected = sample.measures[used], _expected_types(sample)[used]
    any_mean = measures.mean(axis=0)
    centred = measures - any_mean
    gram = np.einsum("nk,nl->kl", expected, expected) + PRIOR_CELLS * np.eye(sample.n_types)
    mean = any_mean + np.linalg.solve(gram, np.einsum("nk,nd->kd", expected, centred))
    within = _covariance(measures - np.einsum("nk,kd->nd", expected, mean))
    no_trend = np.zeros((len(sample.places), measures.shape[1])), np.zeros(len(sample.places))
    every = np.repeat(within[None], sample.n_types, axis=0)
    return Looks(mean, every, any_mean, _covariance(centred), *no_trend, sample.places)


def _expected_types(sample: Sample) -> Array:
    """Return the posterior of each type from counts alone, (cells, types)."""
    expected = np.zeros((len(sample.types), sample.n_types))
    for types, shares in zip(sample.types.T, sample.from_counts.T, strict=True):
        rows = np.flatnonzero(types >= 0)
        expected[rows, types[rows]] = shares[rows]
    return expected


def _covariance(centred: Array) -> Array:
    ridge = RIDGE * np.eye(centred.shape[1])
    return np.asarray(np.einsum("nd,ne->de", centred, centred) / max(len(centred), 1) + ridge)


def _maximised(sample: Sample, used: NDArray[np.bool_], looks: Looks) -> Looks:
    """Return the looks after one round of EM: labels, then the trend, then the Gaussians."""
    ratios = _of_candidates(sample, looks.ratios(_flattened(sample, looks)))
    shares = spot_posteriors(sample.cache, ratios).shares
    expected = np.einsum("ns,nsd->nd", shares, looks.mean[sample.types])
    residuals, counted = _sums_by_spot(sample, np.where(used[:, None], sample.measures - expected, 0.0), used)
    flat = sample.measures - replace(looks, residuals=residuals, counted=counted).trend(sample.near)[sample.spot]
    flat = flat[used]
    any_mean = flat.mean(axis=0)
    centred = flat - any_mean
    rightly = (shares * (1.0 - MISMEASURED / ratios))[used]
    mean, covariance = _type_gaussians(_moments(centred, rightly, sample.types[used], sample.n_types))
    return Looks(mean + any_mean, covariance, any_mean, _covariance(centred), residuals, counted, sample.places)


def _sums_by_spot(sample: Sample, values: Array, used: NDArray[np.bool_]) -> tuple[Array, Array]:
    n_spots = len(sample.places)
    sums = [np.bincount(sample.spot, column, n_spots) for column in values.T]
    return np.stack(sums, axis=1), np.bincount(sample.spot[used], minlength=n_spots).astype(np.float64)


def _type_gaussians(moments: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    """Return mean and covariance of each type from its count, sum and sum of squares (normal-inverse-Wishart modes)."""
    count, first, second = moments
    mean = first / (count + PRIOR_CELLS)[:, None]
    # Σ (f − m)(f − m)ᵀ + κ m mᵀ = Σ f fᵀ − (n + κ) m mᵀ at this mean
    scatter = second - (count + PRIOR_CELLS)[:, None, None] * np.einsum("kd,ke->kde", mean, mean)
    within = scatter.sum(axis=0) / count.sum() + RIDGE * np.eye(first.shape[1])
    return mean, (PRIOR_FREEDOM * within + scatter) / (count + PRIOR_FREEDOM)[:, None, None]


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _moments(measures: Array, shares: Array, types: NDArray[np.int64], n_types: int) -> tuple[Array, Array, Array]:
    """Return Σ r, Σ r f and Σ r f fᵀ of each type, (types, …); unused candidates have no share."""
    n_measures = measures.shape[1]
    count, first = np.zeros(n_types), np.zeros((n_types, n_measures))
    second = np.zeros((n_types, n_measures, n_measures))
    for cell in range(len(measures)):
        for slot in range(types.shape[1]):
            kind, share = types[cell, slot], shares[cell, slot]
            if kind < 0:
                continue
            count[kind] += share
            for one in range(n_measures):
                first[kind, one] += share * measures[cell, one]
                for other in range(n_measures):
                    second[kind, one, other] += share * measures[cell, one] * measures[cell, other]
    return count, first, second


def _log_normal(points: Array, mean: Array, covariance: Array) -> Array:
    """Return the log density of a Gaussian at points, (points,), without its constant."""
    factor = np.linalg.cholesky(covariance)
    away = np.einsum("nd,ed->ne", points - mean, np.linalg.inv(factor))
    return np.asarray(-0.5 * np.einsum("nd,nd->n", away, away) - np.log(np.diag(factor)).sum())
