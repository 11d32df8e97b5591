"""Signatures: streaming means, shrinkage, gene lists, rankings, problems."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialscope_dist.celltypes.signatures import (
    gene_lists,
    marker_genes,
    shrink,
    small_types,
    type_problems,
    type_signatures,
    variable_genes,
)


def _reference(n_cells=40, n_genes=12, n_types=3, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.5, 4.0, (n_types, n_genes))[np.arange(n_cells) % n_types])
    return sp.csr_matrix(counts), np.arange(n_cells) % n_types


def test_type_signatures__scalar_reference():
    counts, labels = _reference()
    dense = counts.toarray()
    dense[4] = 0  # a cell without counts is left out
    found = type_signatures([sp.csr_matrix(dense)], labels, 3)
    for k in range(3):
        cells = [row / row.sum() for row, label in zip(dense, labels, strict=True) if label == k and row.sum()]
        assert np.allclose(found.profiles[k], sum(cells) / len(cells))
        assert found.umi[k] == dense[labels == k].sum()
    share = dense[dense.sum(1) > 0] / dense[dense.sum(1) > 0].sum(1, keepdims=True)
    assert np.allclose(found.gene_means(), share.mean(0))
    assert np.allclose(found.square_means, (share**2).mean(0))


@settings(deadline=None, max_examples=20)
@given(cut=st.lists(st.integers(1, 39), max_size=4))
def test_type_signatures__block_boundaries_do_not_matter(cut):
    counts, labels = _reference()
    edges = [0, *sorted(set(cut)), 40]
    whole = type_signatures([counts], labels, 3)
    parts = type_signatures((counts[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)), labels, 3)
    assert np.array_equal(whole.profiles, parts.profiles)
    assert np.array_equal(whole.square_means, parts.square_means)
    assert whole.inverse_depth == parts.inverse_depth


def test_type_signatures__wrong_number_of_labels():
    counts, labels = _reference()
    with pytest.raises(ValueError, match="one label per cell"):
        type_signatures([counts], labels[:-1], 3)


def test_shrink__fills_zeros_and_keeps_sums():
    profiles = np.array([[0.5, 0.5, 0.0], [0.0, 0.2, 0.8]])
    mixed = shrink(profiles, np.array([300, 10_000_000]), shrinkage_umi=300.0)
    assert np.allclose(mixed.sum(1), 1)
    assert np.allclose(mixed[0], (profiles[0] + profiles.mean(0)) / 2)
    assert np.allclose(mixed[1], profiles[1], atol=1e-4)


def test_gene_lists__thresholds_mitochondrial_and_counts():
    profiles = np.array([[4e-4, 1e-2, 1.5e-4, 1e-2, 1e-2], [1e-4, 1e-5, 1e-6, 1e-5, 1e-2]])
    names = ["A", "mt-Nd1", "C", "D", "E"]
    lists = gene_lists(profiles, names, np.array([10, 10, 10, 2, 10]))
    assert lists.regression.tolist() == [0]
    assert lists.platform.tolist() == [0, 2]


def test_marker_genes__ranked_by_specific_expression():
    profiles = np.array([[0.1, 0.2, 0.4, 0.3], [0.1, 0.01, 0.01, 0.88]])
    best = marker_genes(profiles, ["A", "B", "C", "D"], per_type=2)
    assert [found.tolist() for found in best] == [[2, 1], [3]]


def test_variable_genes__finds_the_gene_that_varies():
    rng = np.random.default_rng(1)
    counts = rng.poisson(np.exp(rng.normal(0, 1, 60))[None] * 5, (300, 60))
    counts[:150, 7], counts[150:, 7] = 40, 0
    found = type_signatures([sp.csr_matrix(counts)], np.zeros(300, int), 1)
    order = variable_genes(found, [f"G{g}" for g in range(60)], n_genes=5)
    assert order[0] == 7
    assert len(order) == 5


def test_type_problems__names_the_type_and_what_to_do():
    problems = type_problems(["T", "B"], np.array([1, 30]))
    assert len(problems) == 1
    assert "'T'" in str(problems[0])
    assert "1 cell;" in str(problems[0])
    assert small_types(["T", "B"], np.array([1, 30]), below=25) == []
    assert small_types(["T", "B"], np.array([10, 30]), below=25) == ["T"]
