from __future__ import annotations

from dataclasses import replace

import numpy as np

from spatialscope_dist.expression.model import Network
from spatialscope_dist.expression.quality import generate_cells, measure_quality, two_sample_auc
from spatialscope_dist.expression.residual_network import draw_parameters


def test_generate_cells__untrained_network_gives_cells_of_the_type(reference, model):
    shape = model.networks["counts"].shape
    plain = replace(model, networks={"counts": Network(shape, draw_parameters(shape.layers(), seed=0))})
    types = np.repeat([0, 3], 400)
    cells = generate_cells(plain, types, seed=0)
    assert np.array_equal(cells, np.rint(cells))
    assert np.array_equal(cells, generate_cells(plain, types, seed=0))
    for kind in (0, 3):
        expected = reference.profiles.mean_counts[kind]
        found = cells[types == kind].mean(axis=0)
        assert np.abs(found - expected).sum() < 0.2 * expected.sum()


def test_two_sample_auc__chance_for_equal_sets_and_one_for_apart():
    random = np.random.default_rng(0)
    one, other = random.normal(size=(600, 5)), random.normal(size=(600, 5))
    assert abs(two_sample_auc(one, other, seed=0) - 0.5) < 0.06
    assert two_sample_auc(one + 5, other, seed=0) > 0.99


def test_measure_quality__type_means_are_told_apart_from_cells(reference):
    rows = reference.held_out
    held_out, types = reference.counts[rows].toarray().astype(np.float32), reference.types[rows]
    means = np.random.default_rng(0).poisson(reference.profiles.mean_counts[types]).astype(np.float32)
    training = reference.counts[rows - 1].toarray().astype(np.float32)
    found = measure_quality(held_out, types, generated=means, training=training, seed=0)
    assert found.n_cells == len(rows)
    assert found.sd_error > found.floor_sd_error
    assert found.correlation_error > found.floor_correlation_error
    assert 0.3 < found.floor_auc < 0.7
