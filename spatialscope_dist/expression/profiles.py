"""What the reference says about each cell type: mean profiles and how cells differ from them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from spatialscope_dist.randomness import generator

Array = NDArray[np.float32]
_BLOCK = 4096


class CellRows(Protocol):
    """Raw counts of cells, in memory or on disk."""

    @property
    def shape(self) -> tuple[int, int]:
        """(cells, genes)."""

    def __getitem__(self, rows: Any) -> sp.csr_matrix:
        """Return rows, (rows, genes), raw counts."""


@dataclass(frozen=True)
class ReferenceProfiles:
    """Statistics of the reference per cell type, raw counts.

    Attributes
    ----------
    mean_log
        (types, genes), mu_k of eq. (7): mean of log(count + 1).
    mean_counts
        (types, genes), mean raw counts of a cell.
    dispersion
        (types, genes), shape of the Gamma distribution of a gene's expression around size times mean.
    size_shape
        (types,), shape of the Gamma distribution (mean 1) of the cells' sizes.
    ceiling
        (genes,), largest log(count + 1) a sampler may reach: one above the largest seen.
    scale
        (1,), sd of log(count + 1) - mu_k over all cells and genes.
    """

    mean_log: Array
    mean_counts: Array
    dispersion: Array
    size_shape: Array
    ceiling: Array
    scale: Array

    def arrays(self) -> dict[str, Array]:
        """Return the arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def split_cells(types: NDArray[np.integer], *, share: float, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return row numbers of training and held-out cells; every type keeps at least two training cells.

    Parameters
    ----------
    types
        (cells,), index of the cell type.
    share
        share of each type's cells to hold out.
    seed
        of the study.
    """
    out = []
    for kind in np.unique(types):
        rows = np.flatnonzero(types == kind)
        n_out = max(0, min(round(share * len(rows)), len(rows) - 2))
        out.append(generator(seed, "held_out", int(kind)).permutation(rows)[:n_out])
    held_out = np.sort(np.concatenate(out)) if out else np.empty(0, np.intp)
    kept = np.ones(len(types), bool)
    kept[held_out] = False
    return np.flatnonzero(kept), held_out


def reference_profiles(
    counts: CellRows,
    types: NDArray[np.integer],
    *,
    n_types: int,
    rows: NDArray[np.intp] | None = None,
    prior_cells: float = 1.0,
) -> ReferenceProfiles:
    """Return the statistics of every type; means are shrunk by `prior_cells` cells to the overall mean.

    Parameters
    ----------
    counts
        (cells, genes), raw counts.
    types
        (cells,), index of the cell type.
    n_types
        number of types; one without cells gets the overall mean.
    rows
        rows to use; None: all.
    prior_cells
        weight of the overall mean, in cells.
    """
    rows = np.arange(len(types)) if rows is None else rows
    sums = _type_sums(counts, types, rows, n_types=n_types)
    n_cells = np.bincount(types[rows], minlength=n_types).astype(np.float64)[:, None]  # (types, 1)

    def shrunk(total: NDArray[np.float64]) -> NDArray[np.float64]:
        overall = total.sum(axis=0) / max(len(rows), 1)
        return np.asarray((total + prior_cells * overall) / (n_cells + prior_cells))

    mean_log, mean_counts = shrunk(sums.logs), shrunk(sums.counts) + 1e-4
    squares = sums.log_squares + (n_cells * mean_log**2 - 2 * sums.logs * mean_log).sum()
    scale = np.sqrt(max(squares / max(len(rows) * counts.shape[1], 1), 1e-6))
    size_shape = _size_shapes(sums.totals, types[rows], n_types=n_types)
    dispersion = _dispersions(sums.counts, sums.squares, n_cells, size_shape=size_shape[:, None])
    values = (mean_log, mean_counts, dispersion, size_shape, sums.largest + 1.0, np.array([scale]))
    return ReferenceProfiles(*(np.asarray(value, np.float32) for value in values))


@dataclass
class _Sums:
    """Sums over the cells of each type, (types, genes); `totals` per cell, `largest` log1p per gene."""

    counts: NDArray[np.float64]
    squares: NDArray[np.float64]
    logs: NDArray[np.float64]
    largest: NDArray[np.float64]
    totals: NDArray[np.float64]
    log_squares: float = 0.0


def _type_sums(counts: CellRows, types: NDArray[np.integer], rows: NDArray[np.intp], *, n_types: int) -> _Sums:
    # By blocks of cells: floating-point copies of the whole reference would take several times its size.
    shape = (n_types, counts.shape[1])
    sums = _Sums(np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape[1]), np.zeros(len(rows)))
    for low in range(0, len(rows), _BLOCK):
        part = rows[low : low + _BLOCK]
        x = sp.csr_matrix(counts[part], dtype=np.float64)
        logs = x.log1p()
        members = sp.csr_matrix((np.ones(len(part)), (types[part], np.arange(len(part)))), shape=(n_types, len(part)))
        sums.counts += (members @ x).toarray()
        sums.squares += (members @ x.multiply(x)).toarray()
        sums.logs += (members @ logs).toarray()
        sums.log_squares += float((logs.data**2).sum())
        sums.largest = np.maximum(sums.largest, np.asarray(logs.max(axis=0).todense(), np.float64).ravel())
        sums.totals[low : low + len(part)] = np.asarray(x.sum(axis=1), np.float64).ravel()
    return sums


def _size_shapes(totals: NDArray[np.float64], types: NDArray[np.integer], *, n_types: int) -> NDArray[np.float64]:
    # Moments: variance of the totals = mean + mean² / shape; five cells' weight of the pooled value.
    over, squared = np.zeros(n_types), np.zeros(n_types)
    for kind in range(n_types):
        mine = totals[types == kind]
        if len(mine) > 1:
            over[kind] = max(mine.var() - mine.mean(), 0.0) * len(mine)
            squared[kind] = mine.mean() ** 2 * len(mine)
    pooled = over.sum() / max(squared.sum(), 1e-12)
    weight = 5.0 * squared.sum() / max(np.bincount(types, minlength=n_types).sum(), 1)
    relative = (over + weight * pooled) / np.maximum(squared + weight, 1e-12)
    return np.asarray(1.0 / np.clip(relative, 0.01, 4.0))


def _dispersions(
    sums: NDArray[np.float64],
    squares: NDArray[np.float64],
    n_cells: NDArray[np.float64],
    *,
    size_shape: NDArray[np.float64],
    weight: float = 5.0,
) -> NDArray[np.float64]:
    # E[x² - x] = mean² (1 + 1/size_shape)(1 + 1/dispersion); few counts are shrunk to the gene, then to all genes.
    seen = np.maximum(squares - sums, 0.0)
    expected = sums**2 / np.maximum(n_cells, 1.0) * (1.0 + 1.0 / size_shape)
    overall = seen.sum() / max(expected.sum(), 1e-12)
    of_gene = (seen.sum(axis=0) + weight * overall) / (expected.sum(axis=0) + weight)
    ratio = (seen + weight * of_gene) / (expected + weight)
    return np.asarray(1.0 / np.clip(ratio - 1.0, 0.02, 10.0))
