from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from spatialscope_dist.expression.count_denoiser import DenoiserShape, Rates, predict, remainder_loss, tell, type_tables
from spatialscope_dist.expression.objectives import thin
from spatialscope_dist.expression.residual_network import draw_parameters


def told_of(model, types, *, parameters=None, level=0.4, visible=None, label_errors=0.0):
    rows = len(types)
    visible = torch.ones(rows, 37) if visible is None else visible
    return tell(
        model.networks["counts"].on(None) if parameters is None else parameters,
        type_tables(model.profiles),
        types=torch.tensor(types),
        level=torch.full((rows, 1), level),
        visible=visible,
        label_errors=torch.full((rows, 1), label_errors),
    )


def test_predict__untrained_is_the_type_mean_times_size(model):
    shape = DenoiserShape(37, 16, 1)
    parameters = {name: torch.from_numpy(v) for name, v in draw_parameters(shape.layers(), seed=0).items()}
    told, seen = told_of(model, [0, 2], parameters=parameters), torch.tensor([[3.0] * 37, [0.0] * 37])
    rates = predict(parameters, seen.log1p(), seen.sum(dim=1, keepdim=True), told)
    for row, kind in enumerate((0, 2)):
        mean = model.profiles.mean_counts[kind]
        size = (3.0 * 37 * (row == 0) + 20) / (0.4 * mean.sum() + 20)
        assert np.allclose(rates.log_rate[row].exp(), size * mean, rtol=1e-4)
        assert np.allclose(rates.log_shape[row].exp(), model.profiles.dispersion[kind], rtol=1e-4)


def test_predict__depends_on_all_it_is_told(model):
    parameters, seen = model.networks["counts"].on(None), torch.arange(37.0)[None]
    half = torch.ones(1, 37)
    half[:, ::2] = 0
    tellings = [
        {"types": [0]},
        {"types": [1]},
        {"types": [0], "level": 0.1},
        {"types": [0], "visible": half},
        {"types": [0], "label_errors": 0.1},
    ]
    found = [
        predict(parameters, seen.log1p(), seen.sum(dim=1, keepdim=True), told_of(model, **told)) for told in tellings
    ]
    assert all(not torch.allclose(found[0].log_rate, other.log_rate) for other in found[1:])


def test_remainder_loss__is_the_negative_binomial_likelihood():
    random = np.random.default_rng(0)
    rate, shape = random.gamma(1, 3, (5, 7)), random.gamma(2, 1, (5, 7))
    left, remainder = random.uniform(0.1, 1, (5, 7)), random.poisson(2, (5, 7))
    rates = Rates(torch.tensor(np.log(rate)), torch.tensor(np.log(shape)))
    loss = float(remainder_loss(rates, torch.tensor(remainder.astype(float)), torch.tensor(left)))
    mean = left * rate
    log_likelihood = stats.nbinom(shape, shape / (shape + mean)).logpmf(remainder)
    constant = -torch.lgamma(torch.tensor(remainder + 1.0)).numpy()
    assert loss == pytest.approx(-(log_likelihood - constant).mean(), rel=1e-5)


def test_thin__parts_add_up_and_hidden_genes_are_not_seen(reference):
    counts = reference.counts[np.arange(200)]
    cells = thin(counts, np.random.default_rng(0))
    assert np.array_equal(cells.seen + cells.remainder, counts.toarray())
    assert (cells.seen[cells.visible == 0] == 0).all()
    assert ((cells.level > 0) & (cells.level < 1)).all()
    complete = (cells.visible == 1).all(axis=1)
    assert 0.5 < complete.mean() < 0.85
    shown, total = cells.seen[complete].sum(axis=1), counts.toarray()[complete].sum(axis=1)
    expected = cells.level[complete, 0] * total
    spread = np.sqrt(total * cells.level[complete, 0] * (1 - cells.level[complete, 0]))
    assert np.abs((shown - expected) / np.maximum(spread, 1)).max() < 5
