from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from spatialscope_dist.downstream.spatial_de import (
    Evidence,
    choose_n_basis,
    find_spatial_change,
    fit_overdispersion,
    fit_type_levels,
    smooth_basis,
)

Array = NDArray[np.float64]
N_SPOTS, N_TYPES = 400, 4
ANY = Evidence(0.0, 0.0)


def tissue(n_genes: int, seed: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    positions = rng.uniform(0, 2000, (N_SPOTS, 2))
    cells = rng.multinomial(5, np.full(N_TYPES, 1 / N_TYPES), N_SPOTS)
    profiles = rng.gamma(1.0, 1.0, (N_TYPES, n_genes)) + 0.2
    return positions, cells.astype(float), profiles


def draw(mean: Array, seed: int, shape: float = 4.0) -> Array:
    rng = np.random.default_rng(seed)
    return rng.poisson(mean * rng.gamma(shape, 1 / shape, mean.shape)).astype(float)


def test_find_spatial_change__p_uniform_under_the_null() -> None:
    positions, exposure, profiles = tissue(150, 0)
    counts = draw(exposure @ profiles, 1)
    result = find_spatial_change(
        counts, exposure, profiles, basis=smooth_basis(positions, 6), tested=np.arange(N_TYPES), evidence=ANY
    )
    assert result.degrees == (6, N_SPOTS - N_TYPES - 24)
    for kind in range(N_TYPES):
        assert stats.kstest(result.p[kind], "uniform").pvalue > 1e-3
    assert 0.02 < (result.p < 0.05).mean() < 0.09


def test_find_spatial_change__planted_gradient_is_found_in_its_type_only() -> None:
    positions, exposure, profiles = tissue(60, 2)
    side = positions[:, 1] / 2000 - 0.5
    mean = exposure @ profiles
    profiles[1, :20] += 2.0
    mean[:, :20] = exposure @ profiles[:, :20]
    mean[:, :20] += exposure[:, [1]] * profiles[1, :20] * (np.exp(1.6 * side) - 1)[:, None]
    result = find_spatial_change(
        draw(mean, 3), exposure, profiles, basis=smooth_basis(positions, 6), tested=np.arange(N_TYPES), evidence=ANY
    )
    assert (result.p[1, :20] < 0.01).mean() > 0.8
    assert (result.p[[0, 2, 3], :20] < 0.01).mean() < 0.08
    assert result.log2_sd[1, :20].mean() == pytest.approx(1.6 * side.std() / np.log(2), rel=0.35)


def test_find_spatial_change__row_order_does_not_matter() -> None:
    positions, exposure, profiles = tissue(5, 4)
    counts, basis = draw(exposure @ profiles, 5), smooth_basis(positions, 4)
    order = np.random.default_rng(6).permutation(N_SPOTS)
    first = find_spatial_change(counts, exposure, profiles, basis=basis, tested=np.array([0, 2]), evidence=ANY)
    second = find_spatial_change(
        counts[order],
        exposure[order],
        profiles,
        basis=smooth_basis(positions[order], 4),
        tested=np.array([0, 2]),
        evidence=ANY,
    )
    np.testing.assert_allclose(first.p, second.p, rtol=1e-6)


def test_find_spatial_change__no_freedom_left_is_nan() -> None:
    positions, exposure, profiles = tissue(3, 7)
    few = slice(0, 20)
    result = find_spatial_change(
        np.ones((20, 3)),
        exposure[few],
        profiles,
        basis=smooth_basis(positions[few], 5),
        tested=np.arange(N_TYPES),
        evidence=ANY,
    )
    assert np.isnan(result.p).all()


def sparse(seed: int) -> tuple[Array, Array, Array, Array]:
    """Return positions, exposure, profiles and null counts of genes from hardly any to many counts of each type."""
    positions, exposure, profiles = tissue(400, seed)
    profiles *= 10 ** np.random.default_rng(seed + 1).uniform(-4, 0, profiles.shape)
    return positions, exposure, profiles, draw(exposure @ profiles, seed + 2)


def test_find_spatial_change__tests_only_what_counts_can_tell() -> None:
    positions, exposure, profiles, counts = sparse(20)
    basis, evidence = smooth_basis(positions, 4), Evidence(20.0, 0.1)
    result = find_spatial_change(counts, exposure, profiles, basis=basis, tested=np.arange(N_TYPES), evidence=evidence)
    told = np.isfinite(result.p)
    assert 100 < told.sum() < 0.5 * told.size
    assert (result.expected_counts[told] >= 20).all()
    assert (result.expected_counts / counts.sum(axis=0).clip(1))[told].min() > 0.09
    assert stats.kstest(result.p[told], "uniform").pvalue > 1e-3
    everything = find_spatial_change(counts, exposure, profiles, basis=basis, tested=np.arange(N_TYPES), evidence=ANY)
    np.testing.assert_allclose(everything.p[told], result.p[told])


def test_find_spatial_change__size_is_bounded_where_counts_say_nothing() -> None:
    positions, exposure, profiles, counts = sparse(30)
    result = find_spatial_change(
        counts, exposure, profiles, basis=smooth_basis(positions, 4), tested=np.arange(N_TYPES), evidence=ANY
    )
    few = result.expected_counts < 1
    assert few.sum() > 100
    assert np.nanmedian(result.log2_sd[few]) < 0.2
    assert np.nanmax(result.log2_sd) < 4


def test_fit_type_levels__finds_levels_and_keeps_prior_without_information() -> None:
    _, exposure, profiles = tissue(8, 8)
    exposure = np.concatenate([exposure * 20, np.zeros((N_SPOTS, 1))], axis=1)
    profiles = np.concatenate([profiles, profiles[:1]])
    levels = np.random.default_rng(9).uniform(0.5, 2.0, profiles.shape)
    found, mean = fit_type_levels(np.random.default_rng(10).poisson(exposure @ (profiles * levels)), exposure, profiles)
    np.testing.assert_allclose(found[:N_TYPES], levels[:N_TYPES], rtol=0.25)
    np.testing.assert_allclose(found[N_TYPES], 1)
    np.testing.assert_allclose(mean.sum(), (exposure @ (profiles * levels)).sum(), rtol=0.01)


def test_fit_overdispersion__recovers_the_shape() -> None:
    mean = np.full((20000, 2), 5.0)
    counts = np.stack([draw(mean[:, :1], 11, shape=4.0)[:, 0], np.random.default_rng(12).poisson(mean[:, 1])], axis=1)
    found = fit_overdispersion(counts, mean, n_parameters=1)
    assert found[0] == pytest.approx(0.25, abs=0.03)
    assert found[1] == pytest.approx(0.0, abs=0.01)


def test_smooth_basis__centred_unit_variance_smoothest_first() -> None:
    positions = np.random.default_rng(13).uniform(0, 1000, (500, 2))
    basis = smooth_basis(positions, 9)
    np.testing.assert_allclose(basis.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(basis.std(axis=0), 1)
    assert abs(np.corrcoef(basis[:, 0], positions[:, 1])[0, 1]) > 0.95
    assert abs(np.corrcoef(basis[:, 1], positions[:, 0])[0, 1]) > 0.95
    assert np.linalg.matrix_rank(basis) == 9


@pytest.mark.parametrize(("n_spots", "n_types", "expected"), [(150, 8, 3), (4000, 8, 15), (30, 8, 0), (346, 9, 8)])
def test_choose_n_basis__four_spots_per_coefficient(n_spots: int, n_types: int, expected: int) -> None:
    assert choose_n_basis(15, n_spots=n_spots, n_types=n_types) == expected
