"""Weights, quadratic programme, platform effect and overdispersion against plain optimisers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls

from spatialscope_dist.celltypes.likelihood import likelihood_table, log_likelihoods
from spatialscope_dist.celltypes.overdispersion import (
    estimate_overdispersion,
    minimise_on_grid,
    overdispersion_grid,
    sample_spots,
)
from spatialscope_dist.celltypes.platform_effect import SectionTotals, bulk_proportions, platform_effect, pool_sections
from spatialscope_dist.celltypes.quadratic import minimise_nonnegative, nearest_definite
from spatialscope_dist.celltypes.rctd import fit_weights_as_rctd
from spatialscope_dist.celltypes.weights import fit_weights, spot_log_likelihoods


def _section(n_spots=60, n_types=4, n_genes=80, depth=800, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    profiles = rng.gamma(0.4, 1.0, (n_types, n_genes))
    profiles /= profiles.sum(1, keepdims=True)
    truth = rng.dirichlet(np.full(n_types, 0.5), n_spots)
    rates = depth * truth @ profiles * np.exp(noise * rng.normal(size=(n_spots, n_genes)))
    counts = rng.poisson(rates)
    return counts, np.full(n_spots, depth), profiles, truth


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 7), seed=st.integers(0, 10_000))
def test_minimise_nonnegative__scipy_nnls(n, seed):
    rng = np.random.default_rng(seed)
    design, target = rng.normal(size=(n + 3, n)), rng.normal(size=n + 3)
    start = np.maximum(rng.normal(size=n), 0.0)
    found = start.copy()
    assert minimise_nonnegative(design.T @ design, design.T @ target, found)
    assert np.allclose(found, nnls(design, target)[0], atol=1e-8)


def test_minimise_nonnegative__indefinite():
    assert not minimise_nonnegative(np.array([[1.0, 2.0], [2.0, 1.0]]), np.ones(2), np.ones(2))


def test_nearest_definite__raises_small_eigenvalues_only():
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    values = np.array([[5.0, 1.0, -2.0], [3.0, 2.0, 1.0]])
    found = nearest_definite(np.stack([vectors @ np.diag(one) @ vectors.T for one in values]))
    assert np.allclose(np.linalg.eigvalsh(found), np.sort(np.maximum(values, 1e-3)))


def _loss(w, counts, total, profiles, table):
    """The objective of a spot, one gene at a time."""
    rates = [max(total * float(np.maximum(w, 0) @ profile), 1e-4) for profile in profiles.T]
    return -sum(log_likelihoods(np.array([y]), np.array([x]), table)[0, 0] for y, x in zip(counts, rates, strict=True))


def test_fit_weights__general_purpose_optimiser():
    counts, totals, profiles, _ = _section(n_spots=6)
    table = likelihood_table(0.3, max_count=int(counts.max()))
    found = fit_weights(counts, totals, profiles, table)
    assert found.converged.all()
    for spot in range(6):
        about = (counts[spot], totals[spot], profiles, table)
        best = minimize(_loss, found.weights[spot], about, bounds=[(0, None)] * 4, method="L-BFGS-B")
        assert -found.log_likelihoods[spot] == pytest.approx(_loss(found.weights[spot], *about), abs=1e-6)
        assert -found.log_likelihoods[spot] - best.fun < 1e-6
        assert np.abs(found.weights[spot] - best.x).max() < 1e-3


@settings(deadline=None, max_examples=30)
@given(n_types=st.integers(1, 9), depth=st.integers(1, 5000), seed=st.integers(0, 10_000))
def test_fit_weights__no_start_does_better(n_types, depth, seed):
    counts, totals, profiles, _ = _section(n_spots=3, n_types=n_types, depth=depth, noise=0.8, seed=seed)
    table = likelihood_table(0.8, max_count=int(counts.max()))
    found = fit_weights(counts, totals, profiles, table)
    rng = np.random.default_rng(seed)
    for around in (0.0, 0.1):
        near = np.maximum(found.weights * (1 + around * rng.normal(size=found.weights.shape)), 0.0)
        again = fit_weights(counts, totals, profiles, table, start=near)
        assert (again.log_likelihoods <= found.log_likelihoods + 1e-5).all()
        assert (again.log_likelihoods >= spot_log_likelihoods(counts, totals, profiles, near, table) - 1e-9).all()


def test_fit_weights__as_far_as_the_small_steps_of_rctd_lead():
    counts, totals, profiles, _ = _section(n_spots=100, noise=0.5, depth=150)
    assert counts.max() <= 100  # RCTD's cap
    table = likelihood_table(0.5, max_count=max(int(counts.max()), 100))
    rctd, found = (fit(counts, totals, profiles, table) for fit in (fit_weights_as_rctd, fit_weights))
    assert rctd.converged.all()
    assert np.abs(rctd.weights - found.weights).max() < 4e-3  # RCTD stops 1e-3 · 0.7 / 0.3 (L1) short of the optimum
    assert (found.log_likelihoods > rctd.log_likelihoods).all()


def test_fit_weights__empty_and_undefined_spots():
    counts, totals, profiles, _ = _section(n_spots=3)
    table = likelihood_table(0.3, max_count=int(counts.max()))
    assert fit_weights(counts[:0], totals[:0], profiles, table).weights.shape == (0, 4)
    counts[1] = 0
    found = fit_weights(counts, totals, profiles, table)
    assert found.weights[1].sum() < 1e-3
    assert np.isfinite(found.weights).all()
    profiles[0, 0] = np.nan
    for fit in (fit_weights, fit_weights_as_rctd):
        with pytest.raises(ValueError, match="1 signature entries that are not finite"):
            fit(counts, totals, profiles, table)


def test_fit_weights__recovers_composition_and_ignores_the_batch():
    counts, totals, profiles, truth = _section()
    table = likelihood_table(0.3, max_count=max(int(counts.max()), 100))
    for fit in (fit_weights, fit_weights_as_rctd):
        whole = fit(counts, totals, profiles, table).weights
        parts = [fit(counts[i : i + 7], totals[i : i + 7], profiles, table).weights for i in range(0, 60, 7)]
        assert np.array_equal(whole, np.vstack(parts))
        assert np.abs(whole - truth).mean() < 0.05


def test_estimate_overdispersion__near_the_truth():
    counts, totals, profiles, _ = _section(n_spots=40, noise=0.4, depth=3000)
    found = estimate_overdispersion(counts, totals, profiles, kind="normal", max_count=int(counts.max()))
    assert 0.3 < found < 0.5


@pytest.mark.parametrize("kind", ["heavy_tailed", "normal"])
def test_estimate_overdispersion__exhaustive_search(kind):
    counts, totals, profiles, _ = _section(n_spots=200, noise=0.6, depth=500, seed=3)
    grid, most = overdispersion_grid(), int(counts.max())
    losses = [
        -fit_weights(counts, totals, profiles, likelihood_table(x, kind=kind, max_count=most)).log_likelihoods.sum()
        for x in grid.tolist()
    ]
    found = estimate_overdispersion(counts, totals, profiles, kind=kind, max_count=most)
    assert found == grid[np.argmin(losses)]


def test_estimate_overdispersion__rctd_compat_is_near():
    counts, totals, profiles, _ = _section(n_spots=60, noise=0.4, depth=1000)
    ours, rctds = (estimate_overdispersion(counts, totals, profiles, rctd_compat=compat) for compat in (False, True))
    assert abs(ours - rctds) <= 0.03


def test_minimise_on_grid__finds_the_minimum():
    for target in (0, 3, 60, 125):
        for stride in (1, 16):
            assert minimise_on_grid(lambda p, t=target: (p - t) ** 2, 126, 75, stride=stride) == target
    assert len(overdispersion_grid()) == 126


def test_sample_spots__deep_spots_in_key_order():
    totals, keys = np.array([10, 500, 400, 900]), np.array([1, 9, 2, 3])
    assert sample_spots(keys, totals).tolist() == [1, 3]
    many = sample_spots(np.arange(5000)[::-1].copy(), np.full(5000, 400))
    assert many.tolist() == list(range(4000, 5000))


def test_bulk_proportions__general_purpose_optimiser():
    counts, totals, profiles, _ = _section()
    b, n = counts.sum(0), int(totals.sum())
    found = bulk_proportions(b, n, profiles)
    used = b >= 10

    def loss(pi):
        return ((np.log(n * np.maximum(pi, 1e-9) @ profiles[:, used]) - np.log(b[used])) ** 2).sum()

    best = minimize(loss, np.full(4, 0.25), bounds=[(1e-9, None)] * 4).x
    assert np.allclose(found, best / best.sum(), atol=5e-3)


def test_platform_effect__undoes_a_gene_wise_scale():
    counts, totals, profiles, _ = _section(n_spots=300, noise=0.0)
    scale = np.ones(80)
    scale[::2] = 3.0
    biased = profiles / scale
    found = platform_effect(counts.sum(0), int(totals.sum()), biased, np.arange(80))
    common = counts.sum(0) > 500
    ratio = found.effect[common] / scale[common]
    assert np.std(np.log(ratio)) < 0.25
    assert platform_effect(np.zeros(80, int), 1, profiles, np.arange(80)).n_replaced == 80


def test_pool_sections__genes_of_one_section_and_of_both():
    counts, totals, profiles, _ = _section(n_spots=300, noise=0.0)
    every, fewer = np.arange(80), np.arange(0, 80, 2)
    halves = [SectionTotals(every, counts[:150].sum(0), int(totals[:150].sum()))]
    halves += [SectionTotals(fewer, counts[150:, fewer].sum(0), int(totals[150:].sum()))]
    found, depth = pool_sections(halves, 80)
    assert np.array_equal(found[fewer], counts.sum(0)[fewer])
    assert np.array_equal(np.unique(depth), [totals[:150].sum(), totals.sum()])
    shared = platform_effect(found, depth, profiles, every).effect
    common = counts[:150].sum(0) > 300
    assert np.abs(np.log(shared[common])).max() < 0.25


def test_platform_effect__one_total_or_one_per_gene():
    counts, totals, profiles, _ = _section()
    whole = SectionTotals(np.arange(80), counts.sum(0), int(totals.sum()))
    one = platform_effect(whole.gene_totals, whole.total, profiles, np.arange(80))
    per_gene = platform_effect(*pool_sections([whole], 80), profiles, np.arange(80))
    assert np.array_equal(one.effect, per_gene.effect)
