"""Colouring of the spot graph: spots of one colour are not neighbours and may change together."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.geometry.neighbours import Graph


def greedy_colouring(graph: Graph, keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the colour of each spot, (spots,): the smallest one no earlier neighbour has.

    Spots are visited in the order of their keys (hash of section and spot id, randomness.spot_keys),
    so colours depend on the spots and their graph alone, never on how they are divided.

    Parameters
    ----------
    graph : spot graph
    keys : (spots,), one 64-bit key per spot; equal keys are ordered by index
    """
    order = np.argsort(keys, kind="stable").astype(np.int64)
    colours: NDArray[np.int64] = _greedy(graph.indptr, graph.indices, order)
    return colours


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _greedy(indptr: NDArray[np.int64], indices: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    n_nodes = len(order)
    colours = np.full(n_nodes, -1, np.int64)
    taken_by = np.full(n_nodes + 1, -1, np.int64)
    for node in order:
        for position in range(indptr[node], indptr[node + 1]):
            colour = colours[indices[position]]
            if colour >= 0:
                taken_by[colour] = node
        colour = 0
        while taken_by[colour] == node:
            colour += 1
        colours[node] = colour
    return colours
