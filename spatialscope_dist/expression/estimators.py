"""Every way to estimate the cells of spots, by name: two networks, four baselines, and means of several."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.expression.allocation import Estimate, SpotCells, align_chains
from spatialscope_dist.expression.baselines import BASELINES, baseline_spread
from spatialscope_dist.expression.intervals import Spread, draw, quantiles
from spatialscope_dist.expression.memory_fit import within_memory
from spatialscope_dist.expression.model import ExpressionModel
from spatialscope_dist.expression.samplers import sample_score, score_posterior
from spatialscope_dist.expression.split_gibbs import counts_posterior, sample_counts
from spatialscope_dist.options import DecomposeOptions

Float = NDArray[np.float32]
_CELLS_PER_BATCH, _CELLS_WITH_SPREAD = 256, 64
_NETWORKS = {"counts": sample_counts, "score": sample_score}
_POSTERIORS = {"counts": counts_posterior, "score": score_posterior}
BLENDS = (
    "counts+shrinkage",
    "counts+proportional",
    "counts+score",
    "sized+counts+score",
)


def candidates(model: ExpressionModel) -> list[str]:
    """Return the names of all estimators this model allows, baselines first, blends last."""
    single = [*BASELINES, *(name for name in _NETWORKS if name in model.networks)]
    return [*single, *(name for name in BLENDS if set(name.split("+")) <= set(single))]


def estimate_spots(spots: SpotCells, model: ExpressionModel, options: DecomposeOptions, *, name: str) -> Estimate:
    """Return mean and sd of every cell by the estimator of that name; names joined by + are averaged."""
    parts = {part: _estimate(spots, model, options, part) for part in name.split("+")}
    return blend(parts, spots, name=name)


class Interval(NamedTuple):
    """Estimate of cells and quantiles of their counts, (levels, cells, genes), reference counts."""

    estimate: Estimate
    quantiles: Float


def estimate_with_quantiles(
    spots: SpotCells, model: ExpressionModel, options: DecomposeOptions, *, name: str
) -> Interval:
    """Return what `estimate_spots` returns and the quantiles of the options, of the pooled draws of its parts.

    One micro-batch of spots after the other: expectations of every chain are in memory for one of them only. Spots that
    do not fit in memory are NaN.
    """
    levels, shape = options.quantiles, (len(spots.types), spots.counts.shape[1])
    mean, sd = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    bounds = np.full((len(levels), *shape), np.nan, np.float32)
    work = functools.partial(_posterior, model=model, options=options, name=name)
    for cells, part, found in within_memory(spots.alike(_CELLS_WITH_SPREAD), work):
        if found is not None:
            (mean[cells], sd[cells]), spreads = found
            bounds[:, cells] = quantiles(spreads, part, levels=levels, n_draws=options.quantile_draws)
    return Interval(Estimate(mean, sd), bounds)


def draw_spots(
    spots: SpotCells, model: ExpressionModel, options: DecomposeOptions, *, name: str, n_draws: int
) -> Float:
    """Return draws of the cells' counts, (draws, cells, genes), `n_draws` of every part of the estimator."""
    parts = name.count("+") + 1
    out = np.empty((parts * n_draws, len(spots.types), spots.counts.shape[1]), np.float32)
    for cells, part in spots.alike(_CELLS_WITH_SPREAD):
        out[:, cells] = draw(_posterior(part, model, options, name=name)[1], part, n_draws=n_draws)
    return out


def _posterior(
    spots: SpotCells, model: ExpressionModel, options: DecomposeOptions, *, name: str
) -> tuple[Estimate, list[Spread]]:
    """Return the estimate of a micro-batch and what the draws of its parts are made of, cells lined up."""
    estimates, spreads = {}, {}
    for part in name.split("+"):
        if part in _POSTERIORS:
            estimates[part], spreads[part] = _POSTERIORS[part](spots, model, options)
        else:
            estimates[part] = _estimate(spots, model, options, part)
            spreads[part] = baseline_spread(spots, model.profiles, name=part)
    order = align_chains(np.stack([estimate.mean for estimate in estimates.values()]), spots)
    lined_up = [
        spread._replace(order=spread.order[:, rows]) for spread, rows in zip(spreads.values(), order, strict=True)
    ]
    return blend(estimates, spots, name=name), lined_up


def estimate_all(
    spots: SpotCells, model: ExpressionModel, options: DecomposeOptions, *, names: Sequence[str]
) -> dict[str, Float]:
    """Return the means, (cells, genes), of several estimators; parts that blends share are computed once."""
    single = sorted({part for name in names for part in name.split("+")})
    parts = {part: _estimate(spots, model, options, part) for part in single}
    return {name: blend(parts, spots, name=name).mean for name in names}


def blend(parts: Mapping[str, Estimate], spots: SpotCells, *, name: str) -> Estimate:
    """Return the mean of the estimates `name` lists, and the sd of their mixture.

    Cells of one spot and type carry no name, so they are lined up with the first estimate's before averaging.
    """
    chosen = [parts[part] for part in name.split("+")]
    if len(chosen) == 1:
        return chosen[0]
    means = np.stack([estimate.mean for estimate in chosen])
    order = align_chains(means, spots)[:, :, None]
    means = np.take_along_axis(means, order, axis=1)
    variances = np.take_along_axis(np.stack([estimate.sd for estimate in chosen]), order, axis=1) ** 2
    return Estimate(means.mean(axis=0), np.sqrt(variances.mean(axis=0) + means.var(axis=0)))


def _estimate(spots: SpotCells, model: ExpressionModel, options: DecomposeOptions, name: str) -> Estimate:
    if name in _NETWORKS:
        return _NETWORKS[name](spots, model, options)
    mean = np.empty((len(spots.types), spots.counts.shape[1]), np.float32)
    sd = np.empty_like(mean)
    for cells, part in spots.batches(_CELLS_PER_BATCH):
        mean[cells], sd[cells] = BASELINES[name](part, model.profiles)
    return Estimate(mean, sd)
