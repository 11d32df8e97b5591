"""Spots and their cells: what was measured, shared out among the cells, and how sure the shares are.

A spot's measured count of a gene is the sum over its cells; given the expected expression of every cell the
split is multinomial (captured part), and what was not captured is expected expression times (1 - exposure).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Float = NDArray[np.float32]


class Estimate(NamedTuple):
    """Expression of cells: `mean` and `sd`, each (cells, genes), reference counts."""

    mean: Float
    sd: Float


@dataclass(frozen=True)
class SpotCells:
    """Consecutive spots and their cells, cells ordered by (spot, rank).

    Attributes
    ----------
    counts
        (spots, genes), raw counts.
    first
        (spots + 1,), the cells of spot i are first[i]:first[i + 1].
    types
        (cells,), index of the cell type.
    keys
        (spots,), randomness key of the spot (`noise.chain_keys`).
    exposure
        (genes,), counts measured per reference count; 0 for genes not measured.
    """

    counts: Float
    first: NDArray[np.int64]
    types: NDArray[np.int64]
    keys: NDArray[np.int64]
    exposure: Float

    @property
    def n_cells(self) -> NDArray[np.int64]:
        """(spots,), cells of each spot."""
        return np.diff(self.first)

    @property
    def spot(self) -> NDArray[np.int64]:
        """(cells,), spot of each cell."""
        return np.repeat(np.arange(len(self.counts)), self.n_cells)

    @property
    def rank(self) -> NDArray[np.int64]:
        """(cells,), rank of each cell in its spot."""
        return np.asarray(np.arange(len(self.types)) - self.first[self.spot])

    @property
    def measured(self) -> Float:
        """(spots, genes), raw counts; 0 for genes not measured."""
        return np.where(self.exposure > 0, self.counts, 0).astype(np.float32)

    def part(self, low: int, high: int) -> SpotCells:
        """Return spots low:high and their cells."""
        start, stop = self.first[low], self.first[high]
        first = self.first[low : high + 1] - start
        return replace(
            self, counts=self.counts[low:high], first=first, types=self.types[start:stop], keys=self.keys[low:high]
        )

    def select(self, rows: NDArray[np.intp]) -> tuple[SpotCells, NDArray[np.intp]]:
        """Return the spots of these rows, ascending, and which cells are theirs."""
        n_cells = self.n_cells[rows]
        first = np.r_[0, np.cumsum(n_cells)].astype(np.int64)
        cells = np.repeat(self.first[rows] - first[:-1], n_cells) + np.arange(first[-1])
        chosen = replace(self, counts=self.counts[rows], first=first, types=self.types[cells], keys=self.keys[rows])
        return chosen, cells

    def batches(self, max_cells: int) -> Iterator[tuple[slice, SpotCells]]:
        """Yield (cells, spots) of runs of whole spots with at most `max_cells` cells, or one spot with more."""
        low = 0
        while low < len(self.counts):
            high = int(np.searchsorted(self.first, self.first[low] + max_cells, side="right")) - 1
            high = max(high, low + 1)
            yield slice(int(self.first[low]), int(self.first[high])), self.part(low, high)
            low = high

    def alike(self, max_cells: int) -> Iterator[tuple[NDArray[np.intp], SpotCells]]:
        """Yield (cells, spots) of micro-batches as `batches`: spots with one cell apart from those with several."""
        for those in (self.n_cells == 1, self.n_cells > 1):
            chosen, cells = self.select(np.flatnonzero(those))
            for rows, part in chosen.batches(max_cells):
                yield cells[rows], part


def sum_cells(values: Any, spots: SpotCells) -> Any:
    """Return the sum over each spot's cells, (…, spots, genes); cells are added in order of rank.

    Every spot is added up by itself and always in the same order, so the sum has the same bits whatever other
    spots stand beside it. `values`, (…, cells or more, genes), may be a NumPy array or a torch tensor.
    """
    shape = (*values.shape[:-2], len(spots.counts), values.shape[-1])
    on_numpy, n_cells = isinstance(values, np.ndarray), spots.n_cells
    total = np.zeros(shape, values.dtype) if on_numpy else values.new_zeros(shape)
    for rank in range(int(n_cells.max(initial=0))):
        those = np.flatnonzero(n_cells > rank)
        cells = spots.first[those] + rank
        if on_numpy:
            total[..., those, :] += values[..., cells, :]
        else:
            total[..., _like(those, values), :] += values[..., _like(cells, values), :]
    return total


def _like(index: NDArray[np.int64], tensor: Any) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(index)).to(tensor.device)


def shares(rates: Float, spots: SpotCells) -> Float:
    """Return the share of each cell in its spot, (cells, genes), in proportion to `rates`, (cells, genes) ≥ 0."""
    floor = rates + np.float32(1e-9)
    return np.asarray(floor / sum_cells(floor, spots)[spots.spot], np.float32)


def missing(exposure: Float) -> Float:
    """Return the share of each gene's reference counts that was not captured, (genes,), from its exposure."""
    return np.asarray(np.maximum(1.0 - exposure, 0.0), np.float32)


