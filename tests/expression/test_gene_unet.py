from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from spatialscope_dist.expression.gene_unet import UNetShape
from spatialscope_dist.expression.model import Network, pack_model, unpack_model
from spatialscope_dist.expression.samplers import sample_score
from spatialscope_dist.options import DecomposeOptions

SHAPE = UNetShape(n_genes=37, channels=8, n_levels=2)


def tensors(*, trained):
    parameters = SHAPE.draw(seed=0)
    if trained:
        size = parameters["genes_out.weight"].shape
        parameters["genes_out.weight"] = np.random.default_rng(0).normal(0, 1, size).astype(np.float32)
    return {name: torch.from_numpy(values) for name, values in parameters.items()}


def run(parameters, noisy, level=1.0, kind=0):
    rows = len(noisy)
    profiles = torch.arange(3.0)[:, None].repeat(1, 37)
    return SHAPE.denoise(
        parameters, noisy, level=torch.full((rows, 1), level), types=torch.full((rows,), kind), profiles=profiles
    )


def test_denoise__untrained_only_shrinks_and_trained_heeds_level_and_profile():
    noisy = torch.randn(4, 37)
    assert torch.allclose(run(tensors(trained=False), noisy), noisy / 2)
    base = run(tensors(trained=True), noisy)
    assert base.shape == noisy.shape
    assert not torch.allclose(base, run(tensors(trained=True), noisy, level=0.9), atol=1e-2)
    assert not torch.allclose(base, run(tensors(trained=True), noisy, kind=2))


def test_n_parameters__as_drawn():
    assert sum(values.size for values in SHAPE.draw(seed=0).values()) == SHAPE.n_parameters()


def test_sample_score__by_a_unet_read_back_from_its_files(spots, model):
    parameters = {name: tensor.numpy() for name, tensor in tensors(trained=True).items()}
    other = replace(model, networks={"score": Network(SHAPE, parameters)})
    again = unpack_model(*pack_model(other))
    options = DecomposeOptions(n_steps=2, n_chains=2)
    mean = sample_score(spots, other, options).mean
    assert np.array_equal(mean, sample_score(spots, again, options).mean)
    assert mean.sum() == pytest.approx(spots.counts.sum(), rel=1e-3)
