"""Labels from marginals, and cells counted without an image."""

from __future__ import annotations

import numpy as np
import pytest

from spatialscope_dist.celltypes.cell_counts import (
    compositions,
    diversity_cells,
    estimate_cell_counts,
    place_cells,
)
from spatialscope_dist.celltypes.labelling import blend_proportions, confidence, label_cells


def test_label_cells__composition_matches_expectation_where_positional_does_not():
    seen = np.array([[6, 4, 0], [6, 4, 0], [7, 3, 0], [0, 0, 10]], np.uint16)
    candidates = np.array([[1, 4, 5], [1, 4, 5], [1, 4, 5], [0, 2, 3]], np.int16)
    found = label_cells(seen, candidates, np.array([0, 3, 3, 4]), n_types=6)
    assert found.positional.tolist() == [1, 1, 1, 3]
    assert sorted(found.composition[:3].tolist()) == [1, 1, 4]
    assert found.composition[2] == 1
    assert found.proportions[0, [1, 4]].tolist() == pytest.approx([19 / 30, 11 / 30])
    assert found.proportions[1].sum() == 0
    sure = confidence(found.positional, found.probability, candidates)
    assert sure == pytest.approx(0.92 * np.array([0.6, 0.6, 0.7, 1.0]))


def test_label_cells__ties_go_to_the_lower_type_and_no_cells_is_fine():
    found = label_cells(np.array([[5, 5]], np.uint16), np.array([[2, 7]], np.int16), np.array([0, 1]), n_types=8)
    assert found.positional.tolist() == [2]
    empty = label_cells(np.zeros((0, 2), np.uint16), np.zeros((0, 2), np.int16), np.array([0, 0]), n_types=3)
    assert empty.proportions.shape == (1, 3)


def test_estimate_cell_counts__recovers_planted_counts():
    rng = np.random.default_rng(0)
    side, n_types = 30, 5
    points = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * 100.0
    planted = rng.integers(2, 9, len(points))
    shares = np.array([rng.multinomial(m, np.full(n_types, 0.2)) / m for m in planted])
    depths = np.array([500.0, 1000, 1500, 1000, 1000])
    totals = rng.poisson(planted * (shares @ depths))
    found = estimate_cell_counts(totals, shares, points, depths, max_cells=20)
    assert np.corrcoef(found, planted)[0, 1] > 0.9
    assert found.mean() == pytest.approx(planted.mean(), rel=0.3)
    assert estimate_cell_counts(totals, shares, points, depths, max_cells=1).max() == 1


def test_diversity_cells__pure_spots_hold_one_cell():
    points = np.random.default_rng(0).uniform(0, 100, (200, 2))
    shares = np.eye(4)[np.arange(200) % 4]
    assert diversity_cells(shares, points, max_cells=20) == 1.0


def test_compositions__failed_spots_take_the_mean():
    found = compositions(np.array([[2.0, 2.0, 0.01], [np.nan] * 3]))
    assert found.tolist() == [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]


def test_place_cells__inside_the_spot_and_by_key():
    centres, n_cells, keys = np.array([[0.0, 0], [500, 500], [900, 0]]), np.array([12, 0, 1]), np.array([7, 8, 9])
    found = place_cells(centres, n_cells, keys, radius_um=27.5)
    assert (np.linalg.norm(found[:12], axis=1) < 27.5).all()
    assert found[12].tolist() == [900.0, 0.0]
    gaps = np.linalg.norm(found[:12, None] - found[None, :12], axis=2) + np.eye(12) * 99
    assert gaps.min() > 8
    assert np.array_equal(place_cells(centres[:1], n_cells[:1], keys[:1], radius_um=27.5), found[:12])


def test_estimate_cell_counts__same_composition_everywhere_does_not_fill_the_cap():
    points = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0)), axis=-1).reshape(-1, 2) * 100
    shares = np.full((100, 4), 0.25)
    found = estimate_cell_counts(np.full(100, 2000), shares, points, np.ones(4), max_cells=20)
    assert (found == 8).all()


def test_blend_proportions__weights_as_cells_where_they_are_known():
    of_cells = np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]])
    weights = np.array([[0.6, 0.2], [np.nan, np.nan], [0.5, 0.5]])
    found = blend_proportions(of_cells, weights, np.array([3.0, 1.0]), share=0.25)
    assert found[0] == pytest.approx([0.75 * 0.5 + 0.25 * 0.5, 0.5])
    assert found[1] == pytest.approx([1.0, 0.0])
    assert found[2] == pytest.approx([0.0, 0.0])