def fill_in(rates: Float, share: Float, spots: SpotCells) -> Estimate:
    """Return the estimate given expected expression: measured counts by share, and the part not captured.

    The sd is that of the integer draws the model stands for: a multinomial split of the measured counts and
    Poisson counts of what was not captured (the sd of the means themselves would be far too small).

    Parameters
    ----------
    rates
        (cells, genes), expected reference counts.
    share
        (cells, genes), share of each cell in its spot's measured count (`shares`).
    spots
        what was measured.
    """
    measured = spots.measured[spots.spot]
    per_count = np.maximum(spots.exposure, 1.0).astype(np.float32)
    unseen = missing(spots.exposure) * rates
    mean = measured * share / per_count + unseen
    variance = measured * share * (1 - share) / per_count**2 + unseen
    return Estimate(mean.astype(np.float32), np.sqrt(variance).astype(np.float32))


def align_chains(means: Float, spots: SpotCells) -> NDArray[np.int64]:
    """Return the order of cells in each chain, (chains, cells), that lines up exchangeable cells.

    Cells of one spot and type carry no name; within each such group every chain is matched to chain 0 by the
    assignment with the largest sum of cosines, and once more to the mean of the chains so lined up.

    Parameters
    ----------
    means
        (chains, cells, genes), reference counts.
    spots
        of these cells.
    """
    order = np.tile(np.arange(means.shape[1]), (len(means), 1))
    chains = np.arange(len(means))[:, None]
    for group in exchangeable(spots):
        mine = means[:, group]  # (chains, cells of the group, genes)
        if np.isfinite(mine).all():
            places = _places(mine, mine[0])
            places = _places(mine, mine[chains, places].mean(axis=0))
            order[:, group] = group[places]
    return order


def _places(cells: Float, target: Float) -> NDArray[np.intp]:
    """Return which cell of each chain, (chains, cells), belongs to each cell of the target, (cells, genes)."""
    mine, wanted = (
        values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12) for values in (cells, target)
    )
    return np.array([linear_sum_assignment(-(wanted @ chain.T))[1] for chain in mine])


def exchangeable(spots: SpotCells) -> list[NDArray[np.int64]]:
    """Return the groups of two or more cells that share spot and type."""
    by_type = np.lexsort((np.arange(len(spots.types)), spots.types, spots.spot))
    spot, kind = spots.spot[by_type], spots.types[by_type]
    edges = np.flatnonzero(np.r_[True, (spot[1:] != spot[:-1]) | (kind[1:] != kind[:-1]), True])
    return [by_type[low:high] for low, high in zip(edges[:-1], edges[1:], strict=True) if high - low > 1]


def combine_chains(means: Float, variances: Float, order: NDArray[np.int64]) -> Estimate:
    """Return mean and sd over posterior chains, exchangeable cells lined up.

    The variance is that between the chains plus the mean variance within them (law of total variance).

    Parameters
    ----------
    means, variances
        (chains, cells, genes), reference counts (squared).
    order
        (chains, cells), of `align_chains`.
    """
    means, variances = (np.take_along_axis(part, order[:, :, None], axis=1) for part in (means, variances))
    between = means.var(axis=0, ddof=1) if len(means) > 1 else np.float32(0)
    return Estimate(means.mean(axis=0), np.sqrt(between + variances.mean(axis=0)).astype(np.float32))


def residuals(estimate: Float, spots: SpotCells) -> NDArray[np.float64]:
    """Return each spot's reconciliation residual, (spots,): Σ|measured - predicted| / Σ measured counts.

    The prediction is exposure times the summed estimate of the cells, over measured genes; spots without
    measured counts or cells give NaN.
    """
    predicted = sum_cells(estimate.astype(np.float64), spots) * spots.exposure
    seen = spots.exposure > 0
    total = spots.counts[:, seen].sum(axis=1, dtype=np.float64)
    gap = np.abs(spots.counts[:, seen] - predicted[:, seen]).sum(axis=1)
    usable = (total > 0) & (spots.n_cells > 0)
    return np.where(usable, gap / np.where(usable, total, 1.0), np.nan)
