"""One greedy non-maximum suppression over the whole image, exact in bounded blocks.

A polygon A is dropped when a kept, stronger polygon B has |A ∩ B| / min(|A|, |B|) > threshold
(StarDist). What is stronger is decided by probability, then by (y, x): one order for every
division. A candidate can be dropped as soon as a kept stronger one overlaps it, and kept once all
stronger candidates that may overlap it are decided; a block therefore decides what does not hang
on undecided candidates of its neighbours, and rounds over the blocks end when none is undecided.
The strongest undecided candidate of all can always be decided, so every round makes progress, and
since nothing is ever decided on a guess the result is the one of a single greedy pass, whatever
the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numba import njit
from numpy.typing import NDArray

from spatialscope_dist.nuclei.candidates import Candidates, canonical_order, concatenate

MAX_PER_CALL = 100_000
UNDECIDED, KEPT, DROPPED = 0, 1, 2
CELL_PX, MAX_CELLS = 4, 2048

Distances = Callable[[NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True)
class Standing:
    """Candidates and what is decided about them.

    Parameters
    ----------
    points, probability : ndarray
        (candidates, 2) int32 and (candidates,) float32.
    bounds : ndarray
        (candidates, 4) int32 bounding boxes, see `candidates.polygon_bounds`.
    state : ndarray
        (candidates,) uint8: UNDECIDED, KEPT or DROPPED.
    """

    points: NDArray[np.int32]
    probability: NDArray[np.float32]
    bounds: NDArray[np.int32]
    state: NDArray[np.uint8]


def meets(bounds: NDArray[np.integer], box: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return which boxes, (n, 4), meet one box, (4,)."""
    rows = (bounds[:, 0] <= box[1]) & (bounds[:, 1] >= box[0])
    result: NDArray[np.bool_] = rows & (bounds[:, 2] <= box[3]) & (bounds[:, 3] >= box[2])
    return result


