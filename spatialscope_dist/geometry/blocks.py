"""Spatial blocks of spots and the halo that makes a block's sweep exact."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.geometry.neighbours import Graph


@dataclass(frozen=True)
class Closure:
    """Spots a block has to know for one exact sweep in colour order, each list ascending.

    Attributes
    ----------
    own : (own spots,), spots the block answers for
    recomputed : spots of others whose new labels own spots need: reached along falling colours
    read : spots of others whose old labels are read
    """

    own: NDArray[np.int64]
    recomputed: NDArray[np.int64]
    read: NDArray[np.int64]


def assign_blocks(points: NDArray[np.float64], load: NDArray[np.int64], *, n_blocks: int) -> NDArray[np.int64]:
    """Return the block of each spot, (spots,): columns in (y, x) through all sections, evenly loaded.

    Spots are halved again and again along their longer extent, in proportion to the number of
    blocks on either side; ties keep index order.

    Parameters
    ----------
    points : (spots, 2), (y, x) µm common to all sections
    load : (spots,), cells of each spot
    n_blocks : number of blocks wanted; some may be empty when there are fewer spots
    """
    block = np.zeros(len(points), np.int64)
    pending = [(np.arange(len(points)), 0, n_blocks)]
    while pending:
        spots, first, count = pending.pop()
        if count == 1 or len(spots) == 0:
            block[spots] = first
            continue
        extent = points[spots].max(axis=0) - points[spots].min(axis=0)
        ordered = spots[np.argsort(points[spots, int(extent[1] > extent[0])], kind="stable")]
        done = np.cumsum(load[ordered] + 1)
        half = count // 2
        cut = int(np.searchsorted(done * count, done[-1] * half, side="right"))
        pending.append((ordered[:cut], first, half))
        pending.append((ordered[cut:], first + half, count - half))
    return block


def sweep_closure(graph: Graph, colours: NDArray[np.int64], own: NDArray[np.int64]) -> Closure:
    """Return the closure of a block under falling colours.

    In a sweep by ascending colour, a spot needs the *new* labels of neighbours of lower colour and
    the *old* labels of the others. So the spots reached from own ones along strictly falling
    colours are recomputed, and their remaining neighbours are read.

    Parameters
    ----------
    graph : spot graph
    colours : (spots,), a proper colouring of it
    own : spots of the block
    """
    own = np.sort(np.asarray(own, np.int64))
    state = _close(graph.indptr, graph.indices, colours, own)
    return Closure(
        own=own,
        recomputed=np.flatnonzero(state == 2).astype(np.int64),
        read=np.flatnonzero(state == 3).astype(np.int64),
    )


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _close(
    indptr: NDArray[np.int64], indices: NDArray[np.int64], colours: NDArray[np.int64], own: NDArray[np.int64]
) -> NDArray[np.int8]:
    state = np.zeros(len(indptr) - 1, np.int8)
    stack = np.empty(len(state), np.int64)
    for position in range(len(own)):
        state[own[position]] = 1
        stack[position] = own[position]
    size = len(own)
    while size > 0:
        size -= 1
        node = stack[size]
        for position in range(indptr[node], indptr[node + 1]):
            other = indices[position]
            if colours[other] < colours[node]:
                if state[other] == 0 or state[other] == 3:
                    state[other] = 2
                    stack[size] = other
                    size += 1
            elif state[other] == 0:
                state[other] = 3
    return state
