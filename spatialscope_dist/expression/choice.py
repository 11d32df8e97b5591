"""Which estimator to use: held-out reference cells are put together into spots like the section's, and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from spatialscope_dist.expression.allocation import SpotCells, exchangeable
from spatialscope_dist.expression.baselines import BASELINES
from spatialscope_dist.expression.estimators import candidates, estimate_all
from spatialscope_dist.expression.model import ExpressionModel
from spatialscope_dist.expression.noise import chain_keys
from spatialscope_dist.options import DecomposeOptions
from spatialscope_dist.randomness import generator, key_of

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Rehearsal:
    """Simulated spots and their cells' true expression, (cells, genes), reference counts."""

    spots: SpotCells
    truth: Float


@dataclass(frozen=True)
class Choice:
    """The estimator to use, why, and each candidate's mean cosine.

    `unique_cosines` are over cells whose type no other cell of their spot has: no matching is involved there,
    so methods that tell equal cells apart gain nothing from it (NaN when there are none).
    """

    estimator: str
    reason: str
    cosines: dict[str, float] = field(default_factory=dict)
    unique_cosines: dict[str, float] = field(default_factory=dict)
    n_cells: int = 0


def draw_cells(
    compositions: Sequence[NDArray[np.int64]], pool: NDArray[np.intp], types: NDArray[np.integer], *, seed: int
) -> list[NDArray[np.intp]]:
    """Return reference cells for each composition, drawn without replacement within a spot.

    Compositions that ask for more cells of a type than were held out are left out.

    Parameters
    ----------
    compositions
        per spot (cells,), index of each cell's type.
    pool
        row numbers of the held-out cells.
    types
        (reference cells,), index of the cell type.
    seed
        of the study.
    """
    by_type = {int(kind): pool[types[pool] == kind] for kind in np.unique(types[pool])}
    none = np.empty(0, np.intp)
    drawn = []
    for number, composition in enumerate(compositions):
        random = generator(seed, "draw_cells", number)
        kinds, wanted = np.unique(composition, return_counts=True)
        if all(len(by_type.get(int(kind), none)) >= n for kind, n in zip(kinds, wanted, strict=True)):
            parts = [random.choice(by_type[int(k)], n, replace=False) for k, n in zip(kinds, wanted, strict=True)]
            drawn.append(np.concatenate(parts))
    return drawn


def random_compositions(
    sizes: Sequence[int], pool: NDArray[np.intp], types: NDArray[np.integer], *, seed: int
) -> list[NDArray[np.int64]]:
    """Return compositions of the given sizes, types as frequent as among the held-out cells."""
    out = []
    for number, size in enumerate(sizes):
        random = generator(seed, "random_compositions", number)
        out.append(np.sort(types[random.choice(pool, min(size, len(pool)), replace=False)]).astype(np.int64))
    return out


def rehearse(
    cells: Float, types: NDArray[np.integer], *, n_cells: NDArray[np.integer], exposure: Float, seed: int
) -> Rehearsal:
    """Return simulated spots: the cells' counts added up and measured at the section's exposure.

    Parameters
    ----------
    cells
        (cells, genes), raw counts of held-out cells, spot after spot.
    types
        (cells,), index of the cell type.
    n_cells
        (spots,), cells of each spot.
    exposure
        (genes,), counts measured per reference count: the fractional part is a binomial draw.
    seed
        of the study.
    """
    first = np.r_[0, np.cumsum(n_cells)].astype(np.int64)
    totals = np.add.reduceat(np.rint(cells).astype(np.int64), first[:-1], axis=0)
    whole = np.floor(exposure)
    random = generator(seed, "rehearse")
    counts = totals * whole.astype(np.int64) + random.binomial(totals, np.clip(exposure - whole, 0, 1))
    keys = np.array([key_of("rehearse", number) for number in range(len(n_cells))], np.int64)
    spots = SpotCells(counts.astype(np.float32), first, types.astype(np.int64), chain_keys(seed, keys), exposure)
    return Rehearsal(spots, cells.astype(np.float32))


