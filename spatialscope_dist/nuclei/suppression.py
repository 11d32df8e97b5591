"""One greedy non-maximum suppression over the whole image, exact in bounded pieces.

A polygon A is dropped when a kept, stronger polygon B has |A ∩ B| / min(|A|, |B|) > threshold
(StarDist). Polygons are taken strongest first in batches: what a batch decides is final, because
only stronger ones decide. Splitting into batches therefore gives exactly the result of one call.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.nuclei.candidates import Candidates, canonical_order, concatenate

MAX_PER_CALL = 100_000


def suppress(
    points: NDArray[np.int32],
    probability: NDArray[np.float32],
    distances_of: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    *,
    threshold: float,
    max_per_call: int = MAX_PER_CALL,
) -> Candidates:
    """Return the candidates that survive, strongest first.

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
    order = canonical_order(points, probability)
    kept = Candidates(points[order[:0]], distances_of(order[:0]), probability[order[:0]])
    for start in range(0, len(order), max_per_call):
        rows = order[start : start + max_per_call]
        together = concatenate([kept, Candidates(points[rows], distances_of(rows), probability[rows])])
        kept = together.take(_survivors(together, threshold))
    return kept


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
