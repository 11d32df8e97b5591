from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from spatialscope_dist.expression.baselines import BASELINES
from spatialscope_dist.expression.choice import (
    Rehearsal,
    cell_cosines,
    choose,
    draw_cells,
    random_compositions,
    rehearse,
)
from spatialscope_dist.expression.estimators import BLENDS, candidates
from spatialscope_dist.expression.model import Network
from spatialscope_dist.expression.objectives import OBJECTIVES
from spatialscope_dist.expression.training import fit
from spatialscope_dist.options import DecomposeOptions, TrainOptions

OPTIONS = DecomposeOptions(n_steps=4, n_chains=4)


def spots_of_held_out(reference, *, n_spots=60, exposure=1.0):
    wanted = random_compositions([3] * n_spots, reference.held_out, reference.types, seed=0)
    drawn = draw_cells(wanted, reference.held_out, reference.types, seed=0)
    rows = np.concatenate(drawn)
    return rehearse(
        reference.counts[rows].toarray(),
        reference.types[rows],
        n_cells=np.array([len(cells) for cells in drawn]),
        exposure=np.full(37, exposure, np.float32),
        seed=0,
    )


def test_draw_cells__types_as_asked_held_out_only_no_cell_twice(reference):
    asked = [np.array([0, 0, 2]), np.array([1]), np.array([3] * 999)]
    drawn = draw_cells(asked, reference.held_out, reference.types, seed=0)
    assert [reference.types[cells].tolist() for cells in drawn] == [[0, 0, 2], [1]]
    assert all(np.isin(cells, reference.held_out).all() for cells in drawn)
    assert len(set(drawn[0].tolist())) == 3


def test_rehearse__counts_add_up_and_exposure_thins(reference):
    whole, thin = spots_of_held_out(reference), spots_of_held_out(reference, exposure=0.2)
    expected = np.add.reduceat(whole.truth, whole.spots.first[:-1], axis=0)
    assert np.array_equal(whole.spots.counts, expected)
    assert np.isclose(thin.spots.counts.sum() / expected.sum(), 0.2, rtol=0.05)
    assert np.array_equal(spots_of_held_out(reference, exposure=2.0).spots.counts, 2 * expected)
    assert np.array_equal(thin.spots.counts, spots_of_held_out(reference, exposure=0.2).spots.counts)


def test_cell_cosines__matches_cells_without_a_name(reference):
    rehearsal = spots_of_held_out(reference)
    same = replace(rehearsal.spots, types=np.zeros_like(rehearsal.spots.types))
    shuffled = rehearsal.truth.reshape(60, 3, 37)[:, ::-1].reshape(-1, 37)
    assert np.allclose(cell_cosines(shuffled, Rehearsal(same, rehearsal.truth)), 1)
    assert cell_cosines(shuffled, rehearsal).mean() < 0.99


def test_cell_cosines__single_cells_are_scored_on_genes_not_measured(reference):
    rows = reference.held_out[:20]
    exposure = np.r_[np.ones(30), np.zeros(7)].astype(np.float32)
    counts = reference.counts[rows].toarray()
    rehearsal = rehearse(counts, reference.types[rows], n_cells=np.ones(20, int), exposure=exposure, seed=0)
    guess = counts.astype(np.float32).copy()
    guess[:, :30] = -5
    scores = cell_cosines(guess, rehearsal)
    assert np.allclose(scores[counts[:, 30:].sum(axis=1) > 0], 1)


def test_choose__untrained_noise_loses_to_a_baseline(reference, model):
    choice = choose(spots_of_held_out(reference), model, OPTIONS)
    assert choice.estimator in BASELINES
    assert choice.cosines[choice.estimator] == max(choice.cosines[name] for name in BASELINES)
    assert "no network or blend beats it" in choice.reason
    assert set(choice.cosines) == set(candidates(model)) == {*BASELINES, "counts", "score", *BLENDS}


@pytest.mark.parametrize("name", ["counts", "score"])
def test_choose__trained_network_wins_where_types_hold_programmes(reference, model, name):
    options = TrainOptions(
        width=48, n_blocks=1, max_steps=400, score_steps=400, batch_cells=128, learning_rate=4e-3, patience_checks=100
    )
    objective = OBJECTIVES[name](reference.data(), options, torch.device("cpu"))
    state = fit(objective, reference.data(), options, seed=0)
    trained = replace(model, networks={name: Network(objective.shape, state.best)})
    choice = choose(spots_of_held_out(reference), trained, OPTIONS)
    assert choice.cosines[name] > choice.cosines["proportional"] > choice.cosines["type_mean"]
    assert name in choice.estimator
    assert "best on simulated spots" in choice.reason


@pytest.mark.parametrize("estimator", ["proportional", "counts", "sized+counts+score"])
def test_choose__a_set_estimator_is_kept(reference, model, estimator):
    options = OPTIONS.model_copy(update={"estimator": estimator})
    choice = choose(spots_of_held_out(reference, n_spots=10), model, options)
    assert choice.estimator == estimator
    assert "decompose.estimator" in choice.reason
