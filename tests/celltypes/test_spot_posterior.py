"""Exact posteriors of spots: every labelling written out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from spatialscope_dist.celltypes.multisets import (
    QUANTUM,
    Candidates,
    MultisetCache,
    binomials,
    multiset_rank,
    n_multisets,
)
from spatialscope_dist.celltypes.spot_posterior import spot_posteriors


def random_cache(n_cells, size, *, seed, scale=1.5):
    rng = np.random.default_rng(seed)
    n_cells, size = np.array(n_cells), np.array(size)
    types = np.full((len(size), size.max()), -1)
    for spot, slots in enumerate(size):
        types[spot, :slots] = np.sort(rng.choice(9, slots, replace=False))
    sizes = np.where(n_cells > 0, n_multisets(n_cells, size), 0)
    start = np.concatenate([[0], np.cumsum(sizes)])
    energy = np.rint(rng.normal(0, scale, start[-1]) / QUANTUM).astype(np.int64)
    return MultisetCache(Candidates(types, size), n_cells, start, energy)


def written_out(energy, factors):
    """Return shares and log evidence of one spot, all labellings one by one."""
    n_cells, size = factors.shape
    shares, weighed, plain = np.zeros(factors.shape), 0.0, 0.0
    for slots in product(range(size), repeat=n_cells):
        rank = multiset_rank(np.bincount(slots, minlength=size), size, binomials(30, 8))
        weight = np.exp(-energy[rank] * QUANTUM)
        plain += weight
        weight *= np.prod(factors[np.arange(n_cells), slots])
        weighed += weight
        shares[np.arange(n_cells), slots] += weight
    return shares / weighed, np.log(weighed / plain)


@pytest.mark.parametrize("seed", range(5))
def test_spot_posteriors__every_labelling_written_out(seed):
    cache = random_cache([3, 0, 5, 1, 4, 2], [3, 2, 2, 4, 4, 1], seed=seed)
    factors = np.random.default_rng(seed).gamma(0.5, 2.0, (15, 4)) + 1e-6
    found, first = spot_posteriors(cache, factors), 0
    for spot, (n_cells, size) in enumerate(zip(cache.n_cells, cache.candidates.size, strict=True)):
        mine = slice(first, first + n_cells)
        first += n_cells
        if n_cells == 0:
            assert found.log_evidence[spot] == 0
            continue
        shares, evidence = written_out(cache.energy[cache.start[spot] : cache.start[spot + 1]], factors[mine, :size])
        np.testing.assert_allclose(found.shares[mine, :size], shares, rtol=1e-10)
        assert found.log_evidence[spot] == pytest.approx(evidence)
        assert (found.shares[mine, size:] == 0).all()


def test_spot_posteriors__many_cells_and_extreme_factors_stay_finite():
    cache = random_cache([20, 14], [4, 5], seed=3, scale=60.0)
    factors = np.exp(np.random.default_rng(3).normal(0, 8, (34, 5)))
    found = spot_posteriors(cache, factors)
    assert np.isfinite(found.log_evidence).all()
    np.testing.assert_allclose(found.shares.sum(axis=1), 1.0)


def test_spot_posteriors__exchanging_cells_inside_a_spot_changes_no_evidence():
    cache = random_cache([6], [3], seed=4)
    factors = np.random.default_rng(4).gamma(1.0, 1.0, (6, 3))
    order = np.array([4, 2, 0, 5, 1, 3])
    one, other = spot_posteriors(cache, factors), spot_posteriors(cache, factors[order])
    assert one.log_evidence[0] == pytest.approx(other.log_evidence[0])
    np.testing.assert_allclose(one.shares[order], other.shares)
