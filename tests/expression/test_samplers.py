from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from spatialscope_dist.expression.allocation import Estimate, sum_cells
from spatialscope_dist.expression.langevin import Guidance, Schedule, anneal, depth_factors
from spatialscope_dist.expression.noise import chain_keys, geometric_levels
from spatialscope_dist.expression.samplers import failed_spots, sample_score
from spatialscope_dist.options import DecomposeOptions
from spatialscope_dist.randomness import spot_keys

FAST = DecomposeOptions(n_steps=3, n_chains=4)
LANGEVIN = DecomposeOptions(sampler="langevin", langevin_levels=6, langevin_steps=2, langevin_noise_max=5.0)
EXPOSURE = np.r_[np.zeros(5), np.full(20, 0.3), np.full(12, 1.7)].astype(np.float32)


@pytest.mark.parametrize("options", [FAST, LANGEVIN], ids=["preconditioned", "langevin"])
def test_sample_score__same_bytes_for_any_division_of_the_spots(options, spots, model):
    partly = replace(spots, exposure=EXPOSURE)
    whole = sample_score(partly, model, options)
    for size in (1, 7):
        parts = [sample_score(partly.part(low, min(low + size, 40)), model, options) for low in range(0, 40, size)]
        assert np.array_equal(np.concatenate([part.mean for part in parts]), whole.mean)
        assert np.array_equal(np.concatenate([part.sd for part in parts]), whole.sd)


def test_sample_score__more_cells_in_a_spot_than_a_batch_holds(reference, model, spots):
    types = np.tile(np.arange(4), 20)
    crowd = replace(spots, counts=50 * spots.counts[:1], first=np.array([0, 80]), types=types, keys=spots.keys[:1])
    estimate = sample_score(crowd, model, FAST)
    assert np.allclose(sum_cells(estimate.mean, crowd), crowd.counts, rtol=1e-3)


def test_sample_score__captured_counts_are_conserved(spots, model):
    estimate = sample_score(spots, model, FAST)
    assert np.allclose(sum_cells(estimate.mean, spots), spots.counts, rtol=1e-4, atol=1e-3)
    measured = replace(spots, exposure=np.full(37, 2.0, np.float32))
    assert np.allclose(
        2 * sum_cells(sample_score(measured, model, FAST).mean, spots), spots.counts, rtol=1e-4, atol=1e-3
    )


def test_sample_score__genes_not_measured_are_read_off_the_posterior(spots, model):
    hidden = replace(spots, exposure=np.r_[np.ones(30), np.zeros(7)].astype(np.float32))
    other = replace(hidden, counts=np.where(np.arange(37) >= 30, 999, hidden.counts).astype(np.float32))
    estimate = sample_score(hidden, model, FAST)
    assert np.array_equal(estimate.mean, sample_score(other, model, FAST).mean)
    assert (estimate.mean[:, 30:] > 0).all()
    assert (estimate.sd[:, 30:] > 0).all()


def test_sample_score__one_cell_fully_measured_is_returned_as_it_is(spots, model):
    single = replace(spots, first=np.arange(41), types=np.zeros(40, np.int64), counts=spots.counts, keys=spots.keys)
    estimate = sample_score(single, model, FAST)
    assert np.allclose(estimate.mean, spots.counts, rtol=1e-5)
    assert np.allclose(estimate.sd, 0, atol=2e-3)


def test_sample_score__depends_on_seed_and_spot_only(spots, model):
    ids = [f"s{number}" for number in range(40)]
    base = sample_score(spots, model, FAST).mean
    other = sample_score(replace(spots, keys=chain_keys(1, spot_keys("A", ids))), model, FAST).mean
    several = spots.n_cells[spots.spot] > 1
    assert not np.allclose(base[several], other[several])


def test_sample_score__a_spot_that_fails_leaves_the_others_alone(spots, model):
    counts = spots.counts.copy()
    counts[3, 0] = np.nan
    broken = replace(spots, counts=counts)
    estimate, whole = sample_score(broken, model, FAST), sample_score(spots, model, FAST)
    assert np.flatnonzero(failed_spots(estimate, broken)).tolist() == [3]
    good = spots.spot != 3
    assert np.array_equal(estimate.mean[good], whole.mean[good])


def test_failed_spots__none(spots):
    fine = np.ones((len(spots.types), 37), np.float32)
    assert not failed_spots(Estimate(fine, fine), spots).any()


