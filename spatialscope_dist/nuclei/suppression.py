"""One greedy non-maximum suppression over the whole image, exact in bounded blocks.

A polygon A is dropped when a kept, stronger polygon B has |A ∩ B| / min(|A|, |B|) > threshold
(StarDist). What is stronger is decided by probability, then by (y, x): one order for every
division. A candidate can be dropped as soon as a kept stronger one overlaps it, and kept once all
stronger candidates that may overlap it are decided; a block therefore decides what does not hang
on undecided candidates of its neighbours, and rounds over the blocks end when none is undecided.
The strongest undecided candidate of all can always be decided, so every round makes progress, and
since nothing is ever decided on a guess the result is the one of a single greedy pass, whatever
the blocks. Nearly all candidates are decided by bounds of their overlap (`certainty`), the few that
are left by StarDist's own function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numba import njit
from numpy.typing import NDArray

from spatialscope_dist.nuclei.candidates import Candidates, canonical_order, polygon_bounds
from spatialscope_dist.nuclei.certainty import DROPPED, KEPT, UNDECIDED, decide_certain, is_practical, rows_of

MAX_PER_CALL = 100_000
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
    state = _beyond_doubt(standing, own, distances_of, threshold=threshold)
    examine = partial(_kept, standing, distances_of=distances_of, threshold=threshold, max_per_call=max_per_call)
    while ((state == UNDECIDED) & own).any():
        cells, shape = _raster(standing.bounds, (state == UNDECIDED) & own)
        free = (state == UNDECIDED) & own & ~hanging(replace(standing, state=state), own)
        if free.any():
            kept = _meeting(cells, np.flatnonzero(state == KEPT), np.flatnonzero(free), shape)
            state[free] = DROPPED
            state[examine(np.concatenate([kept, np.flatnonzero(free)]))] = KEPT
        rows, kept = np.flatnonzero((state == UNDECIDED) & own), np.flatnonzero(state == KEPT)
        rows = _meeting(cells, rows, kept, shape)
        overlapped = _overlapped(cells, rows, _meeting(cells, kept, rows, shape), shape, examine)
        state[overlapped] = DROPPED
        if len(overlapped) == 0:
            break
    return state[own]


def _beyond_doubt(
    standing: Standing, own: NDArray[np.bool_], distances_of: Distances, *, threshold: float
) -> NDArray[np.uint8]:
    state = standing.state.copy()
    if not is_practical(standing.bounds):
        return state
    order = canonical_order(standing.points, standing.probability)
    rows = rows_of(standing.points[order], distances_of(order))
    state[order] = decide_certain(rows, standing.bounds[order], state[order], own[order], threshold=threshold)
    return state


def _overlapped(
    cells: NDArray[np.int64],
    rows: NDArray[np.int64],
    kept: NDArray[np.int64],
    shape: NDArray[np.int64],
    examine: Callable[[NDArray[np.int64]], NDArray[np.int64]],
) -> NDArray[np.int64]:
    """Return those of `rows` that a stronger kept candidate overlaps.

    A pass lets all that take part drop one another, so rows go in groups that cannot meet: their
    boxes lie within the raster and share no cell. A row that lies on more than 64 others waits.
    """
    colours = _colour(cells[rows], np.zeros(shape, np.uint64))
    found = [rows[:0]]
    for colour in range(colours.max(initial=-1) + 1):
        group = rows[colours == colour]
        found.append(np.setdiff1d(group, examine(np.concatenate([kept, group]))))
    return np.concatenate(found)


def _meeting(
    cells: NDArray[np.int64], rows: NDArray[np.int64], others: NDArray[np.int64], shape: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return those of `rows` that share a cell with any of `others`."""
    touching: NDArray[np.bool_] = _touch(cells[rows], cells[others], np.zeros(shape, np.bool_))
    return rows[touching]


def _raster(bounds: NDArray[np.int32], within: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return first and last row and column of cells of each box, (n, 4), and the raster's shape.

    The raster covers the boxes of `within`; cells beyond it are cut off. Polygons that overlap
    there share a cell.
    """
    low, high = np.split(union_bounds(bounds[within])[[0, 2, 1, 3]], 2)
    cell = max(CELL_PX, int((high - low).max()) // MAX_CELLS + 1)
    cells = (bounds.astype(np.int64) - low[[0, 0, 1, 1]]) // cell
    shape = (high - low) // cell + 1
    cells[:, [0, 2]] = np.maximum(cells[:, [0, 2]], 0)
    cells[:, [1, 3]] = np.minimum(cells[:, [1, 3]], shape - 1)
    return cells, shape


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
    cells, shape = _raster(standing.bounds, undecided & own)
    rows = rows[canonical_order(standing.points[rows], standing.probability[rows])]
    result[rows] = _spread(cells[rows], ~own[rows], np.zeros(shape, np.bool_))
    return result


# Boxes are cut to the raster: one that lies beside it has its last row or column before its first and no cells.


@njit(cache=True)  # type: ignore[untyped-decorator]
def _any(raster: NDArray[np.bool_], box: NDArray[np.int64]) -> bool:  # pragma: no cover
    for y in range(box[0], box[1] + 1):
        for x in range(box[2], box[3] + 1):
            if raster[y, x]:
                return True
    return False


@njit(cache=True)  # type: ignore[untyped-decorator]
def _stamp(raster: NDArray[np.bool_], box: NDArray[np.int64]) -> None:  # pragma: no cover
    for y in range(box[0], box[1] + 1):
        for x in range(box[2], box[3] + 1):
            raster[y, x] = True


@njit(cache=True)  # type: ignore[untyped-decorator]
def _spread(
    cells: NDArray[np.int64], foreign: NDArray[np.bool_], stamped: NDArray[np.bool_]
) -> NDArray[np.bool_]:  # pragma: no cover
    result = np.zeros(len(cells), np.bool_)
    for row in range(len(cells)):
        result[row] = foreign[row] or _any(stamped, cells[row])
        if result[row]:
            _stamp(stamped, cells[row])
    return result


@njit(cache=True)  # type: ignore[untyped-decorator]
def _touch(
    cells: NDArray[np.int64], others: NDArray[np.int64], stamped: NDArray[np.bool_]
) -> NDArray[np.bool_]:  # pragma: no cover
    for row in range(len(others)):
        _stamp(stamped, others[row])
    result = np.zeros(len(cells), np.bool_)
    for row in range(len(cells)):
        result[row] = _any(stamped, cells[row])
    return result


@njit(cache=True)  # type: ignore[untyped-decorator]
def _colour(cells: NDArray[np.int64], taken: NDArray[np.uint64]) -> NDArray[np.int64]:  # pragma: no cover
    result = np.full(len(cells), -1, np.int64)
    one = np.uint64(1)
    for row in range(len(cells)):
        y0, y1, x0, x1 = cells[row]
        used = np.uint64(0)
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                used |= taken[y, x]
        colour = 0
        while colour < 64 and (used >> np.uint64(colour)) & one:
            colour += 1
        if colour < 64:
            result[row] = colour
            for y in range(y0, y1 + 1):
                for x in range(x0, x1 + 1):
                    taken[y, x] |= one << np.uint64(colour)
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
    candidates = Candidates(points, distances_of(np.arange(len(points))), probability)
    undecided = np.zeros(len(points), np.uint8)
    everything = Standing(points, probability, polygon_bounds(candidates), undecided)
    own = np.ones(len(points), np.bool_)
    state = decide_block(everything, own, distances_of, threshold=threshold, max_per_call=max_per_call)
    kept = candidates.take(state == KEPT)
    return kept.take(canonical_order(kept.points, kept.probability))


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
