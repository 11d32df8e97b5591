"""Candidates: every pixel's proposal is kept once, by the window that owns it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialscope_dist.geometry.tiles import WindowGrid
from spatialscope_dist.nuclei.candidates import (
    Candidates,
    beyond_sight,
    canonical_order,
    concatenate,
    window_candidates,
)


@settings(deadline=None)
@given(height=st.integers(20, 300), width=st.integers(20, 300), window=st.integers(5, 9))
def test_window_candidates__together_equal_the_whole_image(height: int, width: int, window: int) -> None:
    grid = WindowGrid((height, width), window=16 * window, halo=16)
    padded = grid.padded_shape
    rng = np.random.default_rng(height * 1000 + width)
    probability = rng.random((padded[0] // 2, padded[1] // 2)).astype(np.float32)
    distances = rng.random((*probability.shape, 8)).astype(np.float32)
    parts = []
    for one in grid:
        cut = slice(one.box.y0 // 2, one.box.y1 // 2), slice(one.box.x0 // 2, one.box.x1 // 2)
        parts.append(window_candidates(probability[cut], distances[cut], window=one, grid=grid, threshold=0.7))
    found = concatenate(parts)
    rows, columns = np.nonzero(probability > 0.7)
    inside = (rows >= 2) & (rows < padded[0] // 2 - 2) & (columns >= 2) & (columns < padded[1] // 2 - 2)
    inside &= (2 * rows < height) & (2 * columns < width)
    expected = {(2 * y, 2 * x) for y, x in zip(rows[inside], columns[inside], strict=True)}
    assert {tuple(point) for point in found.points.tolist()} == expected
    assert len(found) == len(expected)
    first = found.points[:1] // 2
    np.testing.assert_array_equal(found.distances[:1], np.maximum(distances[first[:, 0], first[:, 1]], 1e-3))


def test_canonical_order__ties_by_place() -> None:
    points = np.array([[5, 1], [2, 9], [2, 3], [0, 0]], np.int32)
    probability = np.array([0.5, 0.5, 0.5, 0.9], np.float32)
    assert canonical_order(points, probability).tolist() == [3, 2, 1, 0]


def test_concatenate__nothing() -> None:
    assert concatenate([], n_rays=32).distances.shape == (0, 32)


def test_beyond_sight__polygons_past_the_window_but_not_past_the_image() -> None:
    grid = WindowGrid((300, 300), window=128, halo=32, align=16)
    window = grid[1]
    points = np.array([[5, window.core.x0], [60, window.core.x0], [60, window.core.x0 + 20]], np.int32)
    distances = np.array([[20.0] * 32, [40.0] * 32, [20.0] * 32], np.float32)
    found = Candidates(points, distances, np.ones(3, np.float32))
    assert beyond_sight(found, window=window, grid=grid).tolist() == [False, True, False]
    piece = next(piece for piece in grid.pieces(window, 48) if piece.core.y0 <= 60 < piece.core.y1)
    assert not beyond_sight(found.take([1]), window=piece, grid=grid).any()
