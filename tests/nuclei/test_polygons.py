"""Outlines, areas, centroids and the canonical numbering."""

from __future__ import annotations

import numpy as np
from shapely.geometry import Polygon
from stardist.geometry import dist_to_coord

from spatialscope_dist.nuclei.candidates import Candidates
from spatialscope_dist.nuclei.polygons import measure, outline, trace_nuclei

RNG = np.random.default_rng(1)
CANDIDATES = Candidates(
    RNG.integers(0, 3000, (40, 2)).astype(np.int32),
    RNG.uniform(4, 15, (40, 32)).astype(np.float32),
    np.sort(RNG.random(40).astype(np.float32))[::-1],
)


def test_outline__equals_stardist() -> None:
    expected = dist_to_coord(CANDIDATES.distances, CANDIDATES.points).transpose(0, 2, 1)
    np.testing.assert_allclose(outline(CANDIDATES, scale=1.0), expected, atol=1e-3)


def test_measure__equals_shapely() -> None:
    polygons = outline(CANDIDATES, scale=2.752)
    areas, centroids = measure(polygons)
    for polygon, area, centroid in zip(polygons, areas, centroids, strict=True):
        shape = Polygon(polygon.astype(float))
        np.testing.assert_allclose(area, shape.area, rtol=1e-6)
        np.testing.assert_allclose(centroid, (shape.centroid.x, shape.centroid.y), rtol=1e-6)


def test_measure__point_like_polygon() -> None:
    areas, centroids = measure(np.full((1, 32, 2), 7.0, np.float32))
    assert areas[0] == 0
    np.testing.assert_array_equal(centroids, [[7.0, 7.0]])


def test_trace_nuclei__numbered_from_the_top() -> None:
    nuclei = trace_nuclei(CANDIDATES, scale=1.0)
    assert (np.diff(nuclei.centroids[:, 0]) >= 0).all()
    assert sorted(nuclei.paint_rank.tolist()) == list(range(40))
    np.testing.assert_array_equal(nuclei.probability, CANDIDATES.probability[nuclei.paint_rank])
