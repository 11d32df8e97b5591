"""Signatures of cell types and the gene lists chosen from them (RCTD, Cable et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.errors import Problem

_LOG_FLOOR = 1e-9  # RCTD adds it before taking logarithms of means
_MIN_CELLS = 2


@dataclass(frozen=True)
class Signatures:
    """What one pass over the reference leaves: mean profiles and gene moments.

    Attributes
    ----------
    profiles : (types, genes), mean over the cells of a type of x_cg / n_c
    n_cells : (types,), cells with at least one count
    umi : (types,), raw counts behind each profile
    gene_totals : (genes,), raw counts of each gene over all cells
    square_means : (genes,), mean over all cells of (x_cg / n_c)²
    inverse_depth : mean over all cells of 1 / n_c
    """

    profiles: NDArray[np.float64]
    n_cells: NDArray[np.int64]
    umi: NDArray[np.int64]
    gene_totals: NDArray[np.int64]
    square_means: NDArray[np.float64]
    inverse_depth: float

    def gene_means(self) -> NDArray[np.float64]:
        """Return the mean over all cells of x_cg / n_c, (genes,)."""
        total = max(int(self.n_cells.sum()), 1)
        mean: NDArray[np.float64] = (self.n_cells[:, None] * self.profiles).sum(axis=0) / total
        return mean


@dataclass(frozen=True)
class GeneLists:
    """Gene indices (ascending) of RCTD's two lists; the second is used to fit spots."""

    platform: NDArray[np.int64]
    regression: NDArray[np.int64]


def type_signatures(counts_blocks: Iterable[Any], labels: NDArray[np.int64], n_types: int) -> Signatures:
    """Return the signatures of all types from one pass over blocks of reference cells.

    Sums run cell by cell in row order, so the result does not depend on the block boundaries.

    Parameters
    ----------
    counts_blocks : CSR matrices (cells, genes), raw counts; their rows together are all cells
    labels : (cells,), type index of each cell; -1 leaves the cell out
    n_types : number of types

    Raises
    ------
    ValueError : when labels and rows differ in number, or there is no block

    Notes
    -----
    μ_kg = mean over cells of type k of x_cg / n_c (RCTD; SpatialScope, Methods).
    """
    sums = _Sums(n_types)
    start = 0
    for block in counts_blocks:
        stop = start + block.shape[0]
        if stop <= len(labels):
            sums.add(block.tocsr(), labels[start:stop])
        start = stop
    if start != len(labels):
        message = f"found {start} reference cells and {len(labels)} labels; expected one label per cell"
        raise ValueError(message)
    return sums.signatures()


class _Sums:
    """Running sums over reference cells, flat so that adding is sequential."""

    def __init__(self, n_types: int) -> None:
        self.n_types = n_types
        self.cells = np.zeros(n_types, np.int64)
        self.umi = np.zeros(n_types, np.int64)
        self.inverse = 0.0
        self.profiles: NDArray[np.float64] | None = None

    def add(self, block: Any, labels: NDArray[np.int64]) -> None:
        n_genes = block.shape[1]
        if self.profiles is None:
            self.profiles = np.zeros(self.n_types * n_genes)
            self.totals = np.zeros(n_genes, np.int64)
            self.squares = np.zeros(n_genes)
        rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
        depth = np.zeros(block.shape[0], np.int64)
        np.add.at(depth, rows, np.rint(block.data).astype(np.int64))
        used = (labels >= 0) & (depth > 0)
        keep = used[rows]
        rows, genes, data = rows[keep], block.indices[keep].astype(np.int64), block.data[keep]
        share = data / depth[rows]
        np.add.at(self.profiles, labels[rows] * n_genes + genes, share)
        np.add.at(self.squares, genes, share * share)
        np.add.at(self.totals, genes, np.rint(data).astype(np.int64))
        np.add.at(self.cells, labels[used], 1)
        np.add.at(self.umi, labels[used], depth[used])
        for value in (1.0 / depth[used]).tolist():
            self.inverse += value

    def signatures(self) -> Signatures:
        if self.profiles is None:
            message = "found no block of reference cells; expected at least one"
            raise ValueError(message)
        n_cells = max(int(self.cells.sum()), 1)
        profiles = self.profiles.reshape(self.n_types, -1) / np.maximum(self.cells, 1)[:, None]
        return Signatures(
            profiles=profiles,
            n_cells=self.cells,
            umi=self.umi,
            gene_totals=self.totals,
            square_means=self.squares / n_cells,
            inverse_depth=self.inverse / n_cells,
        )


def shrink(profiles: NDArray[np.float64], umi: NDArray[np.int64], *, shrinkage_umi: float) -> NDArray[np.float64]:
    """Return signatures mixed with `shrinkage_umi` counts of the mean profile, (types, genes).

    μ_k ← (U_k μ_k + c μ̄) / (U_k + c), U_k the raw counts behind type k:
    zeros of a thin reference no longer cost many nats once labels are hard.
    """
    mean = profiles.mean(axis=0)
    weight = np.asarray(umi, np.float64)[:, None]
    mixed: NDArray[np.float64] = (weight * profiles + shrinkage_umi * mean) / np.maximum(weight + shrinkage_umi, 1e-300)
    return mixed


