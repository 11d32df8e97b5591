"""How well a trained network generates cells, as numbers: cells drawn from it beside held-out cells.

Cells are drawn by thickening, the reverse of thinning: starting from no counts, at rising shares alpha of a cell's
counts, the rest is drawn from the denoiser's negative binomial and a part of it is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from spatialscope_dist.expression.count_denoiser import predict, tell, type_tables
from spatialscope_dist.expression.model import ExpressionModel
from spatialscope_dist.randomness import generator

Float = NDArray[np.float32]
_STEPS = 12
_ROWS = 256
_LEAST_LEVEL = 0.02  # smallest share of counts seen in training
_CORRELATED_GENES = 100
_RIDGE = 0.1
_FEWEST_CELLS = 5  # of a type, for its moments to count


@dataclass(frozen=True)
class Quality:
    """Generated against held-out cells; `floor_` numbers compare as many training cells with the same held-out cells.

    Attributes
    ----------
    mean_error, sd_error
        Σ|difference| / Σ value of per-type means and standard deviations of log(count + 1).
    correlation_error
        mean absolute difference of gene-gene correlations of log(count + 1), most expressed genes.
    auc
        of a linear classifier that tells the two apart, on cells it was not fitted to; 0.5 is chance.
    """

    n_cells: int
    mean_error: float
    sd_error: float
    correlation_error: float
    auc: float
    floor_mean_error: float
    floor_sd_error: float
    floor_correlation_error: float
    floor_auc: float


def generate_cells(model: ExpressionModel, types: NDArray[np.int64], *, seed: int) -> Float:
    """Return one drawn cell per type given, (cells, genes), reference counts, by the count denoiser."""
    parts = [
        _thicken(model, types[low : low + _ROWS], generator(seed, "generate_cells", low))
        for low in range(0, len(types), _ROWS)
    ]
    return np.concatenate(parts) if parts else np.empty((0, len(model.genes)), np.float32)


def _thicken(model: ExpressionModel, types: NDArray[np.int64], random: np.random.Generator) -> Float:
    import torch

    parameters, tables = model.networks["counts"].on(None), type_tables(model.profiles)
    kinds, rows = torch.from_numpy(types), len(types)
    visible = torch.ones(rows, len(model.genes))
    counts = np.zeros((rows, len(model.genes)), np.float32)
    levels = np.r_[0.0, np.geomspace(_LEAST_LEVEL, 1.0, _STEPS)]
    for level, following in zip(levels[:-1], levels[1:], strict=True):
        shown = torch.full((rows, 1), max(float(level), _LEAST_LEVEL))
        with torch.inference_mode():
            none_wrong = torch.zeros(rows, 1)
            told = tell(parameters, tables, types=kinds, level=shown, visible=visible, label_errors=none_wrong)
            seen = torch.from_numpy(counts)
            rates = predict(parameters, seen.log1p(), seen.sum(dim=1, keepdim=True), told)
            mean, shape = rates.log_rate.exp().numpy(), rates.log_shape.exp().numpy()
        rest = random.poisson((1 - level) * mean * random.gamma(shape) / shape)
        counts += random.binomial(rest, (following - level) / (1 - level)).astype(np.float32)
    return counts


def measure_quality(
    held_out: Float, held_out_types: NDArray[np.int64], *, generated: Float, training: Float, seed: int
) -> Quality:
    """Return how generated cells, and as many training cells, differ from held-out cells.

    Parameters
    ----------
    held_out, generated, training
        (cells, genes), raw counts, row by row of the same types.
    held_out_types
        (cells,), index of the cell type.
    seed
        of the study.
    """
    truth = np.log1p(held_out)
    of_generated = _differences(np.log1p(generated), truth, held_out_types, seed=seed)
    of_training = _differences(np.log1p(training), truth, held_out_types, seed=seed)
    return Quality(len(held_out), *of_generated, *of_training)


def _differences(logs: Float, truth: Float, types: NDArray[np.int64], *, seed: int) -> tuple[float, ...]:
    means = [_of_types(np.mean, part, types) for part in (logs, truth)]
    sds = [_of_types(np.std, part, types) for part in (logs, truth)]
    genes = np.argsort(-truth.mean(axis=0), kind="stable")[:_CORRELATED_GENES]
    genes = genes[(logs[:, genes].std(axis=0) > 0) & (truth[:, genes].std(axis=0) > 0)]
    correlations = [np.corrcoef(part[:, genes], rowvar=False) for part in (logs, truth)]
    of_genes = float(np.abs(correlations[0] - correlations[1]).mean()) if len(genes) > 1 else 0.0
    return _relative(*means), _relative(*sds), of_genes, two_sample_auc(logs, truth, seed=seed)


def _of_types(statistic: Callable[..., Any], logs: Float, types: NDArray[np.int64]) -> NDArray[np.float64]:
    kinds = [kind for kind, count in zip(*np.unique(types, return_counts=True), strict=True) if count >= _FEWEST_CELLS]
    return np.array([statistic(logs[types == kind], axis=0) for kind in kinds or [types[0]]], np.float64)


def _relative(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    return float(np.abs(found - expected).sum() / max(expected.sum(), 1e-12))


def two_sample_auc(one: Float, other: Float, *, seed: int) -> float:
    """Return how well a ridged linear discriminant tells two sets of rows apart; fitted to half, tried on the rest.

    Parameters
    ----------
    one, other
        (rows, features), as many rows each.
    seed
        of the halves.
    """
    order = generator(seed, "two_sample_auc").permutation(len(one))
    fitted, tried = order[: len(order) // 2], order[len(order) // 2 :]
    values = np.concatenate([one, other]).astype(np.float64)
    one, other = (part - values.mean(axis=0) for part in (one, other))
    one, other = (part / np.maximum(values.std(axis=0), 1e-6) for part in (one, other))
    spread = (np.cov(one[fitted], rowvar=False) + np.cov(other[fitted], rowvar=False)) / 2
    direction = np.linalg.solve(
        spread + _RIDGE * np.eye(len(spread)), one[fitted].mean(axis=0) - other[fitted].mean(axis=0)
    )
    scores = np.concatenate([one[tried] @ direction, other[tried] @ direction])
    ranks = rankdata(scores)[: len(tried)]
    return float((ranks.sum() - len(tried) * (len(tried) + 1) / 2) / len(tried) ** 2)
