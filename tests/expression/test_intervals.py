from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import nbinom, poisson

from spatialscope_dist.expression.allocation import SpotCells, sum_cells
from spatialscope_dist.expression.baselines import BASELINES, baseline_spread
from spatialscope_dist.expression.estimators import draw_spots, estimate_spots, estimate_with_quantiles
from spatialscope_dist.expression.intervals import Spread, draw, quantiles
from spatialscope_dist.expression.noise import chain_keys
from spatialscope_dist.options import DecomposeOptions
from spatialscope_dist.randomness import spot_keys

OPTIONS = DecomposeOptions(count_chains=3, count_sweeps=3, count_burn_in=1, n_steps=2, n_chains=2)
PARTLY = np.r_[np.zeros(5), np.full(20, 0.3), np.full(12, 1.7)].astype(np.float32)
LEVELS = (0.05, 0.5, 0.95)


@pytest.fixture(scope="module")
def pairs(reference) -> tuple[SpotCells, np.ndarray]:
    """400 spots of two Gamma-Poisson cells of types 0 and 1, as the profiles say, and their counts."""
    random, types = np.random.default_rng(0), np.tile([0, 1], 400)
    profiles = reference.profiles
    mean, shape = profiles.mean_counts[types], profiles.dispersion[types]
    truth = random.poisson(mean * random.gamma(shape) / shape).astype(np.float32)
    keys = chain_keys(0, spot_keys("B", map(str, range(400))))
    return SpotCells(truth[::2] + truth[1::2], np.arange(0, 801, 2), types, keys, np.ones(37, np.float32)), truth


def expected(spots: SpotCells, reference) -> Spread:
    """The prior the pairs are drawn from."""
    shape = reference.profiles.dispersion[spots.types]
    return Spread.of(reference.profiles.mean_counts[spots.types], shape=shape)


@pytest.mark.parametrize("exposure", [np.ones(37, np.float32), PARTLY], ids=["whole", "partly"])
def test_quantiles__are_order_statistics_of_the_draws(spots, reference, exposure):
    partly = replace(spots, exposure=exposure)
    spreads = [baseline_spread(partly, reference.profiles, name=name) for name in ("shrinkage", "proportional")]
    draws = np.sort(draw(spreads, partly, n_draws=30), axis=0)
    found = quantiles(spreads, partly, levels=LEVELS, n_draws=30)
    wanted = draws[[2, 30, 57]]  # of 60 draws: floor(.05 * 61) = 3rd, ceil(.5 * 61) = 31st, ceil(.95 * 61) = 58th
    counted = (partly.measured > 0)[partly.spot]
    assert np.array_equal(found[:, counted], wanted[:, counted])


def test_quantiles__of_genes_without_counts_are_those_of_the_distribution(spots, reference):
    hidden = replace(spots, exposure=np.r_[np.zeros(20), np.full(17, 0.4)].astype(np.float32))
    spreads = [baseline_spread(hidden, reference.profiles, name=name) for name in ("type_mean", "sized")]
    found = quantiles(spreads, hidden, levels=LEVELS, n_draws=30)
    small = np.maximum(spreads[0].rate[0], spreads[1].rate[0])[:, :20] < 50  # beyond, quantiles are drawn
    spot_of_small = np.array([small[hidden.spot == spot].all(axis=0) for spot in hidden.spot])
    for cell, gene in np.argwhere(spot_of_small)[::37]:
        (mean, shape), rate = (
            (part[0, cell, gene].astype(float) for part in spreads[0][:2]),
            spreads[1].rate[0, cell, gene],
        )
        k = np.arange(400)
        wanted = (nbinom.cdf(k, shape, shape / (shape + mean)) + poisson.cdf(k, float(rate))) / 2
        assert found[:, cell, gene].tolist() == [int(np.argmax(wanted >= level)) for level in LEVELS]


