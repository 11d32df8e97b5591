"""Window grid: one owner per pixel, fixed shapes, grouping that changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spatialscope_dist.geometry.tiles import Box, WindowGrid, shard_boxes, window_spans

grids = st.builds(
    lambda height, width, window, halo: WindowGrid((height, width), window=16 * window, halo=16 * halo),
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    window=st.integers(5, 8),
    halo=st.integers(0, 2),
)


def test_window_spans__by_hand() -> None:
    spans = window_spans(100, window=64, halo=16, align=16)
    assert spans == ((0, 64, 0, 48), (32, 64, 48, 80), (48, 64, 80, 100))


def test_window_spans__image_smaller_than_window() -> None:
    assert window_spans(50, window=1024, halo=96, align=16) == ((0, 64, 0, 50),)


@pytest.mark.parametrize(("window", "halo"), [(60, 16), (64, 8), (64, 32)])
def test_window_spans__impossible_grid(window: int, halo: int) -> None:
    with pytest.raises(ValueError, match="no window grid"):
        window_spans(100, window=window, halo=halo, align=16)


@settings(deadline=None)
@given(grid=grids)
def test_window_grid__every_pixel_has_one_owner(grid: WindowGrid) -> None:
    owners = np.full(grid.shape, -1)
    for window in grid:
        assert (owners[window.core.slices] == -1).all()
        owners[window.core.slices] = window.index
    assert (owners >= 0).all()
    points = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1).reshape(-1, 2)
    np.testing.assert_array_equal(grid.owner(points), owners.ravel())


@settings(deadline=None)
@given(grid=grids)
def test_window_grid__windows_are_fixed_aligned_and_hold_their_halo(grid: WindowGrid) -> None:
    padded = grid.padded_shape
    for window in grid:
        for low, high, start, stop, size in (
            (*window.box[:2], *window.core[:2], padded[0]),
            (*window.box[2:], *window.core[2:], padded[1]),
        ):
            assert high - low == min(grid.window, size)
            assert low % grid.align == 0
            assert low >= 0
            assert high <= size
            assert low == 0 or start - low >= grid.halo
            assert high == size or high - stop >= grid.halo


@settings(deadline=None)
@example(grid=WindowGrid((1, 81), window=80, halo=0, align=16), halo=33)
@given(grid=grids, halo=st.integers(0, 40))
def test_pieces__share_the_core_and_see_more(grid: WindowGrid, halo: int) -> None:
    wider = min(halo, max(grid.halo, (grid.window - max(grid.halo, grid.align)) // 2))
    for window in grid:
        owned = np.zeros(grid.shape, int)
        for piece in grid.pieces(window, halo):
            owned[piece.core.slices] += 1
            assert piece.box.shape == window.box.shape
            for low, high, start, stop, length in (
                (*piece.box[:2], *piece.core[:2], grid.padded_shape[0]),
                (*piece.box[2:], *piece.core[2:], grid.padded_shape[1]),
            ):
                assert low % grid.align == 0
                assert 0 <= low <= max(0, start - wider)
                assert min(length, stop + wider) <= high <= length
        assert owned.sum() == owned[window.core.slices].sum() == np.prod(window.core.shape)
        assert owned.max() == 1


@settings(deadline=None)
@given(grid=grids, tile=st.integers(1, 1000))
def test_tasks__partition_the_windows(grid: WindowGrid, tile: int) -> None:
    assert sorted(index for task in grid.tasks(tile).values() for index in task) == list(range(len(grid)))


def test_tasks__group_what_fits_into_the_tile() -> None:
    grid = WindowGrid((5000, 5000), window=1024, halo=96)
    assert max(map(len, grid.tasks(1024).values())) == 1
    assert max(map(len, grid.tasks(2048).values())) == 4
    assert max(map(len, grid.tasks(4096).values())) == 16


@settings(deadline=None)
@given(height=st.integers(1, 50), width=st.integers(1, 50), size=st.integers(1, 20))
def test_shard_boxes__cover_once(height: int, width: int, size: int) -> None:
    hits = np.zeros((height, width), int)
    for box in shard_boxes((height, width), size):
        hits[box.slices] += 1
    assert (hits == 1).all()
    assert Box(0, 2, 1, 5).shape == (2, 4)
