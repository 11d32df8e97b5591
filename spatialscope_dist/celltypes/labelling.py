"""The labels that are handed out: maximum a posteriori, positional, composition; and how sure they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from spatialscope_dist.celltypes.multisets import round_to_total

# Marginals know nothing of types outside a spot's candidates (true of 5-18 % of the cells) nor of wrong signatures:
# their mean exceeded the accuracy by 4 to 15 % in five benchmarks.
_MODEL_SHARE = 0.92


@dataclass(frozen=True)
class Labelling:
    """Labels from the marginals of a run of consecutive spots.

    Attributes
    ----------
    positional : (cells,), most probable type of each cell
    composition : (cells,), types whose counts match the spot's expected composition
    probability : (cells, slots), posterior of each candidate
    proportions : (spots, types), expected share of each type; 0 for spots without cells
    """

    positional: NDArray[np.int16]
    composition: NDArray[np.int16]
    probability: NDArray[np.float64]
    proportions: NDArray[np.float64]


def label_cells(
    seen: NDArray[np.uint32], candidates: NDArray[np.int16], cell_start: NDArray[np.int64], *, n_types: int
) -> Labelling:
    """Return positional and composition labels, posteriors and proportions.

    positional: argmax of the marginals, ties to the lower type. composition: the posterior-mean
    composition of the spot rounded by largest remainder, then the assignment of its cells to these
    labels with the largest sum of marginals.

    Parameters
    ----------
    seen : (cells, slots), how much the kept Gibbs sweeps saw of each candidate, in any unit
    candidates : (cells, slots), types, ascending; -1 in unused slots
    cell_start : (spots + 1,), where each spot's cells begin
    n_types : number of types
    """
    probability = seen / np.maximum(seen.sum(axis=1, keepdims=True), 1)
    cells = np.arange(len(seen))
    positional = candidates[cells, probability.argmax(axis=1)] if len(seen) else np.zeros(0, np.int16)
    composition = positional.copy()
    proportions = np.zeros((len(cell_start) - 1, n_types))
    for spot, (begin, end) in enumerate(zip(cell_start[:-1], cell_start[1:], strict=True)):
        if begin == end:
            continue
        used = int((candidates[begin] >= 0).sum())
        types, of_cell = candidates[begin, :used], probability[begin:end, :used]
        proportions[spot, types] = of_cell.mean(axis=0)
        if end - begin > 1:
            composition[begin:end] = types[_assign(of_cell)]
    return Labelling(positional, composition, probability, proportions)


def _assign(probability: NDArray[np.float64]) -> NDArray[np.int64]:
    counts = round_to_total(probability.sum(axis=0), len(probability))
    slots = np.repeat(np.arange(len(counts)), counts)
    if slots[0] == slots[-1]:
        return slots
    _, columns = linear_sum_assignment(-probability[:, slots])
    return slots[columns]


def confidence(
    labels: NDArray[np.int16], probability: NDArray[np.float64], candidates: NDArray[np.int16]
) -> NDArray[np.float64]:
    """Return how probable each cell's label is, (cells,): its posterior, less what no model of ours accounts for."""
    chosen: NDArray[np.float64] = (probability * (candidates == labels[:, None])).sum(axis=1)
    return _MODEL_SHARE * chosen


def blend_proportions(
    of_cells: NDArray[np.float64], weights: NDArray[np.float64], rna_per_cell: NDArray[np.float64], *, share: float
) -> NDArray[np.float64]:
    """Return expected shares of the types mixed with RCTD's weights, (spots, types).

    Labels count whole cells, weights any amount of RNA: their errors differ, and half of each beats
    both in every benchmark. RNA turns into cells by w_k / s_k.

    Parameters
    ----------
    of_cells : (spots, types), expected shares of the cells; rows of zeros stay
    weights : (spots, types), RCTD weights; rows that are NaN leave the cells' shares
    rna_per_cell : (types,), s
    share : of the weights in the mixture
    """
    cells = weights / rna_per_cell
    total = cells.sum(axis=1, keepdims=True)
    usable = np.isfinite(total) & (total > 0) & (of_cells.sum(axis=1, keepdims=True) > 0)
    of_weights = np.where(usable, cells, of_cells) / np.where(usable, total, 1.0)
    return np.asarray((1.0 - share) * of_cells + share * of_weights)