def test_anneal__gaussian_prior_reaches_the_analytic_posterior():
    # Two cells with prior N(mean, 1), their sum measured: posterior mean and covariance are known on paper.
    mean, measured, levels = torch.tensor([1.0, -2.0]), 3.0, geometric_levels(60, largest=5.0, smallest=0.05)
    random = torch.Generator().manual_seed(0)

    def score(x, level):
        return (mean - x) / (1 + level**2)

    def guidance(x, level):
        return (measured - x.sum(dim=-1, keepdim=True)).expand_as(x) / level

    x = anneal(
        score,
        guidance,
        torch.zeros(4000, 2),
        schedule=Schedule(np.r_[levels, np.full(1500, 0.05)], 1, 2.0),
        normals=lambda step: torch.randn(4000, 2, generator=random),
    )
    prior, seen = np.eye(2) * (1 + 0.05**2), np.ones((1, 2))
    gain = prior @ seen.T / (seen @ prior @ seen.T + 0.05)
    expected = mean.numpy() + (gain * (measured - mean.numpy().sum())).ravel()
    covariance = prior - gain @ seen @ prior
    assert np.allclose(x.mean(dim=0).numpy(), expected, atol=0.08)
    assert np.allclose(np.cov(x.numpy().T), covariance, atol=0.08)


def test_anneal__step_size_and_final_step():
    steps = []
    schedule = Schedule(np.array([2.0, 1.0]), 2, 0.1, final_step=True)

    def normals(step):
        steps.append(step)
        return torch.ones(1)

    x = anneal(lambda x, level: -x / level**2, lambda x, level: 0.0, torch.zeros(1), schedule=schedule, normals=normals)
    expected = 0.0
    for level in (2.0, 2.0, 1.0, 1.0):
        expected = 0.9 * expected + (0.2 * level**2) ** 0.5
    assert steps == [0, 1, 2, 3]
    assert torch.allclose(x, torch.tensor([0.0 * expected]), atol=1e-6)  # the last step goes to the prior's mean


def test_sample_score__langevin_is_told_the_spots_profile_and_not_its_depth(spots, model):
    base = sample_score(spots, model, LANGEVIN)
    deeper = sample_score(replace(spots, counts=4 * spots.counts), model, LANGEVIN)
    assert np.allclose(deeper.mean, 4 * base.mean, rtol=1e-3, atol=1e-4 * base.mean.max())


def test_depth_factors__cells_of_a_spot_have_what_their_types_have(spots, model):
    partly = replace(spots, exposure=EXPOSURE)
    factors, seen, means = depth_factors(partly, model.profiles), EXPOSURE > 0, model.profiles.mean_counts
    for number in range(40):
        measured = sum(partly.counts[number, gene] / EXPOSURE[gene] for gene in range(37) if seen[gene])
        types = partly.types[partly.first[number] : partly.first[number + 1]]
        expected = sum(means[kind, gene] for kind in types for gene in range(37) if seen[gene])
        assert np.isclose(factors[number, 0] * measured, expected, rtol=1e-5)


@pytest.mark.parametrize("clip", [True, False])
def test_guidance__as_written_out_for_one_cell_and_gene(spots, clip):
    few = spots.part(0, 6)
    random = torch.Generator().manual_seed(0)
    x = torch.randn((2, len(few.types) + 3, 37), generator=random)  # three rows of padding
    mean_log = torch.randn((len(few.types) + 3, 37), generator=random)
    target, seen = 5 * torch.rand((6, 37), generator=random), (torch.arange(37) > 4).float()
    gradient = Guidance(target, seen, mean_log, few, clip)(x, 0.5)
    for chain, cell, gene in ((0, 0, 7), (1, len(few.types) - 1, 20), (1, 3, 36)):
        own = few.spot[cell]
        mates = [other for other in range(len(few.types)) if few.spot[other] == own]
        total = sum(float(torch.expm1(x[chain, other, gene] + mean_log[other, gene])) for other in mates)
        residual = float(target[own, gene]) - total
        residual = float(np.clip(residual, -1, 1)) if clip else residual
        value = residual * float(torch.exp(x[chain, cell, gene] + mean_log[cell, gene]))
        assert np.isclose(
            float(gradient[chain, cell, gene]), (np.clip(value, -2, 2) if clip else value) / 0.5, rtol=1e-4
        )
    assert (gradient[..., :5] == 0).all()
    assert (gradient[:, len(few.types) :] == 0).all()
