from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spatialscope_dist.expression.allocation import SpotCells, sum_cells
from spatialscope_dist.expression.model import Network
from spatialscope_dist.expression.noise import chain_keys
from spatialscope_dist.expression.residual_network import draw_parameters
from spatialscope_dist.expression.split_gibbs import draw_counts, sample_counts
from spatialscope_dist.options import DecomposeOptions
from spatialscope_dist.randomness import spot_keys

OPTIONS = DecomposeOptions(count_chains=3, count_sweeps=4, count_burn_in=1)
EXPOSURE = np.r_[np.zeros(5), np.full(20, 0.3), np.full(12, 1.7)].astype(np.float32)


@pytest.mark.parametrize("exposure", [np.ones(37, np.float32), EXPOSURE], ids=["whole", "partly"])
def test_sample_counts__same_bytes_for_any_division_of_the_spots(spots, model, exposure):
    partly = replace(spots, exposure=exposure)
    whole = sample_counts(partly, model, OPTIONS)
    for size in (1, 7):
        parts = [sample_counts(partly.part(low, min(low + size, 40)), model, OPTIONS) for low in range(0, 40, size)]
        assert np.array_equal(np.concatenate([part.mean for part in parts]), whole.mean)
        assert np.array_equal(np.concatenate([part.sd for part in parts]), whole.sd)


def test_sample_counts__order_of_the_spots_does_not_matter(spots, model):
    backwards, cells = spots.select(np.arange(40)[::-1])
    assert np.array_equal(
        sample_counts(backwards, model, OPTIONS).mean, sample_counts(spots, model, OPTIONS).mean[cells]
    )


def test_sample_counts__captured_counts_are_conserved(spots, model):
    estimate = sample_counts(spots, model, OPTIONS)
    assert np.allclose(sum_cells(estimate.mean, spots), spots.counts, rtol=1e-4, atol=1e-3)
    doubled = replace(spots, exposure=np.full(37, 2.0, np.float32))
    assert np.allclose(2 * sum_cells(sample_counts(doubled, model, OPTIONS).mean, spots), spots.counts, rtol=1e-4)


def test_sample_counts__more_cells_in_a_spot_than_a_batch_holds(model, spots):
    crowd = replace(
        spots,
        counts=50 * spots.counts[:1],
        first=np.array([0, 80]),
        types=np.tile(np.arange(4), 20),
        keys=spots.keys[:1],
    )
    assert np.allclose(sum_cells(sample_counts(crowd, model, OPTIONS).mean, crowd), crowd.counts, rtol=1e-3)


def test_sample_counts__one_cell_fully_measured_is_returned_as_it_is(spots, model):
    single = replace(spots, first=np.arange(41), types=np.zeros(40, np.int64))
    estimate = sample_counts(single, model, OPTIONS)
    assert np.array_equal(estimate.mean, spots.counts)
    assert (estimate.sd == 0).all()


def test_sample_counts__genes_not_measured_are_imputed_from_the_others(spots, model):
    hidden = replace(spots, exposure=np.r_[np.ones(30), np.zeros(7)].astype(np.float32))
    other = replace(hidden, counts=np.where(np.arange(37) >= 30, 999, hidden.counts).astype(np.float32))
    estimate = sample_counts(hidden, model, OPTIONS)
    assert np.array_equal(estimate.mean, sample_counts(other, model, OPTIONS).mean)
    assert (estimate.mean[:, 30:] > 0).all()
    assert (estimate.sd[:, 30:] > 0).all()


def test_sample_counts__depends_on_seed_and_spot_only(spots, model):
    other = replace(spots, keys=chain_keys(1, spot_keys("A", [f"s{number}" for number in range(40)])))
    several = spots.n_cells[spots.spot] > 1
    assert not np.allclose(
        sample_counts(spots, model, OPTIONS).mean[several], sample_counts(other, model, OPTIONS).mean[several]
    )


def test_draw_counts__integers_that_add_up_and_agree_with_mean_and_sd(spots, model):
    options = OPTIONS.model_copy(update={"count_chains": 40})
    posterior = draw_counts(spots, model, options)
    assert posterior.draws.shape == (120, len(spots.types), 37)
    assert np.array_equal(posterior.draws, np.rint(posterior.draws))
    for draw in posterior.draws[::17]:
        assert np.array_equal(sum_cells(draw, spots), spots.counts)
    mean, sd = sample_counts(spots, model, options)
    assert np.array_equal(posterior.estimate.mean, mean)
    assert np.abs(posterior.draws.mean(axis=0) - mean).mean() < 0.15 * sd.mean()
    assert np.abs(posterior.draws.std(axis=0) - sd).mean() < 0.1 * sd.mean()
    assert posterior.draws.var(axis=0).mean() == pytest.approx((sd**2).mean(), rel=0.1)


def test_draw_counts__what_was_not_captured_is_drawn_too(spots, model):
    thin = replace(spots, exposure=np.full(37, 0.2, np.float32))
    options = OPTIONS.model_copy(update={"count_chains": 60})
    posterior = draw_counts(thin, model, options)
    mean, sd = posterior.estimate
    assert np.array_equal(posterior.draws, np.rint(posterior.draws))
    assert posterior.draws.mean() == pytest.approx(mean.mean(), rel=0.03)
    assert (posterior.draws.std(axis=0) ** 2).mean() == pytest.approx((sd**2).mean(), rel=0.15)


def test_sample_counts__an_untrained_network_is_the_model_it_stands_for(reference, model):
    """With a network that says type mean times size, shares of two types are those of Gamma-Poisson cells."""
    shape = model.networks["counts"].shape
    plain = replace(model, networks={"counts": Network(shape, draw_parameters(shape.layers(), seed=0))})
    types, n_spots = np.tile([0, 1], 300), 300
    random = np.random.default_rng(0)
    truth = random.poisson(reference.profiles.mean_counts[types])
    counts = (truth[::2] + truth[1::2]).astype(np.float32)
    keys = chain_keys(0, spot_keys("B", map(str, range(n_spots))))
    pairs = SpotCells(counts, np.arange(0, 601, 2), types, keys, np.ones(37, np.float32))
    mean = sample_counts(pairs, plain, OPTIONS).mean
    share = reference.profiles.mean_counts[:2] / reference.profiles.mean_counts[:2].sum(axis=0)
    assert np.allclose(mean[::2].sum(axis=0) / counts.sum(axis=0), share[0], atol=0.03)
