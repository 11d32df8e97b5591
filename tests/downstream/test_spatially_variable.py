from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse, stats

from spatialscope_dist.downstream.spatially_variable import (
    build_kernels,
    find_variable_genes,
    score_kernels,
    sum_genes,
    transform_coordinates,
)

Array = NDArray[np.float64]


def spots(count: int = 300) -> Array:
    return np.random.default_rng(0).uniform(0, 2000, (count, 2))


def test_score_kernels__scalar_reference_without_covariates() -> None:
    positions = spots(60)
    counts = np.random.default_rng(1).poisson(0.7, (60, 5))
    kernels = build_kernels(positions)
    statistic, p = score_kernels(sum_genes([(0, sparse.csr_matrix(counts))], kernels, n_genes=5), kernels)
    for column, features in enumerate(transform_coordinates(positions).values()):
        centred = features - features.mean(axis=0)
        kernel = centred @ np.linalg.inv(centred.T @ centred) @ centred.T
        for gene in range(5):
            y = counts[:, gene] - counts[:, gene].mean()
            expected = 60 * (y @ kernel @ y) / (y @ y) * (59 / 60)
            assert statistic[gene, column] == pytest.approx(expected)
            # the null mixture: eigenvalues of the projection are all 1
            eigenvalues = np.linalg.eigvalsh(kernel)
            assert np.allclose(eigenvalues[-2:], 1)
            assert np.allclose(eigenvalues[:-2], 0)
            assert p[gene, column] == pytest.approx(np.exp(-expected / 2))


def test_sum_genes__blocks_do_not_matter() -> None:
    positions, counts = spots(), sparse.csr_matrix(np.random.default_rng(2).poisson(0.5, (300, 7)))
    kernels = build_kernels(positions)
    whole = sum_genes([(0, counts)], kernels, n_genes=7)
    parts = sum_genes([(0, counts[:100]), (100, counts[100:])], kernels, n_genes=7)
    np.testing.assert_allclose(whole.with_kernels, parts.with_kernels)
    np.testing.assert_array_equal(whole.n_expressed, parts.n_expressed)


def test_score_kernels__p_uniform_under_the_null() -> None:
    counts = sparse.csr_matrix(np.random.default_rng(3).poisson(1.0, (300, 600)))
    kernels = build_kernels(spots())
    _, p = score_kernels(sum_genes([(0, counts)], kernels, n_genes=600), kernels)
    for kernel in range(p.shape[1]):
        assert stats.kstest(p[:, kernel], "uniform").pvalue > 1e-3
    table = find_variable_genes(
        sum_genes([(0, counts)], kernels, n_genes=600), kernels, genes=[f"g{i}" for i in range(600)], min_spots=10
    )
    assert 0.02 < (table["p"] < 0.05).mean() < 0.09
    assert (table["p_adjusted"] < 0.05).mean() < 0.01


def test_find_variable_genes__planted_pattern_found_flat_gene_not_and_rare_gene_left_out() -> None:
    positions, rng = spots(), np.random.default_rng(4)
    stripes = np.exp(np.cos(positions[:, 0] / 300))
    counts = np.stack([rng.poisson(stripes), rng.poisson(np.full(300, 1.3)), (np.arange(300) < 3) * 1], axis=1)
    kernels = build_kernels(positions)
    table = find_variable_genes(
        sum_genes([(0, sparse.csr_matrix(counts))], kernels, n_genes=3),
        kernels,
        genes=["striped", "flat", "rare"],
        min_spots=10,
    ).set_index("gene")
    assert table.loc["striped", "p_adjusted"] < 1e-6
    assert table.loc["striped", "kernel"].startswith("cosine") or table.loc["striped", "kernel"].startswith("gaussian")
    assert table.loc["flat", "p"] > 0.01
    assert "rare" not in table.index


def test_build_kernels__covariate_explains_the_pattern_away() -> None:
    positions, rng = spots(), np.random.default_rng(5)
    share = 1 / (1 + np.exp(-(positions[:, 1] - 1000) / 200))
    counts = sparse.csr_matrix(rng.poisson(1 + 4 * share[:, None], (300, 40)))
    plain, given = build_kernels(positions), build_kernels(positions, share[:, None])
    _, p = score_kernels(sum_genes([(0, counts)], plain, n_genes=40), plain)
    _, p_given = score_kernels(sum_genes([(0, counts)], given, n_genes=40), given)
    assert (p.min(axis=1) < 1e-6).all()
    assert np.median(p_given[:, 0]) > 0.2


def test_score_kernels__silent_gene_and_constant_coordinate() -> None:
    positions = np.c_[np.zeros(50), np.linspace(0, 100, 50)]
    kernels = build_kernels(positions)
    counts = sparse.csr_matrix(np.c_[np.zeros(50), np.arange(50)].astype(int))
    table = find_variable_genes(
        sum_genes([(0, counts)], kernels, n_genes=2), kernels, genes=["silent", "rising"], min_spots=5
    )
    assert table["gene"].tolist() == ["rising"]
    assert table["p"][0] < 1e-8
