"""Colouring: proper, by key, independent of how spots are numbered."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialscope_dist.geometry.colouring import greedy_colouring
from spatialscope_dist.geometry.neighbours import radius_graph
from spatialscope_dist.randomness import spot_keys


def _scalar(rows, keys):
    colours = {}
    for node in sorted(range(len(keys)), key=lambda v: (keys[v], v)):
        taken = {colours[other] for other in rows[node] if other in colours}
        colours[node] = min(c for c in range(len(keys) + 1) if c not in taken)
    return [colours[node] for node in range(len(keys))]


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 60), seed=st.integers(0, 1000))
def test_greedy_colouring__scalar_reference_and_proper(n, seed):
    graph = radius_graph(np.random.default_rng(seed).uniform(0, 10, (n, 2)), mean_degree=5)
    rows = [graph.indices[a:b].tolist() for a, b in zip(graph.indptr[:-1], graph.indptr[1:], strict=True)]
    colours = greedy_colouring(graph, spot_keys("s", [str(i) for i in range(n)]))
    assert colours.tolist() == _scalar(rows, spot_keys("s", [str(i) for i in range(n)]).tolist())
    assert all(colours[v] != colours[w] for v in range(n) for w in rows[v])


def test_greedy_colouring__renumbering_spots_changes_nothing():
    rng = np.random.default_rng(3)
    points, names = rng.uniform(0, 50, (400, 2)), [f"spot{i}" for i in range(400)]
    colours = greedy_colouring(radius_graph(points, mean_degree=6), spot_keys("s", names))
    order = rng.permutation(400)
    again = greedy_colouring(radius_graph(points[order], mean_degree=6), spot_keys("s", [names[i] for i in order]))
    assert np.array_equal(again, colours[order])
