"""Multisets: ranks, candidates, cached energies, rounding."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialscope_dist.celltypes.likelihood import likelihood_table, log_likelihoods
from spatialscope_dist.celltypes.multisets import (
    QUANTUM,
    Candidates,
    MixtureModel,
    binomials,
    cache_multisets,
    choose_candidates,
    first_labels,
    multiset_rank,
    n_multisets,
    next_multiset,
    round_to_total,
    weights_field,
)


@settings(deadline=None, max_examples=30)
@given(n_cells=st.integers(1, 7), size=st.integers(1, 5))
def test_multiset_rank__enumeration_is_a_bijection(n_cells, size):
    choose = binomials(n_cells + size, size)
    tally = np.zeros(size, np.int64)
    tally[size - 1] = n_cells
    seen = []
    while True:
        assert multiset_rank(tally, size, choose) == len(seen)
        seen.append(tuple(tally.tolist()))
        if not next_multiset(tally, size):
            break
    every = {t for t in product(range(n_cells + 1), repeat=size) if sum(t) == n_cells}
    assert len(seen) == len(every)
    assert set(seen) == every
    assert n_multisets(np.array([n_cells]), np.array([size]))[0] == comb(n_cells + size - 1, size - 1)


def test_choose_candidates__rule_minimum_and_cap():
    weights = np.array([[0.5, 0.3, 0.15, 0.04, 0.01], [0.9, 0.0, 0.05, 0.0, 0.05], [0.2] * 5])
    found = choose_candidates(weights, np.array([3, 2, 30]), max_cells=10, max_multisets=600)
    assert found.size.tolist() == [3, 3, 3]
    assert found.types[1].tolist() == [0, 2, 4]
    assert choose_candidates(weights, np.array([3, 2, 3]), max_cells=10, max_multisets=600).size.tolist() == [3, 3, 5]
    assert choose_candidates(weights, np.array([9, 9, 9]), max_cells=10, max_multisets=1).size.tolist() == [1, 1, 1]


def test_cache_multisets__scalar_reference():
    rng = np.random.default_rng(0)
    profiles = rng.dirichlet(np.ones(20), 4)
    counts, exposure, n_cells = rng.poisson(15, (3, 20)), np.array([310.0, 250.0, 0.0]), np.array([3, 0, 2])
    table = likelihood_table(0.4, max_count=100)
    candidates = choose_candidates(rng.dirichlet(np.ones(4), 3), n_cells, max_cells=3, max_multisets=100)
    rna = np.array([1.0, 2.0, 0.5, 3.0])
    field = rng.normal(0, 1, candidates.types.shape)
    model = MixtureModel(profiles, rna, table, temper=0.4)
    cache = cache_multisets(counts, exposure, n_cells, candidates, model, field=field)
    size = candidates.size[0]
    choose = binomials(20, 10)
    for tally in (t for t in product(range(4), repeat=int(size)) if sum(t) == 3):
        held = [n * rna[candidates.types[0, s]] for s, n in enumerate(tally)]
        mean = sum(n * profiles[candidates.types[0, s]] for s, n in enumerate(held)) / sum(held)
        expected = -0.4 * log_likelihoods(counts[0].astype(float), exposure[0] * mean, table)[:, 0].sum()
        expected += sum(n * field[0, s] for s, n in enumerate(tally))
        rank = multiset_rank(np.array(tally), size, choose)
        assert cache.energy[cache.start[0] + rank] * QUANTUM == pytest.approx(expected, abs=1e-4)
    assert cache.start[1] == cache.start[2]
    assert (cache.energy[cache.start[2] :] == 0).all()
    assert len(first_labels(rng.dirichlet(np.ones(4), 3), cache)) == 5


def test_weights_field__shares_of_candidates():
    candidates = Candidates(np.array([[0, 2], [1, -1]]), np.array([2, 1]))
    found = weights_field(np.array([[0.3, 0.0, 0.1], [0.0, 0.0, 0.0]]), candidates)
    assert found == pytest.approx(-np.log([[0.77, 0.27], [0.02, 1.0]]))


@settings(deadline=None)
@given(amounts=st.lists(st.floats(0, 5), min_size=1, max_size=6), total=st.integers(0, 30))
def test_round_to_total__sums_and_stays_close(amounts, total):
    found = round_to_total(np.array(amounts), total)
    assert found.sum() == total
    if sum(amounts) > 0:
        assert np.abs(found - np.array(amounts) / sum(amounts) * total).max() < 1 + 1e-6
