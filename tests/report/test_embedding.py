from __future__ import annotations

import sys

import numpy as np
import pytest

from spatialscope_dist.steps.embedding import embed, principal_components


@pytest.fixture(scope="module")
def cells() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    means, kinds = random.gamma(0.5, 4.0, (3, 50)) + 0.05, np.repeat(np.arange(3), 40)
    return random.poisson(means[kinds]).astype(np.float32), kinds


def test_principal_components__are_those_of_the_covariance(cells):
    counts, _ = cells
    total = counts.sum(axis=1, keepdims=True)
    logs = np.log1p(counts * np.median(total) / total)
    found = principal_components(counts, n_components=5)
    wanted = np.linalg.eigvalsh(np.cov(logs, rowvar=False))[::-1][:5]
    assert np.allclose(np.cov(found, rowvar=False), np.diag(wanted), atol=1e-8 * wanted[0])


@pytest.mark.parametrize("method", ["umap", "pca"])
def test_embed__types_lie_apart_and_places_come_again(cells, method):
    counts, kinds = cells
    points, used = embed(counts, method=method, seed=1)
    again, _ = embed(counts, method=method, seed=1)
    assert np.array_equal(points, again)
    assert used.lower() == method
    assert points.shape == (120, 2)
    centres = np.array([points[kinds == kind].mean(axis=0) for kind in range(3)])
    nearest = ((points[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == kinds).mean() > 0.9
    assert "umap.parametric_umap" not in sys.modules


def test_embed__few_cells_are_placed_by_components(cells):
    points, used = embed(cells[0][:3, :1], method="umap", seed=0)
    assert used == "PCA"
    assert points.shape == (3, 2)
