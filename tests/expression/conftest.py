"""A small reference drawn from known programmes, and spots made of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse as sp

from spatialscope_dist.expression.allocation import SpotCells
from spatialscope_dist.expression.count_denoiser import DenoiserShape
from spatialscope_dist.expression.model import ExpressionModel, Network
from spatialscope_dist.expression.noise import chain_keys
from spatialscope_dist.expression.objectives import TrainingData
from spatialscope_dist.expression.profiles import ReferenceProfiles, reference_profiles, split_cells
from spatialscope_dist.expression.residual_network import draw_parameters, settle_torch
from spatialscope_dist.expression.score_network import NetworkShape
from spatialscope_dist.randomness import spot_keys

N_TYPES, N_GENES = 4, 37


@dataclass(frozen=True)
class Reference:
    counts: sp.csr_matrix
    types: np.ndarray
    profiles: ReferenceProfiles
    train: np.ndarray
    held_out: np.ndarray

    def data(self) -> TrainingData:
        return TrainingData(self.counts, self.types, self.train, self.held_out, self.profiles)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    settle_torch()


@pytest.fixture(scope="session")
def reference() -> Reference:
    random = np.random.default_rng(1)
    means = random.gamma(0.7, 4.0, (N_TYPES, N_GENES)) + 0.05
    types = np.repeat(np.arange(N_TYPES), 60)
    programme = random.normal(0, 0.6, (N_TYPES, N_GENES))
    activity, size = random.normal(size=(len(types), 1)), random.gamma(8, 1 / 8, (len(types), 1))
    counts = sp.csr_matrix(random.poisson(size * means[types] * np.exp(activity * programme[types])))
    train, held_out = split_cells(types, share=0.25, seed=0)
    profiles = reference_profiles(counts[train], types[train], n_types=N_TYPES)
    return Reference(counts, types, profiles, train, held_out)


@pytest.fixture(scope="session")
def model(reference) -> ExpressionModel:
    """A model with random weights, output layers included: networks that have learnt nothing."""
    random, networks = np.random.default_rng(5), {}
    for name, shape in (("score", NetworkShape(N_GENES, 24, 2)), ("counts", DenoiserShape(N_GENES, 24, 2))):
        parameters = draw_parameters(shape.layers(), seed=3)
        size = parameters["genes_out.weight"].shape
        parameters["genes_out.weight"] = random.normal(0, 0.2, size).astype(np.float32)
        networks[name] = Network(shape, parameters)
    genes = tuple(f"g{number}" for number in range(N_GENES))
    return ExpressionModel(genes, ("a", "b", "c", "d"), networks, (0.02, 20.0), reference.profiles, {"seed": 3})


@pytest.fixture(scope="session")
def spots(reference) -> SpotCells:
    random = np.random.default_rng(2)
    n_cells = random.integers(1, 6, 40)
    rows = random.choice(len(reference.types), n_cells.sum())
    first = np.r_[0, np.cumsum(n_cells)].astype(np.int64)
    counts = np.add.reduceat(reference.counts[rows].toarray(), first[:-1], axis=0).astype(np.float32)
    keys = chain_keys(0, spot_keys("A", [f"s{number}" for number in range(len(n_cells))]))
    return SpotCells(counts, first, reference.types[rows].astype(np.int64), keys, np.ones(N_GENES, np.float32))