def log_fold_changes(profiles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(μ_k) − log(mean of the other types), (types, genes), natural logarithm (RCTD)."""
    n_types = len(profiles)
    others = (profiles.sum(axis=0) - profiles) / max(n_types - 1, 1)
    change: NDArray[np.float64] = np.log(profiles + _LOG_FLOOR) - np.log(np.maximum(others, 0.0) + _LOG_FLOOR)
    return change


def is_mitochondrial(gene: str) -> bool:
    """Return whether a gene symbol names a mitochondrial transcript, human (MT-) or mouse (mt-)."""
    return gene[:3].lower() == "mt-"


def gene_lists(
    profiles: NDArray[np.float64],
    genes: Sequence[str],
    spot_totals: NDArray[np.int64],
    *,
    min_counts: int = 3,
    fold: tuple[float, float] = (0.5, 0.75),
    mean: tuple[float, float] = (1.25e-4, 2e-4),
) -> GeneLists:
    """Return RCTD's platform-effect and regression gene lists, as ascending indices into `genes`.

    Parameters
    ----------
    profiles : (types, genes), signatures over genes present in reference and spots
    genes : their names; mitochondrial ones are left out
    spot_totals : (genes,), raw counts summed over all spots
    fold, mean : thresholds on the log fold change and on μ of (platform, regression) list
    """
    candidate = np.array([not is_mitochondrial(gene) for gene in genes], bool)
    candidate &= np.asarray(spot_totals) >= min_counts
    change = log_fold_changes(profiles)
    chosen = [
        np.flatnonzero(candidate & ((change > fold[i]) & (profiles > mean[i])).any(axis=0)).astype(np.int64)
        for i in range(2)
    ]
    return GeneLists(platform=chosen[0], regression=chosen[1])


def marker_genes(
    profiles: NDArray[np.float64], genes: Sequence[str], *, per_type: int, min_fold: float = 0.5, min_mean: float = 1e-5
) -> list[NDArray[np.int64]]:
    """Return for each type the indices of its best marker genes, best first, `per_type` at most.

    Genes are ranked by μ_kg · log fold change: strong and specific at once. Ties go to the lower
    index; mitochondrial genes are left out.
    """
    change = log_fold_changes(profiles)
    nuclear = np.array([not is_mitochondrial(gene) for gene in genes], bool)
    markers = []
    for k in range(len(profiles)):
        allowed = np.flatnonzero(nuclear & (change[k] > min_fold) & (profiles[k] > min_mean))
        score = profiles[k, allowed] * change[k, allowed]
        markers.append(allowed[np.argsort(-score, kind="stable")][:per_type].astype(np.int64))
    return markers


def variable_genes(signatures: Signatures, genes: Sequence[str], *, n_genes: int) -> NDArray[np.int64]:
    """Return the indices of the most variable genes, most variable first.

    A quadratic of log variance on log mean over expressed genes is the expectation; genes are
    ranked by how far their variance lies above it. Ties go to the lower index; mitochondrial
    genes are left out.
    """
    mean = signatures.gene_means()
    variance = signatures.square_means - mean**2
    nuclear = np.array([not is_mitochondrial(gene) for gene in genes], bool)
    usable = np.flatnonzero(nuclear & (mean > 0) & (variance > 0))
    if len(usable) == 0 or n_genes == 0:
        return np.zeros(0, np.int64)
    x, y = np.log(mean[usable]), np.log(variance[usable])
    x = x - x.mean()
    degree = min(2, len(np.unique(x)) - 1)
    design = np.stack([x**power for power in range(degree + 1)], axis=1)
    fit, *_ = np.linalg.lstsq(design, y, rcond=None)
    excess = y - design @ fit
    order: NDArray[np.int64] = usable[np.argsort(-np.round(excess, 9), kind="stable")][:n_genes].astype(np.int64)
    return order


def type_problems(names: Sequence[str], n_cells: NDArray[np.int64], *, where: str = "reference") -> list[Problem]:
    """Return one problem per cell type with too few cells to be used (fewer than 2)."""
    return [
        Problem(
            where=f"{where}, cell type '{name}'",
            found=f"{int(count)} cell" + ("s" if count != 1 else ""),
            expected=f"at least {_MIN_CELLS} cells of every type",
            remedy="Remove these cells from the reference or merge the type with a related one.",
        )
        for name, count in zip(names, n_cells, strict=True)
        if count < _MIN_CELLS
    ]


def small_types(names: Sequence[str], n_cells: NDArray[np.int64], *, below: int) -> list[str]:
    """Return the types with so few cells that a warning is due (RCTD asks for 25)."""
    return [name for name, count in zip(names, n_cells, strict=True) if _MIN_CELLS <= count < below]
