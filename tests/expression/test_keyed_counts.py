from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from spatialscope_dist.expression.keyed_counts import STREAM_WORDS, compiled_draws
from spatialscope_dist.randomness import key_of, philox, to_unit

N_DRAWS = 20_000


def stream_of(gene):
    stream = np.zeros(STREAM_WORDS, np.uint64)
    compiled_draws().begin(stream, key_of("test"), gene, 1, 2)
    return stream


def draws_of(function, *arguments):
    return np.array([function(stream_of(gene), *arguments) for gene in range(N_DRAWS)])


def chi_square_p(counts, probabilities):
    """Return the p-value of observed counts, rare outcomes joined."""
    keep = probabilities * counts.sum() >= 5
    observed = np.r_[counts[keep], counts[~keep].sum()]
    expected = np.r_[probabilities[keep], 1 - probabilities[keep].sum()] * counts.sum()
    usable = expected > 1e-9
    if usable.sum() == 1:
        return float(observed[usable][0] == counts.sum())
    return stats.chisquare(observed[usable], expected[usable] * observed.sum() / expected[usable].sum()).pvalue


def test_uniform__the_bits_are_those_of_philox():
    key, stream = key_of("test"), stream_of(7)
    expected = [to_unit(int(word)) for block in (0, 1) for word in philox(np.int64(key), (block, 7, 1, 2))]
    assert [compiled_draws().uniform(stream) for _ in range(8)] == expected


def test_mirror__complements_until_the_next_stream_begins():
    uniform, normal = compiled_draws().uniform, compiled_draws().normal
    plain, mirrored = stream_of(7), stream_of(7)
    compiled_draws().mirror(mirrored)
    assert np.allclose([uniform(plain) + uniform(mirrored) for _ in range(9)], 1, atol=1e-15)
    assert np.allclose([normal(plain) + normal(mirrored) for _ in range(99)], 0, atol=1e-8)
    compiled_draws().begin(mirrored, key_of("test"), 7, 1, 2)
    assert uniform(mirrored) == uniform(stream_of(7))


def test_normal__is_the_quantile_of_the_uniform():
    uniforms, normals = draws_of(compiled_draws().uniform), draws_of(compiled_draws().normal)
    assert (np.abs(uniforms - 0.5) > 0.48).sum() > 100
    assert np.allclose(normals, stats.norm.ppf(uniforms), rtol=2e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [0.05, 0.7, 1.0, 3.5, 200.0])
def test_gamma__distribution(shape):
    assert stats.kstest(draws_of(compiled_draws().gamma, shape), stats.gamma(shape).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("n", "p"), [(1, 0.3), (20, 0.02), (20, 0.97), (60, 0.5), (3000, 0.4), (10**6, 0.9)])
def test_binomial__distribution(n, p):
    drawn = draws_of(compiled_draws().binomial, n, p)
    assert drawn.min() >= 0
    assert drawn.max() <= n
    low, high = stats.binom(n, p).ppf([1e-9, 1 - 1e-9]).astype(int)
    if high - low < 300:
        counts = np.bincount(drawn - low, minlength=high - low + 1)
        assert chi_square_p(counts, stats.binom(n, p).pmf(np.arange(low, low + len(counts)))) > 1e-3
    assert abs(drawn.mean() - n * p) < 5 * (n * p * (1 - p) / N_DRAWS) ** 0.5
    assert 0.95 < drawn.var() / (n * p * (1 - p)) < 1.05


def test_binomial__certain_outcomes():
    binomial = compiled_draws().binomial
    assert [binomial(stream_of(0), *case) for case in ((0, 0.5), (9, 0.0), (9, 1.0))] == [0, 0, 9]


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 128, 129])
def test_halve__distribution(n):
    drawn = draws_of(compiled_draws().halve, n)
    assert chi_square_p(np.bincount(drawn, minlength=n + 1), stats.binom(n, 0.5).pmf(np.arange(n + 1))) > 1e-3


@pytest.mark.parametrize("mean", [0.3, 9.9, 10.1, 400.0])
def test_poisson__distribution(mean):
    drawn = draws_of(compiled_draws().poisson, mean)
    counts = np.bincount(drawn)
    assert chi_square_p(counts, stats.poisson(mean).pmf(np.arange(len(counts)))) > 1e-3


@pytest.mark.parametrize("count", [0, 3, 16, 17, 500])
def test_split__every_part_is_binomial_and_all_is_given(count):
    weights, shares = np.array([2.0, 0.0, 5.0, 1.0]), np.array([2, 0, 5, 1]) / 8
    out, drawn = np.zeros(4, np.int64), []
    for gene in range(N_DRAWS):
        compiled_draws().split(stream_of(gene), count, weights, out, 4)
        drawn.append(out.copy())
    drawn = np.array(drawn)
    assert (drawn.sum(axis=1) == count).all()
    assert (drawn >= 0).all()
    assert (drawn[:, 1] == 0).all()
    for part in (0, 2, 3):
        counts = np.bincount(drawn[:, part], minlength=count + 1)
        assert chi_square_p(counts, stats.binom(count, shares[part]).pmf(np.arange(count + 1))) > 1e-3
    expected = -count * shares[0] * shares[2]
    assert abs(np.cov(drawn[:, 0], drawn[:, 2])[0, 1] - expected) < 0.05 * count * shares[0] + 1e-9


def test_split__one_part_takes_all():
    out = np.zeros(1, np.int64)
    compiled_draws().split(stream_of(0), 40, np.array([0.3]), out, 1)
    assert out.tolist() == [40]
