"""Spatially variable genes: non-parametric covariance test with transformed coordinates (SPARK-X).

For a gene y and a kernel Σ = S (SᵀS)⁻¹ Sᵀ of centred coordinates S (n × 2), the statistic is n yᵀΣy / yᵀHy with H the
centring (Zhu, Sun & Zhou 2021, eq. 2-4). Its null is the mixture Σ_ij λ_i λ'_j χ²₁ of the eigenvalues of the two
matrices; Σ is a projection and y a vector, so all products are equal and the mixture is exactly χ² with rank(S) degrees
of freedom: no numerical inversion is needed. Covariates are projected out of y and of S.
Eleven kernels (linear; five Gaussian and five cosine with lengths at the 20-100 % quantiles of the coordinates) are
joined by the Cauchy combination.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from spatialscope_dist.downstream.multiple_testing import adjust, combine_cauchy

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
QUANTILES = (0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Kernels:
    """Orthonormal columns of every kernel and of the covariates.

    ``names`` of the kernels; ``columns`` (spots, all columns) beside each other; ``owner`` (all columns,), kernel of
    each column; ``covariates`` (spots, q), orthonormal, the intercept included.
    """

    names: tuple[str, ...]
    columns: Array
    owner: NDArray[np.int64]
    covariates: Array


@dataclass(frozen=True)
class GeneSums:
    """What the test needs of the counts: products with the kernels and covariates, squares, spots expressed."""

    with_kernels: Array
    with_covariates: Array
    squares: Array
    n_expressed: NDArray[np.int64]


def transform_coordinates(positions_um: Array) -> dict[str, Array]:
    """Return each kernel's features, name to (spots, 2), of centred coordinates."""
    centred = positions_um - positions_um.mean(axis=0)
    lengths = np.maximum(np.quantile(np.abs(centred), QUANTILES, axis=0), 1e-9)
    features = {"linear": centred}
    for number, length in enumerate(lengths, start=1):
        features[f"gaussian_{number}"] = np.exp(-(centred**2) / (2 * length**2))
    for number, length in enumerate(lengths, start=1):
        features[f"cosine_{number}"] = np.cos(2 * np.pi * centred / length)
    return features


def build_kernels(positions_um: Array, covariates: Array | None = None) -> Kernels:
    """Return the eleven kernels of the positions, free of the covariates.

    Parameters
    ----------
    positions_um
        (spots, 2), (y, x) µm.
    covariates
        (spots, q), for example cell type proportions; None: the intercept only.
    """
    ones = np.ones((len(positions_um), 1))
    given = ones if covariates is None else np.concatenate([ones, covariates], axis=1)
    nuisance = _orthonormal(given)
    names: list[str] = []
    blocks: list[Array] = []
    owner: list[int] = []
    for name, values in transform_coordinates(positions_um).items():
        basis = _orthonormal(values - nuisance @ (nuisance.T @ values), scale=values - values.mean(axis=0))
        if basis.shape[1]:
            owner += [len(names)] * basis.shape[1]
            names.append(name)
            blocks.append(basis)
    columns = np.concatenate(blocks, axis=1) if blocks else np.zeros((len(positions_um), 0))
    return Kernels(tuple(names), columns, np.array(owner, dtype=np.int64), nuisance)


def _orthonormal(values: Array, scale: Array | None = None) -> Array:
    """Return an orthonormal basis of the columns, dropping directions below 1e-8 of the largest."""
    left, singular, _ = np.linalg.svd(values, full_matrices=False)
    largest = np.linalg.norm(values if scale is None else scale, 2)
    return np.asarray(left[:, singular > 1e-8 * max(float(largest), 1e-300)])


def sum_genes(blocks: Iterable[tuple[int, sparse.csr_matrix]], kernels: Kernels, *, n_genes: int) -> GeneSums:
    """Return the products of all genes, added over consecutive blocks of spots.

    Parameters
    ----------
    blocks
        (first row, (rows, genes) raw counts) in order.
    kernels
        Kernels of all spots.
    n_genes
        Number of genes.
    """
    with_kernels = np.zeros((n_genes, kernels.columns.shape[1]))
    with_covariates = np.zeros((n_genes, kernels.covariates.shape[1]))
    squares, n_expressed = np.zeros(n_genes), np.zeros(n_genes, dtype=np.int64)
    for start, counts in blocks:
        rows = slice(start, start + counts.shape[0])
        with_kernels += counts.T @ kernels.columns[rows]
        with_covariates += counts.T @ kernels.covariates[rows]
        squares += np.asarray(counts.astype(np.float64).power(2).sum(axis=0)).ravel()
        n_expressed += np.bincount(counts.indices[counts.data > 0], minlength=n_genes)
    return GeneSums(with_kernels, with_covariates, squares, n_expressed)


def score_kernels(sums: GeneSums, kernels: Kernels) -> tuple[Array, Array]:
    """Return the statistics and p-values of every gene and kernel, each (genes, kernels)."""
    n_spots, n_covariates = kernels.covariates.shape
    residual = sums.squares - (sums.with_covariates**2).sum(axis=1)
    residual = np.where(residual > 1e-9 * np.maximum(sums.squares, 1e-300), residual, np.nan)
    owner = np.eye(len(kernels.names))[kernels.owner]
    statistic = (n_spots - n_covariates) * (sums.with_kernels**2) @ owner / residual[:, None]
    return statistic, stats.chi2.sf(statistic, owner.sum(axis=0))


def find_variable_genes(sums: GeneSums, kernels: Kernels, *, genes: Sequence[str], min_spots: int) -> pd.DataFrame:
    """Return one row per tested gene, sorted by p: statistic of the best kernel, its name, p, adjusted p.

    Parameters
    ----------
    sums, kernels
        Of one section.
    genes
        Names, in the order of ``sums``.
    min_spots
        Genes expressed in fewer spots are left out.
    """
    import pandas as pd

    statistic, p = score_kernels(sums, kernels)
    tested = np.flatnonzero((sums.n_expressed >= min_spots) & np.isfinite(p).all(axis=1) & (p.shape[1] > 0))
    p, statistic = p[tested], statistic[tested]
    best = p.argmin(axis=1) if len(p) else np.zeros(0, dtype=np.int64)
    combined = combine_cauchy(p) if len(p) else np.zeros(0)
    table = pd.DataFrame(
        {
            "gene": np.array(genes, dtype=object)[tested],
            "n_expressed": sums.n_expressed[tested],
            "kernel": np.array(kernels.names, dtype=object)[best],
            "statistic": statistic[np.arange(len(best)), best],
            "p": combined,
            "p_adjusted": adjust(combined),
        }
    )
    return table.sort_values(["p", "gene"], ignore_index=True)
