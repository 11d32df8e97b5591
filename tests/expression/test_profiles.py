from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from spatialscope_dist.expression.profiles import reference_profiles, split_cells


def test_split_cells__types_share_and_minimum():
    types = np.repeat([0, 1, 2], [100, 10, 2])
    train, held_out = split_cells(types, share=0.1, seed=0)
    assert np.array_equal(np.sort(np.r_[train, held_out]), np.arange(112))
    assert np.bincount(types[held_out], minlength=3).tolist() == [10, 1, 0]
    assert np.array_equal(held_out, split_cells(types, share=0.1, seed=0)[1])
    assert not np.array_equal(held_out, split_cells(types, share=0.1, seed=1)[1])


def test_reference_profiles__equal_scalar_reference(reference):
    counts, types = reference.counts[reference.train].toarray(), reference.types[reference.train]
    logs, overall = np.log1p(counts), np.log1p(counts).mean(axis=0)
    for kind in range(4):
        mine = logs[types == kind]
        expected = (mine.sum(axis=0) + overall) / (len(mine) + 1)
        assert np.allclose(reference.profiles.mean_log[kind], expected, rtol=1e-5)
    gaps = logs - reference.profiles.mean_log[types]
    assert np.isclose(reference.profiles.scale[0], np.sqrt((gaps**2).mean()), rtol=1e-5)
    assert np.allclose(reference.profiles.ceiling, logs.max(axis=0) + 1, rtol=1e-5)


def test_reference_profiles__finds_size_and_dispersion():
    random = np.random.default_rng(0)
    size = random.gamma(4.0, 1 / 4.0, (4000, 1))
    rate = size * 20 * random.gamma(2.0, 1 / 2.0, (4000, 30))
    profiles = reference_profiles(sp.csr_matrix(random.poisson(rate)), np.zeros(4000, int), n_types=1)
    assert 3.3 < profiles.size_shape[0] < 4.7
    assert abs(np.median(profiles.dispersion) - 2.0) < 0.4


def test_reference_profiles__a_type_without_cells_gets_the_overall_mean(reference):
    profiles = reference_profiles(reference.counts, reference.types, n_types=5)
    assert np.allclose(profiles.mean_counts[4], np.asarray(reference.counts.mean(axis=0)) + 1e-4, rtol=1e-5)
    assert all(np.isfinite(values).all() for values in profiles.arrays().values())
