"""The border audit: straight cuts at core borders show, whole nuclei do not."""

from __future__ import annotations

import numpy as np
import pytest

from spatialscope_dist.geometry.tiles import Box, WindowGrid
from spatialscope_dist.nuclei.border_audit import (
    Lines,
    core_lines,
    corner_window,
    count_matches,
    crosses_cores,
    edge_counts,
    straight_edge_score,
)

BOX = Box(0, 400, 0, 400)
ROWS, COLUMNS = Lines((100, 300), (50, 200, 350)), Lines((100, 300), (50, 200, 350))


def _discs(*, cut: bool) -> np.ndarray:
    labels, rng = np.zeros((400, 400), np.int32), np.random.default_rng(0)
    y, x = np.mgrid[0:400, 0:400]
    for number in range(1, 400):
        cy, cx = rng.uniform(0, 400, 2)
        disc = (y - cy) ** 2 + (x - cx) ** 2 < 64
        if cut:
            disc &= (np.digitize(x, COLUMNS.borders) == np.digitize(cx, COLUMNS.borders)) & (
                np.digitize(y, ROWS.borders) == np.digitize(cy, ROWS.borders)
            )
        labels[disc] = number
    return labels


def test_straight_edge_score__sees_objects_cut_at_core_borders() -> None:
    whole = straight_edge_score(edge_counts(_discs(cut=False), BOX, ROWS, COLUMNS))
    cut = straight_edge_score(edge_counts(_discs(cut=True), BOX, ROWS, COLUMNS))
    assert whole is not None
    assert cut is not None
    assert whole[0] == pytest.approx(1.0, abs=3 * whole[1])
    assert cut[0] - 4 * cut[1] > 1


def test_edge_counts__add_up_over_shards_but_for_their_common_line() -> None:
    labels = _discs(cut=False)
    whole = np.array(edge_counts(labels, BOX, ROWS, COLUMNS))
    parts = [Box(0, 150, 0, 400), Box(150, 400, 0, 400)]
    np.testing.assert_array_equal(sum(np.array(edge_counts(labels[b.slices], b, ROWS, COLUMNS)) for b in parts), whole)
    assert straight_edge_score(edge_counts(np.zeros((400, 400), int), BOX, ROWS, COLUMNS)) is None


def test_core_lines_and_crosses_cores__follow_the_grid() -> None:
    grid = WindowGrid((300, 100), window=128, halo=32, align=16)
    starts = [span.start for span in grid.rows[1:]]
    assert core_lines(grid.rows, 0.5).borders == tuple(2 * start for start in starts)
    bounds = np.array([[starts[0] - 5, starts[0] - 1, 0, 9], [starts[0] - 5, starts[0], 0, 9], [0, 299, 0, 9]])
    assert crosses_cores(bounds, grid).tolist() == [False, True, True]


def test_corner_window__holds_a_corner_where_cores_meet() -> None:
    grid = WindowGrid((700, 300), window=256, halo=16, align=16)
    for window in grid:
        around = corner_window(window, grid)
        assert around is not None
        assert around.box.shape == (128, 128)
        assert around.box.y0 % 16 == around.box.x0 % 16 == 0
        edges = window.core.y1 if window.core.y1 < 700 else window.core.y0
        assert around.core.y0 < edges < around.core.y1 or around.core.y0 <= edges - 1 < around.core.y1
        assert around.core.y0 == around.box.y0 + (16 if around.box.y0 else 0)
        assert around.box.y1 <= grid.padded_shape[0]
        assert around.box.x1 <= grid.padded_shape[1]
    alone = WindowGrid((100, 100), window=128, halo=32, align=16)
    assert corner_window(alone[0], alone) is None


def test_count_matches__nearest_both_ways() -> None:
    one = np.array([[0.0, 0.0], [10.0, 0.0], [50.0, 0.0]])
    other = np.array([[0.0, 1.0], [0.0, 1.5], [10.0, 0.0], [60.0, 0.0]])
    assert count_matches(one, other) == 2
    assert count_matches(one[:0], other) == 0
