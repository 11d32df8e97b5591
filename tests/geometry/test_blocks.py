"""Blocks: every spot owned once, balanced; closures sufficient for one exact sweep."""

from __future__ import annotations

import numpy as np
import pytest

from spatialscope_dist.geometry.blocks import assign_blocks, sweep_closure
from spatialscope_dist.geometry.colouring import greedy_colouring
from spatialscope_dist.geometry.neighbours import radius_graph
from spatialscope_dist.randomness import spot_keys


@pytest.mark.parametrize("n_blocks", [1, 2, 5, 16])
def test_assign_blocks__balanced(n_blocks):
    points = np.random.default_rng(0).uniform(0, 100, (1000, 2))
    blocks = assign_blocks(points, np.ones(1000, np.int64), n_blocks=n_blocks)
    sizes = np.bincount(blocks, minlength=n_blocks)
    assert len(sizes) == n_blocks
    assert sizes.min() >= 0.7 * 1000 / n_blocks


def test_assign_blocks__fewer_spots_than_blocks():
    blocks = assign_blocks(np.array([[0.0, 0], [1, 1]]), np.ones(2, np.int64), n_blocks=5)
    assert blocks.max() < 5


def _closure(neighbours, colours, own):
    recomputed, todo = set(), list(own)
    while todo:
        node = todo.pop()
        for other in neighbours[node]:
            if colours[other] < colours[node] and other not in own and other not in recomputed:
                recomputed.add(other)
                todo.append(other)
    inside = set(own) | recomputed
    return recomputed, {w for v in inside for w in neighbours[v]} - inside


@pytest.mark.parametrize("n_blocks", [1, 2, 5, 16])
def test_sweep_closure__scalar_reference(n_blocks):
    points = np.random.default_rng(1).uniform(0, 30, (300, 2))
    graph = radius_graph(points, mean_degree=6)
    neighbours = [graph.indices[a:b].tolist() for a, b in zip(graph.indptr[:-1], graph.indptr[1:], strict=True)]
    colours = greedy_colouring(graph, spot_keys("s", [str(i) for i in range(300)]))
    blocks = assign_blocks(points, np.ones(300, np.int64), n_blocks=n_blocks)
    for b in range(n_blocks):
        own = np.flatnonzero(blocks == b)
        found = sweep_closure(graph, colours, own)
        recomputed, read = _closure(neighbours, colours, set(own.tolist()))
        assert found.own.tolist() == own.tolist()
        assert set(found.recomputed.tolist()) == recomputed
        assert set(found.read.tolist()) == read
