from __future__ import annotations

import numpy as np
import torch

from spatialscope_dist.expression.noise import (
    chain_keys,
    falling_levels,
    geometric_levels,
    keyed_normals,
    keyed_normals_torch,
    loss_weight,
    preconditioning,
)
from spatialscope_dist.randomness import philox, to_unit


def scalar_normal(key, rank, *, chain, step, gene):
    u = [to_unit(int(word)) for word in philox(np.int64(key), (np.int64(gene // 4), rank, chain, step))]
    first, second = (u[0], u[1]) if gene % 4 < 2 else (u[2], u[3])
    wave = np.cos if gene % 2 == 0 else np.sin
    return np.sqrt(-2 * np.log(first)) * wave(2 * np.pi * second)


def test_keyed_normals__equal_scalar_reference():
    keys, ranks = np.array([5, 2**62 + 11]), np.array([0, 3])
    draws = keyed_normals(keys, ranks, n_chains=3, step=4, n_genes=6)
    for chain, cell, gene in np.ndindex(draws.shape):
        expected = scalar_normal(keys[cell], ranks[cell], chain=chain, step=4, gene=gene)
        assert np.isclose(draws[chain, cell, gene], expected, rtol=1e-6)


def test_keyed_normals__do_not_depend_on_cells_chains_or_genes_beside():
    keys, ranks = chain_keys(0, np.arange(20)), np.arange(20) % 3
    whole = keyed_normals(keys, ranks, n_chains=4, step=1, n_genes=10)
    part = keyed_normals(keys[7:9], ranks[7:9], n_chains=2, step=1, n_genes=7)
    assert np.array_equal(part, whole[:2, 7:9, :7])
    assert not np.array_equal(whole, keyed_normals(keys, ranks, n_chains=4, step=2, n_genes=10))
    assert not np.array_equal(whole, keyed_normals(chain_keys(1, np.arange(20)), ranks, n_chains=4, step=1, n_genes=10))


def test_keyed_normals__standard():
    draws = keyed_normals(np.arange(200), np.zeros(200, np.int64), n_chains=4, step=0, n_genes=250)
    assert abs(draws.mean()) < 0.01
    assert abs(draws.std() - 1) < 0.01
    assert abs((draws**4).mean() - 3) < 0.1
    assert abs(np.corrcoef(draws.reshape(-1, 250)[:, :2].T)[0, 1]) < 0.1


def test_keyed_normals_torch__same_draws():
    keys, ranks = chain_keys(3, np.arange(9)), np.arange(9) % 2
    ours = keyed_normals(keys, ranks, n_chains=3, step=5, n_genes=11)
    theirs = keyed_normals_torch(torch.from_numpy(keys), torch.from_numpy(ranks), n_chains=3, step=5, n_genes=11)
    assert np.allclose(ours, theirs.numpy(), rtol=1e-6, atol=1e-7)


def test_preconditioning__identities_of_unit_data():
    for level in (0.02, 0.5, 1.0, 20.0):
        keep, out, shrink, code = preconditioning(level)
        assert np.isclose((shrink**2) * (1 + level**2), 1)  # network input of unit variance
        effective = ((1 - keep) ** 2 + (keep * level) ** 2) / out**2
        assert np.isclose(effective, 1)  # training target of unit variance
        assert np.isclose(loss_weight(level) * out**2, 1)  # equal share of the loss
        assert np.isclose(code, np.log(level) / 4)


def test_falling_levels__ends_and_order():
    levels = falling_levels(6, largest=20.0, smallest=0.05)
    assert np.isclose(levels[[0, -1]], [20.0, 0.05]).all()
    assert (np.diff(levels) < 0).all()
    assert falling_levels(1, largest=20.0, smallest=0.05).tolist() == [0.05]


def test_geometric_levels__constant_ratio():
    levels = geometric_levels(232, largest=50.0, smallest=0.01)
    assert np.allclose(levels[1:] / levels[:-1], (0.01 / 50) ** (1 / 231))
