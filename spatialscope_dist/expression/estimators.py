"""Every way to estimate the cells of spots, by name: two networks, four baselines, and means of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.expression.allocation import Estimate, SpotCells, align_chains
from spatialscope_dist.expression.baselines import BASELINES
from spatialscope_dist.expression.model import ExpressionModel
from spatialscope_dist.expression.samplers import sample_score
from spatialscope_dist.expression.split_gibbs import sample_counts
from spatialscope_dist.options import DecomposeOptions

Float = NDArray[np.float32]
_CELLS_PER_BATCH = 256
_NETWORKS = {"counts": sample_counts, "score": sample_score}
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
