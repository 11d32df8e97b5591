"""Neighbouring cells: the radius graph whose mean degree is asked for, and its quotient on spots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

_SAMPLE = 2000
_SLACK = 1.0 + 1e-9  # the tree rounds differently from _square_distances; the exact test comes after


@dataclass(frozen=True)
class Graph:
    """Undirected graph in CSR form: row v holds the neighbours of v, ascending, both directions.

    Attributes
    ----------
    indptr : (nodes + 1,), start of each row
    indices : (2·edges,), neighbour of each half-edge
    radius_um : largest distance of two neighbours; 0 when the graph is not a radius graph
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int64]
    radius_um: float = 0.0

    @property
    def n_nodes(self) -> int:
        """Return the number of nodes."""
        return len(self.indptr) - 1

    @property
    def mean_degree(self) -> float:
        """Return the mean number of neighbours of a node."""
        return len(self.indices) / self.n_nodes if self.n_nodes else 0.0


def radius_graph(points: NDArray[np.float64], *, mean_degree: float) -> Graph:
    """Return the graph of the closest pairs of cells whose mean degree reaches `mean_degree`.

    The radius is the distance of the (mean_degree · n / 2)-th closest pair of all pairs (rounded up),
    exact; pairs at that very distance all belong. Cells in one place are neighbours.

    Parameters
    ----------
    points : (cells, 2 or 3), µm, (y, x) or (z, y, x)
    mean_degree : wanted mean number of neighbours of a cell

    Notes
    -----
    Neighbourhood of SpatialScope's Potts prior, eq. (5), with Euclidean distance.
    """
    n_nodes = len(points)
    wanted = min(int(np.ceil(mean_degree * n_nodes / 2.0)), n_nodes * (n_nodes - 1) // 2)
    if wanted == 0:
        return Graph(np.zeros(n_nodes + 1, np.int64), np.zeros(0, np.int64))
    tree = cKDTree(points)
    radius = _first_radius(tree, points, mean_degree)
    while True:
        pairs = _pairs_within(tree, radius)
        if len(pairs) >= wanted:
            break
        radius *= 1.5
    squares = _square_distances(points, pairs)
    limit = float(np.partition(squares, wanted - 1)[wanted - 1])
    return _from_pairs(pairs[squares <= limit], n_nodes, radius_um=float(np.sqrt(limit)))


def quotient_graph(graph: Graph, group: NDArray[np.int64], *, n_groups: int) -> Graph:
    """Return the graph of groups (spots) that hold neighbouring members (cells), without loops.

    Parameters
    ----------
    graph : graph of the members
    group : (nodes,), group of each member
    n_groups : number of groups; empty ones become isolated nodes
    """
    rows = np.repeat(group, np.diff(graph.indptr))
    columns = group[graph.indices]
    between = rows < columns
    codes = np.unique(rows[between] * np.int64(n_groups) + columns[between])
    return _from_pairs(np.stack([codes // n_groups, codes % n_groups], axis=1), n_groups)


def _first_radius(tree: cKDTree, points: NDArray[np.float64], mean_degree: float) -> float:
    # An upper quantile of the k-th neighbour distance of a fixed stride of cells is a good first guess.
    sample = points[:: max(1, len(points) // _SAMPLE)]
    k = min(int(np.ceil(mean_degree)) + 1, len(points))
    distances, _ = tree.query(sample, k=[k])
    guess = float(np.quantile(distances, 0.75))
    if guess > 0:
        return guess
    extent = points.max(axis=0) - points.min(axis=0)
    return max(float(np.sqrt((extent**2).sum())) / len(points), 1e-6)


def _pairs_within(tree: cKDTree, radius: float) -> NDArray[np.int64]:
    pairs = tree.query_pairs(radius * _SLACK, output_type="ndarray")
    return np.asarray(pairs, np.int64).reshape(-1, 2)


def _square_distances(points: NDArray[np.float64], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    squares = np.zeros(len(pairs))
    for axis in range(points.shape[1]):
        squares += (points[pairs[:, 0], axis] - points[pairs[:, 1], axis]) ** 2
    return squares


def _from_pairs(pairs: NDArray[np.int64], n_nodes: int, *, radius_um: float = 0.0) -> Graph:
    rows = np.concatenate([pairs[:, 0], pairs[:, 1]])
    columns = np.concatenate([pairs[:, 1], pairs[:, 0]])
    order = np.lexsort((columns, rows))
    indptr = np.zeros(n_nodes + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=n_nodes), out=indptr[1:])
    return Graph(indptr, columns[order].astype(np.int64), radius_um=radius_um)