@pytest.mark.parametrize("name", list(BASELINES))
@pytest.mark.parametrize("exposure", [np.ones(37, np.float32), PARTLY], ids=["whole", "partly"])
def test_baseline_spread__its_draws_have_the_mean_and_sd_of_the_estimate(pairs, reference, name, exposure):
    spots = replace(pairs[0].part(0, 60), exposure=exposure)
    draws = draw([baseline_spread(spots, reference.profiles, name=name)], spots, n_draws=400)
    mean, sd = BASELINES[name](spots, reference.profiles)
    assert draws.mean() == pytest.approx(mean.mean(), rel=0.02)
    assert np.abs(draws.mean(axis=0) - mean).mean() < 0.1 * sd.mean() + 0.05 * mean.mean()
    variance = draws.var(axis=0).mean()
    if name == "shrinkage":  # its shares are known as well as its rates are; the estimate's sd takes them as given
        assert 0.9 < variance / (sd**2).mean() < 2
    else:
        assert variance == pytest.approx((sd**2).mean(), rel=0.05)


def test_draw__integers_that_add_up_to_what_was_measured(spots, reference):
    spreads = [baseline_spread(spots, reference.profiles, name=name) for name in ("sized", "shrinkage")]
    draws = draw(spreads, spots, n_draws=7)
    assert draws.shape == (14, len(spots.types), 37)
    assert np.array_equal(draws, np.rint(draws))
    for one in draws:
        assert np.array_equal(sum_cells(one, spots), spots.counts)


@pytest.mark.parametrize("capture", [1.0, 0.3])
def test_quantiles__hold_the_truth_as_often_as_they_say(pairs, reference, capture):
    whole, truth = pairs
    counts = np.random.default_rng(1).binomial(whole.counts.astype(int), capture).astype(np.float32)
    spots = replace(whole, counts=counts, exposure=np.full(37, capture, np.float32))
    low, high = quantiles([expected(spots, reference)], spots, levels=(0.05, 0.95), n_draws=20)
    seen = (counts > 0)[spots.spot]
    held = (truth >= low) & (truth <= high)
    assert 0.88 < held[seen].mean() < 0.985
    assert (truth < low)[seen].mean() < 0.06
    assert (truth > high)[seen].mean() < 0.07
    assert (high - low)[seen].mean() < 3 * truth.std()


@pytest.mark.parametrize("name", ["counts", "score", "shrinkage+counts", "sized+counts+score"])
def test_estimate_with_quantiles__same_bytes_for_any_division(spots, model, name):
    partly = replace(spots, exposure=PARTLY)
    whole = estimate_with_quantiles(partly, model, OPTIONS, name=name)
    alone = estimate_spots(partly, model, OPTIONS, name=name)
    assert np.array_equal(whole.estimate.mean, alone.mean)
    assert np.array_equal(whole.estimate.sd, alone.sd)
    parts = [
        estimate_with_quantiles(partly.part(low, min(low + 7, 40)), model, OPTIONS, name=name)
        for low in range(0, 40, 7)
    ]
    assert np.array_equal(np.concatenate([part.quantiles for part in parts], axis=1), whole.quantiles)
    low, high = whole.quantiles
    assert (low <= high).all()
    assert low.sum() < alone.mean.sum() < high.sum()


def test_draw_spots__parts_of_a_blend_are_pooled_and_lined_up(spots, model):
    pooled = draw_spots(spots, model, OPTIONS, name="shrinkage+counts", n_draws=60)
    assert pooled.shape == (120, len(spots.types), 37)
    mean, sd = estimate_spots(spots, model, OPTIONS, name="shrinkage+counts")
    assert np.abs(pooled.mean(axis=0) - mean).mean() < 0.25 * sd.mean()
    one = draw_spots(spots, model, OPTIONS, name="shrinkage", n_draws=60)
    assert np.array_equal(pooled[:60], one)


def test_quantiles__a_sampler_that_diverged_stops_nothing(spots):
    rate = np.full((len(spots.types), 37), np.nan, np.float32)
    rate[::2] = np.inf
    assert np.isfinite(quantiles([Spread.of(rate)], spots, levels=LEVELS, n_draws=20)).all()


def test_options__draws_must_reach_the_levels():
    with pytest.raises(ValueError, match="quantile_draws must be at least 39"):
        DecomposeOptions(quantiles=(0.025, 0.975))
    assert DecomposeOptions(quantiles=(0.025, 0.975), quantile_draws=39).quantiles == (0.025, 0.975)
