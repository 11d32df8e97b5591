"""Looks of nuclei learnt from spots: the planted ones are found, the evidence knows links from staining."""

from __future__ import annotations

import numpy as np
import pytest

from spatialscope_dist.celltypes.morphology import (
    MISMEASURED,
    Looks,
    Sample,
    cell_field,
    learn_looks,
    look_posterior,
    robust_scale,
)
from spatialscope_dist.celltypes.morphology_evidence import weigh_evidence
from spatialscope_dist.celltypes.multisets import QUANTUM, Candidates, MultisetCache, n_multisets
from spatialscope_dist.randomness import spot_keys

TYPES = 4


class Planted:
    """Spots whose counts tell their composition well, on a lattice with bands of types, and measures by type."""

    def __init__(self, n_spots=400, *, separation=1.5, seed=0):
        self.rng = rng = np.random.default_rng(seed)
        side = int(np.sqrt(n_spots))
        self.places = np.stack(np.divmod(np.arange(n_spots), side), axis=1) * 100.0
        n_cells = rng.integers(1, 6, n_spots)
        self.spot = np.repeat(np.arange(n_spots), n_cells)
        band = (self.places[self.spot, 0] * TYPES / self.places[:, 0].max()).astype(int) % TYPES
        self.types = np.where(rng.random(len(self.spot)) < 0.4, band, rng.integers(0, TYPES, len(self.spot)))
        self.means = separation * rng.normal(0, 1, (TYPES, 3))
        self.measures = self.means[self.types] + rng.normal(0, 1, (len(self.spot), 3))
        size = np.full(n_spots, TYPES)
        start = np.concatenate([[0], np.cumsum(n_multisets(n_cells, size))])
        truth = np.zeros((n_spots, TYPES), int)
        np.add.at(truth, (self.spot, self.types), 1)
        energies = [_energies(tally, n, rng) for tally, n in zip(truth, n_cells, strict=True)]
        energy = np.rint(np.concatenate(energies) / QUANTUM).astype(np.int64)
        candidates = Candidates(np.tile(np.arange(TYPES), (n_spots, 1)), size)
        self.cache = MultisetCache(candidates, n_cells, start, energy)
        self.keys = spot_keys("planted", [str(spot) for spot in range(n_spots)])

    def sample(self, measures):
        return Sample(self.cache, self.places, robust_scale(measures).standardise(measures), TYPES)


def _energies(tally, n_cells, rng):
    """Return the energy of every multiset by rank: 2 nats per cell it differs from the true one by, and noise."""
    from itertools import product

    sets = [counts for counts in product(range(n_cells + 1), repeat=TYPES) if sum(counts) == n_cells]
    sets.sort(key=lambda counts: np.cumsum(counts)[-2::-1].tolist())  # colexicographic in partial sums
    return [np.abs(np.array(counts) - tally).sum() + rng.normal(0, 0.5) for counts in sets]


@pytest.fixture(scope="module")
def planted():
    return Planted()


def test_learn_looks__planted_means_and_covariances(planted):
    scale = robust_scale(planted.measures)
    looks = learn_looks(planted.sample(planted.measures))
    means = (planted.means - scale.centre) / scale.spread
    assert np.abs(looks.mean - means).max() < 0.35
    variances = np.diagonal(looks.covariance, axis1=1, axis2=2) * scale.spread**2
    assert variances.min() > 0.6
    assert variances.max() < 1.6


def test_learn_looks__more_cells_get_their_type_than_by_counts(planted):
    sample = planted.sample(planted.measures)
    found = look_posterior(sample, learn_looks(sample)).shares.argmax(axis=1)
    by_counts = sample.from_counts.argmax(axis=1)
    wrong, wrong_by_counts = (found != planted.types).mean(), (by_counts != planted.types).mean()
    assert wrong < 0.5 * wrong_by_counts


def test_learn_looks__a_trend_of_the_staining_is_not_taken_for_types(planted):
    trend = 4.0 * np.sin(planted.places[planted.spot] @ np.array([[0.002, 0.001, 0.0015], [0.001, 0.002, 0.0]]))
    flat, bent = (planted.sample(values) for values in (planted.measures, planted.measures + trend))
    wrong = [(look_posterior(one, learn_looks(one)).shares.argmax(1) != planted.types).mean() for one in (flat, bent)]
    assert wrong[1] < wrong[0] + 0.03


def test_weigh_evidence__convinced_by_links_only(planted):
    measures, rng = planted.measures, np.random.default_rng(5)
    smooth = rng.normal(0, 1, measures.shape) + planted.places[planted.spot, :1] / 500
    real = weigh_evidence(planted.sample(measures), planted.keys)
    assert real.convinces
    assert real.gain > 0.2
    for unlinked in (measures[rng.permutation(len(measures))], rng.normal(0, 1, measures.shape), smooth):
        assert not weigh_evidence(planted.sample(unlinked), planted.keys).convinces


def test_weigh_evidence__missing_measures_add_nothing(planted):
    measures = planted.measures.copy()
    measures[::3] = np.nan
    evidence = weigh_evidence(planted.sample(measures), planted.keys)
    assert evidence.convinces
    assert evidence.gain < weigh_evidence(planted.sample(planted.measures), planted.keys).gain


def test_cell_field__density_ratio_written_out():
    rng = np.random.default_rng(1)
    root = rng.normal(0, 1, (3, 2, 2))
    covariance = np.einsum("kab,kcb->kac", root, root) + np.eye(2)
    nothing = np.zeros((0, 2)), np.zeros(0), np.zeros((0, 2))
    looks = Looks(rng.normal(0, 1, (3, 2)), covariance, np.zeros(2), 2 * np.eye(2), *nothing)
    measures = rng.normal(0, 1, (5, 2))
    measures[4, 1] = np.nan
    types = np.array([[0, 1, 2], [0, 2, -1], [1, -1, -1], [1, 2, -1], [0, 1, 2]])
    field = cell_field(looks, measures, types) * QUANTUM

    def density(point, mean, spread):
        away = point - mean
        return np.exp(-0.5 * away @ np.linalg.solve(spread, away)) / (2 * np.pi * np.sqrt(np.linalg.det(spread)))

    for cell in range(4):
        base = density(measures[cell], looks.any_mean, looks.any_covariance)
        for slot, kind in enumerate(types[cell]):
            own = density(measures[cell], looks.mean[kind], covariance[kind])
            expected = 0.0 if kind < 0 else -np.log(MISMEASURED + (1 - MISMEASURED) * own / base)
            assert field[cell, slot] == pytest.approx(expected, abs=1e-6)
    assert (field[4] == 0).all()


def test_robust_scale__logarithm_of_positive_measures_only():
    measures = np.array([[1.0, -1.0], [np.e, 0.0], [np.e**2, 1.0], [np.nan, 2.0]])
    scale = robust_scale(measures)
    assert scale.logged.tolist() == [True, False]
    assert scale.centre.tolist() == pytest.approx([1.0, 0.5])
    standard = scale.standardise(np.array([[np.e**40, 0.5], [-1.0, 0.5]]))
    assert standard[0].tolist() == pytest.approx([4.0, 0.0])
    assert np.isnan(standard[1, 0])
