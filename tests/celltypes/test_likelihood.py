"""Likelihood tables against adaptive integration, far beyond RCTD's caps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import poisson

from spatialscope_dist.celltypes.likelihood import density, likelihood_table, log_likelihoods


def _scalar(count, rate, overdispersion, kind):
    centre = np.log(max(count, 0.3) / rate)

    def integrand(z):
        return poisson.pmf(count, rate * np.exp(z)) * density(np.array([z]), overdispersion, kind)[0]

    joins = {-3 * overdispersion, 0.0, 3 * overdispersion, centre}
    joins |= {centre + s * width for s in (-1, 1) for width in (0.05, 0.3, 1.0, 3.0)}
    points = sorted(p for p in joins if -25 < p < 15)
    edges = [-25.0, *points, 15.0]
    return sum(
        quad(integrand, a, b, epsabs=0, epsrel=1e-10, limit=200)[0] for a, b in zip(edges[:-1], edges[1:], strict=True)
    )


def test_density__integrates_to_one():
    for kind in ("heavy_tailed", "normal"):
        inside = quad(lambda z: density(np.array([z]), 0.5, kind)[0], 0, 1.5)[0]  # noqa: B023
        outside = quad(lambda z: density(np.array([z]), 0.5, kind)[0], 1.5, np.inf)[0]  # noqa: B023
        assert 2 * (inside + outside) == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("kind", ["heavy_tailed", "normal"])
@pytest.mark.parametrize("overdispersion", [0.1, 0.52, 1.5])
def test_log_likelihoods__adaptive_integration(kind, overdispersion):
    table = likelihood_table(overdispersion, kind=kind, max_count=5000)
    cases = [
        (0, 0.003),
        (0, 5.0),
        (1, 0.02),
        (3, 2.1),
        (40, 37.0),
        (100, 160.0),
        (256, 300.0),
        (700, 650.0),
        (4321, 4000.0),
    ]
    if kind == "heavy_tailed":
        cases += [(7, 0.01), (150, 20.0), (900, 3000.0)]
    found = log_likelihoods(np.array([c for c, _ in cases]), np.array([r for _, r in cases]), table)[:, 0]
    expected = np.log([_scalar(count, rate, overdispersion, kind) for count, rate in cases])
    assert np.allclose(found, expected, atol=2e-3)


def test_log_likelihoods__derivatives_match_differences():
    table = likelihood_table(0.3, max_count=3000)
    counts = np.array([0.0, 2, 17, 90, 1234])
    rates = np.array([0.4, 3.0, 12.3, 130.0, 1500.0])
    at, low, high = (log_likelihoods(counts, rates * (1 + d), table) for d in (0, -1e-4, 1e-4))
    assert np.allclose(at[:, 1], (high[:, 0] - low[:, 0]) / (2e-4 * rates), rtol=1e-3, atol=1e-5)
    assert np.allclose(at[:, 2], (high[:, 1] - low[:, 1]) / (2e-4 * rates), rtol=2e-2, atol=1e-3)


def test_log_likelihoods__does_not_depend_on_the_largest_count():
    counts, rates = np.array([3.0, 250, 255]), np.array([2.0, 240.0, 90.0])
    small = log_likelihoods(counts, rates, likelihood_table(0.4, max_count=300))
    large = log_likelihoods(counts, rates, likelihood_table(0.4, max_count=20_000))
    assert np.allclose(small, large, atol=1e-4)


def test_log_likelihoods__no_cap():
    table = likelihood_table(0.5, max_count=2000)
    deep = log_likelihoods(np.array([2000.0, 2000.0]), np.array([1900.0, 500.0]), table)[:, 0]
    assert deep[0] - deep[1] > 2
    extreme = log_likelihoods(np.array([2000.0, 0.0]), np.array([1e9, 1e9]), table)
    assert np.isfinite(extreme).all()


def test_log_likelihoods__count_beyond_the_table():
    with pytest.raises(ValueError, match="count of 500"):
        log_likelihoods(np.array([500.0]), np.array([1.0]), likelihood_table(0.5, max_count=100))
