from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from spatialscope_dist.expression.allocation import (
    align_chains,
    combine_chains,
    exchangeable,
    fill_in,
    residuals,
    shares,
    sum_cells,
)


@pytest.fixture
def rates(spots):
    return np.random.default_rng(0).gamma(0.5, 3.0, (len(spots.types), spots.counts.shape[1])).astype(np.float32)


def test_sum_cells__equal_scalar_reference_on_numpy_and_torch(spots, rates):
    expected = np.zeros(spots.counts.shape)
    for cell, spot in enumerate(spots.spot):
        expected[spot] += rates[cell]
    assert np.allclose(sum_cells(rates, spots), expected, rtol=1e-5)
    chains = torch.from_numpy(np.stack([rates, 2 * rates]))
    assert np.array_equal(sum_cells(chains, spots)[0].numpy(), sum_cells(rates, spots))


def test_batches__whole_spots_each_once(spots):
    seen = []
    for cells, part in spots.batches(7):
        assert cells.stop - cells.start == len(part.types)
        assert len(part.types) <= 7
        assert part.first[0] == 0
        seen.extend(zip(spots.keys[spots.spot[cells]], part.rank, strict=True))
        assert np.array_equal(part.keys[part.spot], spots.keys[spots.spot[cells]])
    assert seen == list(zip(spots.keys[spots.spot], spots.rank, strict=True))
    assert [len(part.counts) for _, part in spots.batches(1)] == [1] * len(spots.counts)


def test_batches__spots_without_cells(spots):
    first = np.array([0, 0, 2, 2, 2, 3])
    part = replace(spots, counts=spots.counts[:5], first=first, types=spots.types[:3], keys=spots.keys[:5])
    assert part.rank.tolist() == [0, 1, 0]
    assert sum(len(batch.counts) for _, batch in part.batches(2)) == 5


def test_fill_in__captured_counts_are_conserved(spots, rates):
    estimate = fill_in(rates, shares(rates, spots), spots)
    assert np.allclose(sum_cells(estimate.mean, spots), spots.counts, rtol=1e-5, atol=1e-4)


def test_fill_in__equal_scalar_reference(spots, rates):
    exposure = np.linspace(0, 2.5, spots.counts.shape[1]).astype(np.float32)
    partly = replace(spots, exposure=exposure)
    estimate = fill_in(rates, shares(rates, partly), partly)
    total = sum_cells(rates, partly)
    for cell, gene in [(0, 0), (3, 5), (10, 14), (20, 15), (30, 36)]:
        spot, t = partly.spot[cell], exposure[gene]
        p, y = rates[cell, gene] / total[spot, gene], partly.counts[spot, gene] * (t > 0)
        rest = max(1 - t, 0) * rates[cell, gene]
        assert np.isclose(estimate.mean[cell, gene], y * p / max(t, 1) + rest, rtol=1e-4, atol=1e-5)
        variance = y * p * (1 - p) / max(t, 1) ** 2 + rest
        assert np.isclose(estimate.sd[cell, gene], variance**0.5, rtol=1e-3, atol=1e-3)


def test_fill_in__sd_is_that_of_integer_draws(spots):
    small = spots.part(0, 1)
    small = replace(small, first=np.array([0, 2]), types=np.zeros(2, int), exposure=np.full(37, 0.4, np.float32))
    rates = np.stack([np.full(37, 2.0), np.full(37, 6.0)]).astype(np.float32)
    random, y = np.random.default_rng(0), small.counts[0].astype(int)
    split = random.binomial(y, 0.25, (20_000, 37)) + random.poisson(0.6 * 2.0, (20_000, 37))
    estimate = fill_in(rates, shares(rates, small), small)
    assert np.allclose(estimate.mean[0], split.mean(axis=0), atol=0.15)
    assert np.allclose(estimate.sd[0], split.std(axis=0), rtol=0.05)


def test_exchangeable__groups(spots):
    kinds = np.array([0, 1, 0, 0, 1, 2, 2, 0])
    some = replace(spots, counts=spots.counts[:3], first=np.array([0, 3, 5, 8]), types=kinds, keys=spots.keys[:3])
    assert [group.tolist() for group in exchangeable(some)] == [[0, 2], [5, 6]]


def test_align_chains__undoes_swaps_of_exchangeable_cells_only(spots, rates):
    one_type = replace(spots, types=np.zeros_like(spots.types))
    swapped = rates.copy()
    for low, high in zip(spots.first[:-1], spots.first[1:], strict=True):
        swapped[low:high] = rates[low:high][::-1]
    order = align_chains(np.stack([rates, swapped]), one_type)
    assert np.array_equal(np.take_along_axis(swapped, order[1][:, None], axis=0), rates)
    different = replace(spots, types=np.arange(len(spots.types)))
    assert np.array_equal(align_chains(np.stack([rates, swapped]), different)[1], np.arange(len(rates)))


def test_align_chains__agree_although_chain_0_says_nothing(spots):
    pair = replace(
        spots.part(0, 1),
        first=np.array([0, 2]),
        types=np.zeros(2, np.int64),
        counts=spots.counts[:1],
        keys=spots.keys[:1],
    )
    for seed in range(20):
        random = np.random.default_rng(seed)
        cells = random.gamma(1, 1, (2, 37))
        swapped = random.random(7) < 0.5
        clear = np.stack([cells[::-1] if swap else cells for swap in swapped]) + random.normal(0, 0.5, (7, 2, 37))
        blurred = cells.mean(axis=0) + random.normal(0, 0.1, (1, 2, 37))
        order = align_chains(np.concatenate([blurred, clear]).astype(np.float32), pair)[1:]
        assert len(np.unique(np.where(swapped, order[:, 1], order[:, 0]))) == 1


def test_combine_chains__total_variance(spots):
    different = replace(spots, types=np.arange(len(spots.types)))
    random = np.random.default_rng(0)
    means = random.gamma(1, 1, (5, len(spots.types), 37)).astype(np.float32)
    variances = random.gamma(1, 1, means.shape).astype(np.float32)
    estimate = combine_chains(means, variances, align_chains(means, different))
    assert np.allclose(estimate.mean, means.mean(axis=0))
    assert np.allclose(estimate.sd**2, means.var(axis=0, ddof=1) + variances.mean(axis=0), rtol=1e-4)


def test_residuals__zero_when_reconciled_and_relative_otherwise(spots, rates):
    estimate = fill_in(rates, shares(rates, spots), spots).mean
    assert np.nanmax(residuals(estimate, spots)) < 1e-5
    assert np.allclose(residuals(2 * estimate, spots), 1, atol=1e-5)
    empty = replace(spots, counts=np.zeros_like(spots.counts))
    assert np.isnan(residuals(estimate, empty)).all()
