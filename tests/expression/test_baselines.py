from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import digamma

from spatialscope_dist.expression.allocation import sum_cells
from spatialscope_dist.expression.baselines import (
    BASELINES,
    capture_estimate,
    cell_sizes,
    exposures,
    proportional,
    shrinkage,
    sized,
    type_mean,
)

EXPOSURE = np.r_[np.zeros(5), np.full(20, 0.3), np.full(12, 1.7)].astype(np.float32)


def test_proportional__equal_scalar_reference(spots, reference):
    partly = replace(spots, exposure=EXPOSURE)
    mean, mu = proportional(partly, reference.profiles).mean, reference.profiles.mean_counts
    for cell, gene in [(0, 0), (1, 4), (2, 10), (30, 20), (50, 30)]:
        spot = partly.spot[cell]
        kinds = partly.types[partly.first[spot] : partly.first[spot + 1]]
        share = mu[partly.types[cell], gene] / sum(mu[kind, gene] for kind in kinds)
        expected = (
            partly.counts[spot, gene] * share / EXPOSURE[gene] if EXPOSURE[gene] else mu[partly.types[cell], gene]
        )
        assert np.isclose(mean[cell, gene], expected, rtol=1e-4)


def test_cell_sizes__equal_scalar_reference(spots, reference):
    partly, profiles = replace(spots, exposure=EXPOSURE), reference.profiles
    ours, measured = cell_sizes(partly, profiles), EXPOSURE > 0
    for spot in (0, 3, 9):
        cells = np.arange(partly.first[spot], partly.first[spot + 1])
        kinds, size = partly.types[cells], np.ones(len(cells))
        for _ in range(30):
            rate = size[:, None] * profiles.mean_counts[kinds]
            split = partly.counts[spot] * rate / rate.sum(axis=0) * measured
            expected = (profiles.mean_counts[kinds] * EXPOSURE).sum(axis=1)
            size = (profiles.size_shape[kinds] + split.sum(axis=1)) / (profiles.size_shape[kinds] + expected)
        assert np.allclose(ours[cells], size, rtol=1e-4)


def test_shrinkage__equal_scalar_reference(spots, reference):
    partly, profiles = replace(spots, exposure=np.full(37, 0.4, np.float32)), reference.profiles
    sizes, ours = cell_sizes(partly, profiles), shrinkage(partly, profiles, n_rounds=2).mean
    for spot in (1, 5):
        cells = np.arange(partly.first[spot], partly.first[spot + 1])
        mean = sizes[cells, None] * profiles.mean_counts[partly.types[cells]]
        shape = profiles.dispersion[partly.types[cells]]
        weight = mean
        for _ in range(2):
            split = partly.counts[spot] * weight / weight.sum(axis=0)
            weight = np.exp(digamma(shape + split)) / (shape / mean + 0.4)
        split = partly.counts[spot] * weight / weight.sum(axis=0)
        # The shares that are reported are those the rates were computed from.
        rate = (shape + split) / (shape / mean + 0.4)
        assert np.allclose(ours[cells], split + 0.6 * rate, rtol=1e-3, atol=1e-4)


def test_sized__follows_the_size_of_the_cell(reference):
    counts = (3 * reference.profiles.mean_counts[:1]).round()
    spots_of_one = _single(counts)
    assert 2 < cell_sizes(spots_of_one, reference.profiles)[0] < 3.2
    assert np.allclose(sized(spots_of_one, reference.profiles).mean[0], counts[0], rtol=1e-5)


def test_sized__genes_not_measured_get_size_times_type_mean(reference):
    counts = (3 * reference.profiles.mean_counts[:1]).round()
    hidden = replace(_single(counts), exposure=np.r_[np.ones(30), np.zeros(7)].astype(np.float32))
    size = cell_sizes(hidden, reference.profiles)[0]
    assert np.allclose(sized(hidden, reference.profiles).mean[0, 30:], size * reference.profiles.mean_counts[0, 30:])


def test_baselines__measured_counts_are_conserved_at_exposure_one(spots, reference):
    for name in ("proportional", "sized", "shrinkage"):
        estimate = BASELINES[name](spots, reference.profiles)
        assert np.allclose(sum_cells(estimate.mean, spots), spots.counts, rtol=1e-4, atol=1e-3)
        assert np.isfinite(estimate.sd).all()
        assert (estimate.sd >= 0).all()


def test_baselines__do_not_depend_on_the_spots_beside(spots, reference):
    partly = replace(spots, exposure=EXPOSURE)
    for baseline in BASELINES.values():
        whole = baseline(partly, reference.profiles)
        for size in (1, 7):
            parts = [baseline(part, reference.profiles) for _, part in partly.batches(size)]
            assert np.array_equal(np.concatenate([part.mean for part in parts]), whole.mean)
            assert np.array_equal(np.concatenate([part.sd for part in parts]), whole.sd)


def test_type_mean__rows_of_the_profile(spots, reference):
    estimate = type_mean(spots, reference.profiles)
    assert np.array_equal(estimate.mean, reference.profiles.mean_counts[spots.types])


def test_capture_estimate__finds_the_exposure(spots, reference):
    effect = np.r_[np.zeros(7), np.full(30, 2.0)].astype(np.float32)
    totals = np.random.default_rng(0).poisson(0.1 * effect * 5 * reference.profiles.mean_counts.sum(axis=0) * 40)
    cells = np.full(4, 200.0)
    assert np.isclose(capture_estimate(totals, cells, profiles=reference.profiles, effect=effect), 0.1, rtol=0.03)
    assert capture_estimate(np.zeros(37), cells, profiles=reference.profiles, effect=effect) == 1.0


def test_exposures__near_one_is_one():
    effect = np.array([0.0, 1.0, 0.2, 3.0], np.float32)
    assert exposures(0.95, effect)[:2].tolist() == [0.0, 1.0]
    assert np.allclose(exposures(0.5, effect), [0, 0.5, 0.1, 1.5])


def _single(counts):
    from spatialscope_dist.expression.allocation import SpotCells

    return SpotCells(
        counts.astype(np.float32),
        np.array([0, 1]),
        np.zeros(1, np.int64),
        np.zeros(1, np.int64),
        np.ones(37, np.float32),
    )
