"""Painting: the label image does not depend on the shards it is painted in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stardist.geometry import polygons_to_label

from spatialscope_dist.geometry.tiles import Box, shard_boxes
from spatialscope_dist.nuclei.candidates import Candidates
from spatialscope_dist.nuclei.paint import overlaps_box, paint_labels, polygon_pixels
from spatialscope_dist.nuclei.polygons import outline

RNG = np.random.default_rng(2)
CANDIDATES = Candidates(
    RNG.integers(-5, 125, (60, 2)).astype(np.int32),
    RNG.uniform(5, 12, (60, 32)).astype(np.float32),
    np.sort(RNG.random(60).astype(np.float32))[::-1],
)
POLYGONS = outline(CANDIDATES, scale=1.0)
IDS, RANK = np.arange(1, 61), np.arange(60)
WHOLE = paint_labels(POLYGONS, IDS, rank=RANK, box=Box(0, 120, 0, 110))


@settings(deadline=None)
@given(size=st.integers(10, 130))
def test_paint_labels__independent_of_the_shards(size: int) -> None:
    painted = np.zeros_like(WHOLE)
    for box in shard_boxes(WHOLE.shape, size):
        near = overlaps_box(POLYGONS, box)
        painted[box.slices] = paint_labels(POLYGONS[near], IDS[near], rank=RANK[near], box=box)
    np.testing.assert_array_equal(painted, WHOLE)


def test_paint_labels__equals_stardist() -> None:
    expected = polygons_to_label(CANDIDATES.distances, CANDIDATES.points, (120, 110), prob=CANDIDATES.probability)
    np.testing.assert_array_equal(WHOLE, expected)


@settings(deadline=None)
@given(seed=st.integers(0, 999), whole=st.booleans())
def test_paint_labels__equals_one_polygon_after_the_other(seed: int, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    polygons = POLYGONS[rng.integers(0, 60, 4)] + rng.uniform(-9, 9, (4, 1, 2)).astype(np.float32)
    polygons = np.round(polygons) if whole else polygons
    expected = np.zeros((120, 110), np.uint32)
    for number in (3, 2, 1, 0):
        rows, columns = polygon_pixels(polygons[number])
        inside = (rows >= 0) & (rows < 120) & (columns >= 0) & (columns < 110)
        expected[rows[inside], columns[inside]] = number + 1
    painted = paint_labels(polygons, np.arange(1, 5), rank=np.arange(4), box=Box(0, 120, 0, 110))
    np.testing.assert_array_equal(painted, expected)


@pytest.mark.parametrize("shift", [1, 2048, 100_000])
def test_polygon_pixels__move_with_the_polygon(shift: int) -> None:
    polygon = np.round(POLYGONS[0] * 64) / 64
    rows, columns = polygon_pixels(polygon.astype(np.float32))
    moved = polygon_pixels((polygon + shift).astype(np.float32))
    np.testing.assert_array_equal(moved, (rows + shift, columns + shift))
