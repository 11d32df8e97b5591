"""Suppression: equal to the plain O(n²) rule, however it is cut into batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from shapely.geometry import Polygon
from stardist.nms import non_maximum_suppression_inds

from spatialscope_dist.nuclei.candidates import Candidates, canonical_order
from spatialscope_dist.nuclei.polygons import outline
from spatialscope_dist.nuclei.suppression import suppress

THRESHOLD = 0.3


def _candidates(n: int, seed: int) -> Candidates:
    rng = np.random.default_rng(seed)
    points = rng.integers(20, 180, (n, 2)).astype(np.int32)
    distances = (rng.uniform(5, 14, (n, 1)) * rng.uniform(0.85, 1.15, (n, 32))).astype(np.float32)
    return Candidates(points, distances, np.round(rng.uniform(0.5, 1, n), 2).astype(np.float32))


def _beats(candidates: Candidates, strong: int, weak: int) -> bool:
    """Return whether the first polygon drops the second, the two being alone in the world."""
    pair = candidates.take(np.array([strong, weak]))
    alone = non_maximum_suppression_inds(pair.distances, pair.points, pair.probability, thresh=THRESHOLD, verbose=0)
    return not alone[1]


def _plain(candidates: Candidates) -> list[int]:
    kept: list[int] = []
    for row in canonical_order(candidates.points, candidates.probability):
        if not any(_beats(candidates, other, int(row)) for other in kept):
            kept.append(int(row))
    return kept


@pytest.mark.parametrize("seed", range(3))
def test_suppress__equals_the_plain_rule(seed: int) -> None:
    candidates = _candidates(120, seed)
    kept = _plain(candidates)
    for max_per_call in (5, 37, 1000):
        found = suppress(
            candidates.points,
            candidates.probability,
            lambda rows: candidates.distances[rows],
            threshold=THRESHOLD,
            max_per_call=max_per_call,
        )
        np.testing.assert_array_equal(found.points, candidates.points[kept])
        np.testing.assert_array_equal(found.distances, candidates.distances[kept])


def test_suppress__rule_is_overlap_over_the_smaller_polygon() -> None:
    candidates = _candidates(60, 4)
    shapes = [Polygon(polygon) for polygon in outline(candidates, scale=1.0)]
    for strong, weak in itertools.combinations(range(60), 2):
        smaller = min(shapes[strong].area, shapes[weak].area)
        overlap = shapes[strong].intersection(shapes[weak]).area / smaller
        # stardist works on whole-pixel vertices: near the threshold it may decide otherwise
        if abs(overlap - THRESHOLD) > 0.08:
            assert _beats(candidates, strong, weak) == (overlap > THRESHOLD)


def test_suppress__order_of_input_is_irrelevant() -> None:
    candidates = _candidates(200, 9)
    shuffled = candidates.take(np.random.default_rng(0).permutation(200))
    one, other = (
        suppress(c.points, c.probability, lambda rows, c=c: c.distances[rows], threshold=THRESHOLD)
        for c in (candidates, shuffled)
    )
    np.testing.assert_array_equal(one.points, other.points)


def test_suppress__nothing() -> None:
    empty = _candidates(0, 0)
    assert len(suppress(empty.points, empty.probability, lambda rows: empty.distances[rows], threshold=0.3)) == 0
