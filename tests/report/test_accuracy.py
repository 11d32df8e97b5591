from __future__ import annotations

import numpy as np
import pytest

from spatialscope_dist.report.accuracy import (
    LocatedCells,
    composition_error,
    cosines,
    match_positions,
    match_same_type,
    random_order_accuracy,
    score_expression,
    score_nuclei,
    score_types,
)


def located(rows: list[tuple[float, float, int, str]]) -> LocatedCells:
    return LocatedCells(
        np.array([[y, x] for y, x, _, _ in rows], dtype=float).reshape(-1, 2),
        np.array([spot for *_, spot, _ in rows], dtype=np.int64),
        np.array([name for *_, name in rows], dtype=str),
    )


def test_match_positions__one_to_one_closest_first() -> None:
    planted = np.array([[0.0, 0.0], [0.0, 3.0], [50.0, 50.0]])
    found = np.array([[0.0, 1.4], [0.0, -3.0], [90.0, 90.0]])
    left, right = match_positions(planted, found, max_distance_um=4.0)
    # found 0 is 1.4 from planted 0 and 1.6 from planted 1: the closer pair wins, found 1 is left for nobody else
    assert left.tolist() == [0]
    assert right.tolist() == [0]


def test_match_positions__empty_is_no_match() -> None:
    left, right = match_positions(np.zeros((0, 2)), np.ones((3, 2)), max_distance_um=4.0)
    assert len(left) == len(right) == 0


def test_score_nuclei__known_shares() -> None:
    planted = np.array([[0.0, 0.0], [0.0, 20.0], [0.0, 40.0], [0.0, 60.0]])
    found = np.array([[1.0, 0.0], [0.0, 21.0], [0.0, 42.0], [500.0, 0.0], [600.0, 0.0]])
    scores = score_nuclei(planted, found)
    assert scores == {"nuclei_found": pytest.approx(0.75), "nuclei_false": pytest.approx(0.4)}


def test_score_types__swap_inside_a_spot_is_positional_only() -> None:
    truth = located([(0, 0, 0, "a"), (0, 10, 0, "b"), (0, 100, 1, "a")])
    swapped = located([(0, 0, 0, "b"), (0, 10, 0, "a"), (0, 100, 1, "a")])
    scores = score_types(truth, swapped)
    assert scores["cell_type_accuracy"] == pytest.approx(1 / 3)
    assert scores["composition_error"] == 0


def test_composition_error__missing_and_surplus_cells_count() -> None:
    truth = located([(0, 0, 0, "a"), (0, 10, 0, "b"), (0, 100, 1, "a")])
    cells = located([(0, 0, 0, "a"), (0, 100, 1, "a"), (0, 105, 1, "a")])
    assert composition_error(truth, cells) == pytest.approx(1 - 2 / 4)


def test_match_same_type__ignores_cells_outside_spots_and_of_other_types() -> None:
    truth = located([(0, 0, 0, "a"), (0, 10, 0, "a"), (0, 20, 0, "b"), (0, 0, -1, "a")])
    cells = located([(0, 9, 0, "a"), (0, 20, 0, "c"), (0, 1, 0, "a"), (0, 0, -1, "a")])
    left, right = match_same_type(truth, cells)
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == [(1, 0), (0, 2)]


def test_cosines__scalar_reference() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.poisson(1.0, (6, 9)), rng.poisson(1.0, (6, 9))
    first[2] = 0
    expected = []
    for left, right in zip(first, second, strict=True):
        dot = sum(float(a) * float(b) for a, b in zip(left, right, strict=True))
        norm = sum(float(a) ** 2 for a in left) ** 0.5 * sum(float(b) ** 2 for b in right) ** 0.5
        expected.append(dot / norm if norm else 0.0)
    np.testing.assert_allclose(cosines(first, second), expected)


def test_score_expression__perfect_estimate_is_one_and_scale_free() -> None:
    truth = np.random.default_rng(1).poisson(2.0, (5, 20)).astype(float)
    scores = score_expression({"expression": 3 * truth, "type_mean": np.ones_like(truth)}, truth)
    assert scores["expression_cosine"] == pytest.approx(1)
    assert 0 < scores["type_mean_cosine"] < 1
    assert scores["cells_scored"] == 5


def test_random_order_accuracy__equals_the_mean_over_all_orders() -> None:
    from itertools import permutations

    spots = {0: ["a", "a", "b"], 1: ["b", "c"]}
    correct = sum(
        np.mean([sum(x == y for x, y in zip(order, types, strict=True)) for order in permutations(types)])
        for types in spots.values()
    )
    rows = np.array([spot for spot, types in spots.items() for _ in types] + [-1])
    names = np.array([name for types in spots.values() for name in types] + ["c"])
    truth = LocatedCells(np.zeros((6, 2)), rows, names)
    assert random_order_accuracy(truth) == pytest.approx(correct / 5)
