"""Neighbouring cells: the radius graph whose mean degree is asked for, and its quotient on spots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

_SAMPLE = 2000
_CHUNK = 1 << 16
_SLACK = 1.0 + 1e-9  # the tree rounds differently from our squares; the exact test comes after


@dataclass(frozen=True)
class Graph:
    """Undirected graph in CSR form: row v holds the neighbours of v, ascending, both directions.

    Attributes
    ----------
    indptr : (nodes + 1,), start of each row
    indices : (2·edges,) int32, neighbour of each half-edge
    radius_um : largest distance of two neighbours; 0 when the graph is not a radius graph
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
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
    Neighbourhood of SpatialScope's Potts prior, eq. (5), with Euclidean distance. Pairs are looked up
    for some cells at a time, so memory is a few times that of the graph.
    """
    n_nodes = len(points)
    wanted = min(int(np.ceil(mean_degree * n_nodes / 2.0)), n_nodes * (n_nodes - 1) // 2)
    if wanted == 0:
        return Graph(np.zeros(n_nodes + 1, np.int64), np.zeros(0, np.int32))
    tree = cKDTree(points)
    radius, limit = _first_radius(tree, points, mean_degree), None
    while limit is None:
        limit = _square_of_pair(tree, points, radius, wanted)
        radius *= 1.5 if limit is None else 1.0
    degrees, parts = [], []
    for low, rows, columns, squares in _pairs_within(tree, points, radius):
        near = squares <= limit
        rows, columns = rows[near], columns[near]
        degrees.append(np.bincount(rows - low, minlength=min(_CHUNK, n_nodes - low)))
        parts.append(columns[np.lexsort((columns, rows))].astype(np.int32))
    return Graph(_starts(degrees), np.concatenate(parts), radius_um=float(np.sqrt(limit)))


def quotient_graph(graph: Graph, group: NDArray[np.int64], *, n_groups: int) -> Graph:
    """Return the graph of groups (spots) that hold neighbouring members (cells), without loops.

    Parameters
    ----------
    graph : graph of the members
    group : (nodes,), group of each member, ascending
    n_groups : number of groups; empty ones become isolated nodes
    """
    degrees, parts = [], [np.zeros(0, np.int32)]
    for low in range(0, n_groups, _CHUNK):
        high = min(low + _CHUNK, n_groups)
        first, last = np.searchsorted(group, [low, high])
        ends = graph.indptr[first : last + 1]
        rows = np.repeat(group[first:last], np.diff(ends))
        columns = group[graph.indices[ends[0] : ends[-1]]]
        between = rows != columns
        codes = np.unique((rows[between] - low) * np.int64(n_groups) + columns[between])
        degrees.append(np.bincount(codes // n_groups, minlength=high - low))
        parts.append((codes % n_groups).astype(np.int32))
    return Graph(_starts(degrees), np.concatenate(parts))


def _starts(degrees: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *degrees]))]).astype(np.int64)


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


def _square_of_pair(tree: cKDTree, points: NDArray[np.float64], radius: float, rank: int) -> float | None:
    """Return the square of the distance of the rank-th closest pair, None when fewer lie within the radius."""
    pairs = _pairs_within(tree, points, radius)
    found = np.concatenate([squares[rows < columns] for _, rows, columns, squares in pairs])
    if len(found) < rank:
        return None
    found.partition(rank - 1)
    return float(found[rank - 1])


def _pairs_within(
    tree: cKDTree, points: NDArray[np.float64], radius: float
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    """Yield the first row, rows, columns and squared distances of the ordered pairs of each chunk of rows."""
    for low in range(0, len(points), _CHUNK):
        some = cKDTree(points[low : low + _CHUNK])
        pairs = some.sparse_distance_matrix(tree, radius * _SLACK, output_type="ndarray")
        rows, columns = pairs["i"].astype(np.int64) + low, pairs["j"].astype(np.int64)
        other = rows != columns
        rows, columns = rows[other], columns[other]
        yield low, rows, columns, ((points[rows] - points[columns]) ** 2).sum(axis=1)
