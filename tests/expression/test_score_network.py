from __future__ import annotations

import numpy as np
import torch

from spatialscope_dist.expression.noise import preconditioning
from spatialscope_dist.expression.score_network import NetworkShape, denoise

SHAPE = NetworkShape(n_genes=10, width=16, n_blocks=2)


def network(seed=0, *, trained=False):
    parameters = SHAPE.draw(seed=seed)
    if trained:
        parameters["genes_out.weight"] = np.random.default_rng(1).normal(0, 1, (10, 16)).astype(np.float32)
    return {name: torch.from_numpy(values) for name, values in parameters.items()}


def run(parameters, noisy, *, level=1.0, types=None, profiles=None):
    rows = len(noisy)
    types = torch.zeros(rows, dtype=torch.int64) if types is None else torch.tensor(types)
    profiles = torch.ones(3, 10) if profiles is None else profiles
    return denoise(parameters, noisy, level=torch.full((rows, 1), level), types=types, profiles=profiles)


def test_draw__shapes_and_seed():
    parameters = SHAPE.draw(seed=0)
    assert sum(values.size for values in parameters.values()) == SHAPE.n_parameters()
    assert {values.dtype for values in parameters.values()} == {np.dtype("float32")}
    again, other = SHAPE.draw(seed=0), SHAPE.draw(seed=1)
    assert all(np.array_equal(values, again[name]) for name, values in parameters.items())
    assert not np.array_equal(parameters["genes_in.weight"], other["genes_in.weight"])


def test_denoise__untrained_network_shrinks_to_the_type_mean():
    noisy = torch.randn(5, 10)
    assert torch.allclose(run(network(), noisy, level=2.0), noisy * preconditioning(2.0)[0])


def test_denoise__keeps_what_has_no_noise():
    noisy = torch.randn(5, 10)
    assert torch.allclose(run(network(trained=True), noisy, level=1e-4), noisy, atol=2e-3)


def test_denoise__level_type_profile_and_genes_matter():
    parameters, noisy = network(trained=True), torch.randn(4, 10)
    profiles = torch.randn(3, 10)
    base = run(parameters, noisy, profiles=profiles, types=[0, 1, 2, 0])
    assert base.shape == (4, 10)
    assert not torch.allclose(base, run(parameters, noisy, profiles=profiles, types=[0, 1, 2, 0], level=0.5))
    moved = run(parameters, noisy, profiles=profiles, types=[1, 1, 2, 0])
    assert not torch.allclose(base[0], moved[0])
    assert torch.equal(base[1:], moved[1:])
    assert not torch.allclose(base[0], run(parameters, noisy, profiles=profiles + 1.0, types=[0, 1, 2, 0])[0])


def test_denoise__types_with_equal_profiles_are_equal():
    parameters, noisy = network(trained=True), torch.randn(2, 10)
    profiles = torch.randn(1, 10).repeat(3, 1)
    first = run(parameters, noisy, profiles=profiles, types=[0, 2])
    assert torch.allclose(first, run(parameters, noisy, profiles=profiles, types=[1, 0]), atol=1e-5)


def test_denoise__a_row_has_the_same_bits_wherever_it_stands_in_a_full_batch():
    shape = NetworkShape(n_genes=101, width=64, n_blocks=2)
    parameters = shape.draw(seed=0)
    parameters["genes_out.weight"] = np.random.default_rng(1).normal(0, 1, (101, 64)).astype(np.float32)
    tensors = {name: torch.from_numpy(values) for name, values in parameters.items()}
    noisy, types = torch.randn(192, 101), torch.arange(192) % 3
    level, profiles, order = torch.rand(192, 1) + 0.1, torch.randn(3, 101), torch.randperm(192)
    whole = denoise(tensors, noisy, level=level, types=types, profiles=profiles)
    moved = denoise(tensors, noisy[order], level=level[order], types=types[order], profiles=profiles)
    assert torch.equal(moved, whole[order])
