"""Suppression: equal to the plain O(n²) rule, however it is cut into batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from shapely.geometry import Polygon
from stardist.nms import non_maximum_suppression_inds

from spatialscope_dist.nuclei.candidates import Candidates, canonical_order, polygon_bounds
from spatialscope_dist.nuclei.certainty import KEPT, UNDECIDED
from spatialscope_dist.nuclei.polygons import outline
from spatialscope_dist.nuclei.suppression import (
    Standing,
    decide_block,
    meets,
    suppress,
    union_bounds,
)

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


def _in_blocks(candidates: Candidates, block_of: np.ndarray, *, max_rounds: int = 200) -> tuple[np.ndarray, int]:
    """Return the final states and the number of rounds, every block seeing the states of the round before."""
    bounds = polygon_bounds(candidates)
    state = np.zeros(len(candidates), np.uint8)
    for number in range(max_rounds):
        if not (state == UNDECIDED).any():
            return state, number
        before = state.copy()
        for block in np.unique(block_of):
            own = block_of == block
            near = own | meets(bounds, union_bounds(bounds[own]))
            rows = np.flatnonzero(near)
            standing = Standing(candidates.points[rows], candidates.probability[rows], bounds[rows], before[rows])
            state[own] = decide_block(
                standing, own[rows], lambda index, rows=rows: candidates.distances[rows[index]], threshold=THRESHOLD
            )
        assert (state != before).any()
    raise AssertionError("undecided candidates are left")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [25, 90, 1000])
def test_decide_block__rounds_over_any_blocks_equal_one_pass(seed: int, size: int) -> None:
    candidates = _candidates(400, seed)
    y, x = (candidates.points // size).T
    state, rounds = _in_blocks(candidates, y * 100 + x)
    kept = _global(candidates)
    assert {tuple(point) for point in candidates.points[state == KEPT]} == {tuple(point) for point in kept.points}
    assert (state == KEPT).sum() == len(kept)
    assert rounds == 1 if size == 1000 else rounds <= 40


def _global(candidates: Candidates) -> Candidates:
    ordered = candidates.take(canonical_order(candidates.points, candidates.probability))
    kept = non_maximum_suppression_inds(
        ordered.distances, ordered.points, ordered.probability, thresh=THRESHOLD, verbose=0
    )
    return ordered.take(kept)


def test_decide_block__an_object_larger_than_its_block_and_random_owners() -> None:
    candidates = _candidates(300, 11)
    candidates.distances[5] = 120.0
    candidates.distances[6] = 70.0
    state, _ = _in_blocks(candidates, np.random.default_rng(2).integers(0, 6, 300))
    np.testing.assert_array_equal(
        candidates.take(state == KEPT).points[:, 0].sum(), _global(candidates).points[:, 0].sum()
    )
    assert (state == KEPT).sum() == len(_global(candidates))


def test_decide_block__strength_rising_over_all_blocks_needs_one_round_per_block() -> None:
    x = np.arange(0, 400, 4)
    points = np.stack([np.full(100, 50), x], axis=1).astype(np.int32)
    probability = np.linspace(0.5, 0.9, 100).astype(np.float32)
    candidates = Candidates(points, np.full((100, 32), 6, np.float32), probability)
    state, rounds = _in_blocks(candidates, x // 100)
    assert rounds == 4
    np.testing.assert_array_equal(points[state == KEPT][::-1], _global(candidates).points)


def test_decide_block__every_pixel_a_candidate_in_bounded_calls() -> None:
    # every pixel of a wrong model's blank tile proposes something
    y, x = np.mgrid[0:200, 0:250]
    points = np.stack([y.ravel(), x.ravel()], axis=1).astype(np.int32)
    rng = np.random.default_rng(1)
    candidates = Candidates(points, np.full((len(points), 32), 5, np.float32), rng.random(len(points), np.float32))
    everything = np.ones(len(points), np.bool_)
    standing = Standing(points, candidates.probability, polygon_bounds(candidates), np.zeros(len(points), np.uint8))
    state = decide_block(
        standing, everything, lambda rows: candidates.distances[rows], threshold=THRESHOLD, max_per_call=20_000
    )
    assert not (state == UNDECIDED).any()
    assert 200 < (state == KEPT).sum() < 3_000