def union_bounds(bounds: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the box, (4,), that holds all boxes, (n, 4), n > 0."""
    low, high = bounds.min(axis=0), bounds.max(axis=0)
    return np.array([low[0], high[1], low[2], high[3]], np.int64)


def decide_block(
    standing: Standing,
    own: NDArray[np.bool_],
    distances_of: Distances,
    *,
    threshold: float,
    max_per_call: int = MAX_PER_CALL,
) -> NDArray[np.uint8]:
    """Return the new state of the block's own candidates, (own,), in their order.

    Parameters
    ----------
    standing : Standing
        The block's own candidates and all others whose bounding box meets one of theirs.
    own : ndarray
        (candidates,) which are the block's own; only those are decided.
    distances_of : callable
        Returns the (n, rays) distances of candidates by row: they may stay on disk.
    threshold : float
        Largest allowed overlap relative to the smaller polygon.
    max_per_call : int
        See `suppress`.
    """
    state = standing.state.copy()
    examine = partial(_kept, standing, distances_of=distances_of, threshold=threshold, max_per_call=max_per_call)
    while (undecided := state == UNDECIDED).any() and (undecided & own).any():
        waiting = hanging(replace(standing, state=state), own)
        free = undecided & own & ~waiting
        if free.any():
            state[free] = DROPPED
            kept = examine(np.flatnonzero((state == KEPT) | free))
            state[kept] = KEPT
        overlapped = _overlapped(np.flatnonzero(state == KEPT), np.flatnonzero(state == UNDECIDED), examine)
        state[overlapped] = DROPPED
        if len(overlapped) == 0:
            break
    return state[own]


def _overlapped(
    kept: NDArray[np.int64], rows: NDArray[np.int64], examine: Callable[[NDArray[np.int64]], NDArray[np.int64]]
) -> NDArray[np.int64]:
    # A pass lets the rows drop one another too. Rows that survive it overlap no kept candidate and leave;
    # when none survives, the kept candidates alone have dropped what is left.
    while len(rows):
        survivors = examine(np.concatenate([kept, rows]))
        left = np.setdiff1d(rows, survivors)
        if len(left) == len(rows):
            break
        rows = left
    return rows


def _kept(
    standing: Standing, rows: NDArray[np.int64], distances_of: Distances, *, threshold: float, max_per_call: int
) -> NDArray[np.int64]:
    order = canonical_order(standing.points[rows], standing.probability[rows])
    ordered = rows[order]
    kept = ordered[:0]
    for start in range(0, len(ordered), max_per_call):
        together = np.concatenate([kept, ordered[start : start + max_per_call]])
        batch = Candidates(standing.points[together], distances_of(together), standing.probability[together])
        kept = together[_survivors(batch, threshold)]
    return kept


def hanging(standing: Standing, own: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which candidates may depend on undecided ones of other blocks, (candidates,).

    Undecided candidates of others hang; an undecided one of the block's own hangs when a stronger
    hanging one shares a cell of a coarse raster with it. Polygons that overlap share a cell.
    """
    undecided = standing.state == UNDECIDED
    result = np.zeros(len(own), np.bool_)
    rows = np.flatnonzero(undecided)
    if not (undecided & ~own).any() or not (undecided & own).any():
        return result
    low, high = np.split(union_bounds(standing.bounds[undecided & own])[[0, 2, 1, 3]], 2)
    cell = max(CELL_PX, int((high - low).max()) // MAX_CELLS + 1)
    rows = rows[canonical_order(standing.points[rows], standing.probability[rows])]
    y0, y1, x0, x1 = standing.bounds[rows].T
    cells = np.stack([y0 - low[0], y1 - low[0], x0 - low[1], x1 - low[1]], axis=1) // cell
    shape = (high - low) // cell + 1
    result[rows] = _spread(cells.astype(np.int64), ~own[rows], np.zeros(shape, np.bool_))
    return result


@njit(cache=True)  # type: ignore[untyped-decorator]
def _spread(
    cells: NDArray[np.int64], foreign: NDArray[np.bool_], stamped: NDArray[np.bool_]
) -> NDArray[np.bool_]:  # pragma: no cover
    result = np.zeros(len(cells), np.bool_)
    for row in range(len(cells)):
        y0, y1 = max(cells[row, 0], 0), min(cells[row, 1], stamped.shape[0] - 1)
        x0, x1 = max(cells[row, 2], 0), min(cells[row, 3], stamped.shape[1] - 1)
        beside = y1 < y0 or x1 < x0
        result[row] = foreign[row] or (not beside and stamped[y0 : y1 + 1, x0 : x1 + 1].any())
        if result[row] and not beside:
            stamped[y0 : y1 + 1, x0 : x1 + 1] = True
    return result


def suppress(
    points: NDArray[np.int32],
    probability: NDArray[np.float32],
    distances_of: Distances,
    *,
    threshold: float,
    max_per_call: int = MAX_PER_CALL,
) -> Candidates:
    """Return the candidates that survive one greedy pass over all of them, strongest first.

    Parameters
    ----------
    points, probability : ndarray
        (candidates, 2) and (candidates,), in any order; the canonical order is made here.
    distances_of : callable
        Returns the (n, rays) distances of n candidates: they may stay on disk.
    threshold : float
        Largest allowed overlap relative to the smaller polygon.
    max_per_call : int
        Candidates examined together: bounds memory and time of a call, never changes the result.
    """
    everything = Standing(points, probability, np.zeros((len(points), 4), np.int32), np.zeros(len(points), np.uint8))
    rows = np.arange(len(points))
    kept = _kept(everything, rows, distances_of, threshold=threshold, max_per_call=max_per_call)
    return concatenate([Candidates(points[kept], distances_of(kept), probability[kept])])


def _survivors(ordered: Candidates, threshold: float) -> NDArray[np.bool_]:
    # stardist.nms imports no tensorflow; its C++ code expects the strongest first.
    from stardist.nms import non_maximum_suppression_inds

    if len(ordered) == 0:
        return np.zeros(0, np.bool_)
    survivors = non_maximum_suppression_inds(
        ordered.distances, ordered.points, scores=ordered.probability, thresh=threshold, verbose=0
    )
    result: NDArray[np.bool_] = np.asarray(survivors, dtype=np.bool_)
    return result
