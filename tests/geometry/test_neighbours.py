"""Radius graph against all pairs, written out."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialscope_dist.geometry import neighbours
from spatialscope_dist.geometry.neighbours import quotient_graph, radius_graph


def _rows(graph):
    return [graph.indices[a:b].tolist() for a, b in zip(graph.indptr[:-1], graph.indptr[1:], strict=True)]


def _brute_force(points, mean_degree):
    n = len(points)
    square = ((points[:, None] - points[None]) ** 2).sum(-1)
    pairs = sorted(square[i, j] for i in range(n) for j in range(i))
    wanted = min(int(np.ceil(mean_degree * n / 2)), len(pairs))
    limit = pairs[wanted - 1] if wanted else -1.0
    return [[j for j in range(n) if j != i and square[i, j] <= limit] for i in range(n)]


@settings(deadline=None, max_examples=60)
@given(
    points=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 1)), min_size=1, max_size=25),
    mean_degree=st.integers(1, 12),
)
def test_radius_graph__brute_force_with_ties_and_coincident_cells(points, mean_degree):
    points = np.array(points, float)
    assert _rows(radius_graph(points, mean_degree=mean_degree)) == _brute_force(points, mean_degree)


def test_radius_graph__mean_degree_and_symmetry_on_many_cells():
    points = np.random.default_rng(0).uniform(0, 1000, (3000, 2))
    graph = radius_graph(points, mean_degree=10)
    rows = np.repeat(np.arange(3000), np.diff(graph.indptr))
    assert abs(graph.mean_degree - 10) < 0.01
    assert set(zip(rows, graph.indices, strict=True)) == set(zip(graph.indices, rows, strict=True))


def test_graphs__same_for_any_chunk(monkeypatch):
    rng = np.random.default_rng(1)
    points, spot = rng.uniform(0, 100, (500, 2)), np.sort(rng.integers(0, 150, 500))
    whole = radius_graph(points, mean_degree=6)
    spots = quotient_graph(whole, spot, n_groups=150)
    monkeypatch.setattr(neighbours, "_CHUNK", 37)
    assert _rows(radius_graph(points, mean_degree=6)) == _rows(whole)
    assert _rows(quotient_graph(whole, spot, n_groups=150)) == _rows(spots)


def test_radius_graph__all_cells_in_one_place():
    graph = radius_graph(np.zeros((5, 2)), mean_degree=2)
    assert _rows(graph) == [[j for j in range(5) if j != i] for i in range(5)]


def test_radius_graph__links_sections_by_z():
    points = np.array([[0.0, 0, 0], [8.0, 0, 0], [0.0, 30, 0], [8.0, 30, 0]])
    assert _rows(radius_graph(points, mean_degree=1)) == [[1], [0], [3], [2]]


def test_quotient_graph__spots_of_neighbouring_cells():
    points = np.array([[0.0, 0], [0, 1], [0, 2], [0, 9], [0, 10]])
    cells = radius_graph(points, mean_degree=1.1)
    spots = quotient_graph(cells, np.array([0, 0, 2, 3, 3]), n_groups=5)
    assert _rows(spots) == [[2], [], [0], [], []]
