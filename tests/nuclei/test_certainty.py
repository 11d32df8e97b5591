"""Deciding beyond doubt: bounds of the overlap hold, and StarDist's own function never decides otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon
from stardist.nms import non_maximum_suppression_inds

from spatialscope_dist.nuclei.candidates import Candidates, canonical_order, polygon_bounds
from spatialscope_dist.nuclei.certainty import (
    DROPPED,
    KEPT,
    UNDECIDED,
    _shared,
    decide_certain,
    is_practical,
    rows_of,
)

THRESHOLD = 0.3


def _candidates(n: int, seed: int, *, roughness: float = 0.15) -> Candidates:
    rng = np.random.default_rng(seed)
    points = rng.integers(20, 150, (n, 2)).astype(np.int32)
    rough = rng.uniform(1 - roughness, 1 + roughness, (n, 32))
    distances = (rng.uniform(3, 14, (n, 1)) * rough).astype(np.float32)
    found = Candidates(points, distances, rng.uniform(0.5, 1, n).astype(np.float32))
    return found.take(canonical_order(found.points, found.probability))


def _polygon(candidates: Candidates, row: int) -> Polygon:
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False).astype(np.float32)
    reach = candidates.distances[row, :, None] * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    return Polygon(np.rint(candidates.points[row] + reach))


@settings(deadline=None)
@given(seed=st.integers(0, 999), roughness=st.floats(0, 0.6))
def test_rows_of__bounds_hold_the_area_of_the_intersection(seed: int, roughness: float) -> None:
    candidates = _candidates(2, seed, roughness=roughness)
    candidates.points[1] = candidates.points[0] + np.random.default_rng(seed).integers(-12, 13, 2)
    rows, (one, other) = rows_of(candidates.points, candidates.distances), (_polygon(candidates, row) for row in (0, 1))
    if not (one.is_valid and other.is_valid):
        return
    np.testing.assert_allclose(rows.area, [one.area, other.area])
    assert (rows.left_out > -1e-3).all()
    most, shared = _shared(0, 1, rows), one.intersection(other).area
    # a row in which outlines cross is off by less than a pixel
    assert shared <= most + 8
    assert shared >= most - rows.left_out.sum() - 8


@settings(deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(1, 150), roughness=st.floats(0, 0.4))
def test_decide_certain__never_contradicts_stardist(seed: int, n: int, roughness: float) -> None:
    candidates = _candidates(n, seed, roughness=roughness)
    kept = non_maximum_suppression_inds(
        candidates.distances, candidates.points, candidates.probability, thresh=THRESHOLD, verbose=0
    )
    state = _decided(candidates, np.ones(n, np.bool_))
    assert not (kept & (state == DROPPED)).any()
    assert not (~kept & (state == KEPT)).any()


def _decided(candidates: Candidates, own: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
    undecided = np.zeros(len(candidates), np.uint8) if before is None else before
    rows = rows_of(candidates.points, candidates.distances)
    return decide_certain(rows, polygon_bounds(candidates), undecided, own, threshold=THRESHOLD)


def test_decide_certain__decides_nearly_all_of_a_crowd() -> None:
    rng = np.random.default_rng(4)
    centres = np.stack(np.meshgrid(np.arange(20, 400, 26), np.arange(20, 400, 26)), -1).reshape(-1, 1, 2)
    points = (centres + rng.integers(-3, 4, (len(centres), 20, 2))).reshape(-1, 2).astype(np.int32)
    distances = rng.uniform(9, 11, (len(points), 32)).astype(np.float32)
    crowd = Candidates(points, distances, rng.uniform(0.5, 1, len(points)).astype(np.float32))
    crowd = crowd.take(canonical_order(crowd.points, crowd.probability))
    state = _decided(crowd, np.ones(len(crowd), np.bool_))
    assert (state == UNDECIDED).mean() < 0.01
    assert (state == KEPT).sum() == pytest.approx(len(centres), rel=0.02)


def test_decide_certain__waits_for_a_stronger_one_of_another_block() -> None:
    points = np.array([[50, 50], [50, 53], [50, 90]], np.int32)
    candidates = Candidates(points, np.full((3, 32), 10, np.float32), np.array([0.9, 0.8, 0.7], np.float32))
    own = np.array([False, True, True])
    assert _decided(candidates, own).tolist() == [UNDECIDED, UNDECIDED, KEPT]
    assert _decided(candidates, own, np.array([KEPT, 0, 0], np.uint8)).tolist() == [KEPT, DROPPED, KEPT]
    assert _decided(candidates, own, np.array([DROPPED, 0, 0], np.uint8)).tolist() == [DROPPED, KEPT, KEPT]


def test_is_practical__not_for_polygons_as_large_as_the_image() -> None:
    small, huge = np.array([[0, 30, 0, 30]]), np.array([[-(2**30), 2**30, -(2**30), 2**30]])
    assert is_practical(small.repeat(100_000, axis=0))
    assert not is_practical(np.concatenate([small, huge]))
    assert not is_practical(small[:0])