def cell_cosines(mean: Float, rehearsal: Rehearsal) -> NDArray[np.float64]:
    """Return the cosine of estimate and truth of every cell that counts, (`scored_cells`,).

    Cells of one spot and type carry no name, so within such a group estimates are matched to the truth first.
    Cells alone in their spot are scored only when no spot holds several, then on the genes not measured.
    """
    spots, several = rehearsal.spots, scored_cells(rehearsal.spots)
    hidden = spots.exposure == 0
    alone = spots.n_cells.max(initial=0) <= 1
    genes = hidden if hidden.any() and alone else np.ones(len(hidden), bool)
    guess, truth = _unit(mean[:, genes]), _unit(rehearsal.truth[:, genes])
    order = np.arange(len(guess))
    for group in exchangeable(spots):
        order[group] = group[linear_sum_assignment(-(truth[group] @ guess[group].T))[1]]
    cosines = (guess[order] * truth).sum(axis=1)
    return np.asarray(cosines[several])


def scored_cells(spots: SpotCells) -> NDArray[np.bool_]:
    """Return which cells are scored, (cells,): those that share their spot, all when none does."""
    several = spots.n_cells[spots.spot] > 1
    return several if several.any() else np.ones(len(several), bool)


def _unique_cells(spots: SpotCells) -> NDArray[np.bool_]:
    """Return which scored cells have a type no other cell of their spot has."""
    unique = np.ones(len(spots.types), bool)
    for group in exchangeable(spots):
        unique[group] = False
    return np.asarray(unique[scored_cells(spots)])


def _means(scores: Mapping[str, NDArray[np.float64]], chosen: NDArray[np.bool_]) -> dict[str, float]:
    return {name: float(score[chosen].mean()) if chosen.any() else float("nan") for name, score in scores.items()}


def _gain(scores: Mapping[str, NDArray[np.float64]], name: str, rival: str) -> tuple[float, float]:
    """Return the mean paired gain of one estimator over another and its standard error."""
    gain = scores[name] - scores[rival]
    error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
    return float(gain.mean()) if len(gain) else 0.0, float(error)


def choose(rehearsal: Rehearsal, model: ExpressionModel, options: DecomposeOptions) -> Choice:
    """Return the estimator to use: the best one on simulated spots, the simpler one where the gain is not sure.

    Candidates are taken from simple to costly: baselines, networks, blends. One takes the lead when its mean paired
    gain over the leader exceeds the gain's standard error, and it does not lose more than a standard error on the
    cells of unique type. The second test matters because matching equal cells to the truth rewards any estimator
    that tells them apart, right or wrong.
    """
    spots, names = rehearsal.spots, candidates(model)
    means = estimate_all(spots, model, options, names=names)
    scores = {name: cell_cosines(np.nan_to_num(mean), rehearsal) for name, mean in means.items()}
    unique = _unique_cells(spots)
    unique_scores = {name: score[unique] for name, score in scores.items()}
    cosines, unique_cosines = _means(scores, np.ones(len(unique), bool)), _means(scores, unique)
    best = leader = max(BASELINES, key=lambda name: cosines[name])
    for name in sorted(set(names) - set(BASELINES), key=lambda one: (one.count("+"), -cosines[one])):
        gain, error = _gain(scores, name, leader)
        unique_gain, unique_error = _gain(unique_scores, name, leader)
        if gain > error and unique_gain >= -unique_error:
            leader = name
    chosen = leader if options.estimator == "auto" else options.estimator
    gain, error = _gain(scores, leader, best)
    unique_gain, unique_error = _gain(unique_scores, leader, best)
    compared = (
        f"{leader} {cosines[leader]:.4f}, best baseline {best} {cosines[best]:.4f} (gain {gain:+.4f} ± {error:.4f}; "
        f"on cells of unique type {unique_gain:+.4f} ± {unique_error:.4f}; "
        f"mean cosines of {len(unique)} held-out cells, {int(unique.sum())} of unique type)"
    )
    if options.estimator != "auto":
        reason = f"set by decompose.estimator; {compared}"
    elif leader == best:
        reason = f"no network or blend beats it on simulated spots: {compared}"
    else:
        reason = f"best on simulated spots: {compared}"
    return Choice(chosen, reason, cosines, unique_cosines, len(unique))


def _unit(values: Float) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12))
