"""Weights by torch against the compiled ones, on the CPU device."""

from __future__ import annotations

import numpy as np
import pytest

from spatialscope_dist.celltypes.gpu import fit_weights_on
from spatialscope_dist.celltypes.likelihood import likelihood_table
from spatialscope_dist.celltypes.weights import fit_weights


def _section(n_spots, n_types, n_genes, depth, seed):
    rng = np.random.default_rng(seed)
    profiles = rng.gamma(0.4, 1.0, (n_types, n_genes))
    profiles /= profiles.sum(1, keepdims=True)
    rates = depth * rng.dirichlet(np.full(n_types, 0.5), n_spots) @ profiles
    return rng.poisson(rates * np.exp(0.5 * rng.normal(size=rates.shape))), np.full(n_spots, depth), profiles


@pytest.mark.parametrize(("n_types", "depth", "overdispersion"), [(1, 300, 0.4), (4, 500, 0.5), (12, 30_000, 1.0)])
def test_fit_weights_on__as_the_compiled_kernels(n_types, depth, overdispersion):
    counts, totals, profiles = _section(150, n_types, 70, depth, seed=n_types)
    assert depth < 10_000 or counts.max() > 256  # rows shared between counts
    table = likelihood_table(overdispersion, max_count=int(counts.max()))
    compiled, found = (
        fit_weights(counts, totals, profiles, table),
        fit_weights_on("cpu", counts, totals, profiles, table),
    )
    assert np.array_equal(found.converged, compiled.converged)
    assert np.abs(found.weights - compiled.weights).max() < 1e-6
    assert np.allclose(found.log_likelihoods, compiled.log_likelihoods, atol=1e-6)


def test_fit_weights_on__empty_and_undefined_spots():
    counts, totals, profiles = _section(3, 4, 60, 500, seed=0)
    table = likelihood_table(0.5, max_count=int(counts.max()))
    assert fit_weights_on("cpu", counts[:0], totals[:0], profiles, table).weights.shape == (0, 4)
    counts[1] = 0
    assert fit_weights_on("cpu", counts, totals, profiles, table).weights[1].sum() < 1e-3
    profiles[0, 0] = np.nan
    with pytest.raises(ValueError, match="1 signature entries that are not finite"):
        fit_weights_on("cpu", counts, totals, profiles, table)


def test_fit_weights_on__ignores_the_batch():
    counts, totals, profiles = _section(40, 5, 60, 500, seed=1)
    table = likelihood_table(0.5, max_count=int(counts.max()))
    whole = fit_weights_on("cpu", counts, totals, profiles, table).weights
    parts = [fit_weights_on("cpu", counts[low : low + 16], totals[:16], profiles, table) for low in range(0, 32, 16)]
    assert np.array_equal(whole[:32], np.vstack([part.weights for part in parts]))


def test_fit_weights_on__mpoa(data):
    with np.load(data / "benchmarks/mpoa.npz", allow_pickle=False) as stored:
        counts = stored["Y"][:300].astype(np.int64)
        labels, cells = stored["ref_section_label"], stored["ref_section_X"]
    profiles = np.stack([cells[labels == k].sum(0) / cells[labels == k].sum() for k in range(labels.max() + 1)]) + 1e-6
    table = likelihood_table(0.6, max_count=int(counts.max()))
    compiled = fit_weights(counts, counts.sum(1), profiles, table)
    found = fit_weights_on("cpu", counts, counts.sum(1), profiles, table)
    assert np.abs(found.weights - compiled.weights).max() < 1e-6
