"""Accuracy of a section's results against a known truth.

Protocol
--------
Nuclei: planted and found nuclei are matched one to one, closest pairs first, at most ``max_distance_um`` apart.
``nuclei_found`` = matched / planted, ``nuclei_false`` = unmatched / found.

Types: cells and planted cells of one spot are matched one to one in the same way; ``cell_type_accuracy`` = share of
the matched cells whose type is right; ``random_order_accuracy`` is what the true compositions would reach with the
cells of every spot in random order. ``composition_error`` = 1 - Σ_ik min(n_ik, n*_ik) / Σ_i max(M_i, M*_i) over spots
i and types k: it ignores the order of the cells in a spot and counts missing and surplus cells as errors.

Expression: inside each spot, cells of one type are matched to planted cells of the same type, one to one, with the
smallest summed distance; cells whose type the spot does not hold are left out (they count in the two scores above).
Same-type cells are matched by position, never by expression, so no estimator gains from the matching. Every estimator
is scored on the same cells with the same matching: the mean over cells of the cosine between estimated and true
counts on the panel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

Array = NDArray[np.float64]
Index = NDArray[np.int64]

#: Below the closest distance of two planted nuclei, above the error of a good segmentation.
MATCH_DISTANCE_UM = 4.0


@dataclass(frozen=True)
class LocatedCells:
    """Cells with a place: ``positions_um`` (cells, 2) (y, x), ``spot_rows`` (cells,) -1 outside, ``types`` (cells,)."""

    positions_um: Array
    spot_rows: Index
    types: NDArray[np.str_]


def match_positions(planted_um: Array, found_um: Array, *, max_distance_um: float) -> tuple[Index, Index]:
    """Return the rows of matched planted and found positions: one to one, closest pairs first, ties by row.

    Parameters
    ----------
    planted_um, found_um
        (n, 2), (y, x) µm.
    max_distance_um
        Pairs farther apart are not matched, µm.
    """
    if len(planted_um) == 0 or len(found_um) == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    near = cKDTree(planted_um).sparse_distance_matrix(cKDTree(found_um), max_distance_um, output_type="ndarray")
    pairs = near[np.lexsort((near["j"], near["i"], near["v"]))]
    free_planted, free_found = np.ones(len(planted_um), dtype=bool), np.ones(len(found_um), dtype=bool)
    kept: list[tuple[int, int]] = []
    for first, second in zip(pairs["i"].tolist(), pairs["j"].tolist(), strict=True):
        if free_planted[first] and free_found[second]:
            free_planted[first] = free_found[second] = False
            kept.append((first, second))
    matched = np.array(sorted(kept), dtype=np.int64).reshape(-1, 2)
    return matched[:, 0], matched[:, 1]


def score_nuclei(planted_um: Array, found_um: Array, *, max_distance_um: float = MATCH_DISTANCE_UM) -> dict[str, float]:
    """Return ``nuclei_found`` and ``nuclei_false``, shares in [0, 1]."""
    matched, _ = match_positions(planted_um, found_um, max_distance_um=max_distance_um)
    return {
        "nuclei_found": len(matched) / max(len(planted_um), 1),
        "nuclei_false": 1 - len(matched) / max(len(found_um), 1),
    }


def score_types(
    truth: LocatedCells, cells: LocatedCells, *, max_distance_um: float = MATCH_DISTANCE_UM
) -> dict[str, float]:
    """Return ``cell_type_accuracy``, ``random_order_accuracy`` and ``composition_error`` of the cells inside spots."""
    correct = total = 0
    for planted, found in _spots(truth.spot_rows, cells.spot_rows):
        left, right = match_positions(
            truth.positions_um[planted], cells.positions_um[found], max_distance_um=max_distance_um
        )
        total += len(left)
        correct += int((truth.types[planted[left]] == cells.types[found[right]]).sum())
    return {
        "cell_type_accuracy": correct / max(total, 1),
        "random_order_accuracy": random_order_accuracy(truth),
        "composition_error": composition_error(truth, cells),
    }


def random_order_accuracy(truth: LocatedCells) -> float:
    """Return the expected accuracy of the true compositions in random order: Σ_i Σ_k n*_ik² / M*_i over Σ_i M*_i.

    Counts alone cannot order the cells of a spot, so this is what ``cell_type_accuracy`` is to be read against.
    """
    inside = truth.spot_rows >= 0
    _, spots = np.unique(truth.spot_rows[inside], return_inverse=True)
    _, types = np.unique(truth.types[inside], return_inverse=True)
    table = np.zeros((spots.max(initial=-1) + 1, types.max(initial=-1) + 1))
    np.add.at(table, (spots, types), 1)
    return float((table**2).sum(axis=1) @ (1 / table.sum(axis=1))) / max(len(spots), 1)


def composition_error(truth: LocatedCells, cells: LocatedCells) -> float:
    """Return 1 - Σ_ik min(n_ik, n*_ik) / Σ_i max(M_i, M*_i) over spots i and types k."""
    shared = largest = 0
    for planted, found in _spots(truth.spot_rows, cells.spot_rows):
        largest += max(len(planted), len(found))
        for name in np.unique(truth.types[planted]):
            shared += min(int((truth.types[planted] == name).sum()), int((cells.types[found] == name).sum()))
    return 1 - shared / max(largest, 1)


def match_same_type(truth: LocatedCells, cells: LocatedCells) -> tuple[Index, Index]:
    """Return rows of truth and of cells matched inside each spot and type with the smallest summed distance."""
    pairs: list[tuple[int, int]] = []
    for planted, found in _spots(truth.spot_rows, cells.spot_rows):
        for name in np.intersect1d(truth.types[planted], cells.types[found]):
            left, right = planted[truth.types[planted] == name], found[cells.types[found] == name]
            gaps = truth.positions_um[left][:, None] - cells.positions_um[right][None]
            rows, columns = linear_sum_assignment(np.linalg.norm(gaps, axis=2))
            pairs.extend(zip(left[rows].tolist(), right[columns].tolist(), strict=True))
    # by cell, so that results are read from the store in row order
    matched = np.array(sorted(pairs, key=lambda pair: pair[1]), dtype=np.int64).reshape(-1, 2)
    return matched[:, 0], matched[:, 1]


def cosines(estimate: NDArray[np.floating], truth: NDArray[np.floating]) -> Array:
    """Return the cosine of each row of two tables, (cells,); 0 where a row is all zero.

    Parameters
    ----------
    estimate, truth
        (cells, genes), counts.
    """
    first, second = np.asarray(estimate, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.asarray(np.divide((first * second).sum(axis=1), lengths, out=np.zeros(len(first)), where=lengths > 0))


def score_expression(estimates: Mapping[str, NDArray[np.floating]], truth: NDArray[np.floating]) -> dict[str, float]:
    """Return ``NAME_cosine`` of every estimator on the same matched cells, and ``cells_scored``.

    Parameters
    ----------
    estimates
        Name to (matched cells, genes), counts.
    truth
        (matched cells, genes), true counts in the same order.
    """
    scores = {f"{name}_cosine": float(cosines(values, truth).mean()) for name, values in estimates.items()}
    return {**scores, "cells_scored": len(truth)}


def _spots(truth_rows: Index, cell_rows: Index) -> Iterator[tuple[Index, Index]]:
    """Yield the rows of planted and of found cells of every spot that holds either."""
    n_spots = int(max(truth_rows.max(initial=-1), cell_rows.max(initial=-1))) + 1
    planted, found = _group(truth_rows, n_spots), _group(cell_rows, n_spots)
    for left, right in zip(planted, found, strict=True):
        if len(left) or len(right):
            yield left, right


def _group(rows: Index, n_groups: int) -> list[Index]:
    order = np.argsort(rows, kind="stable")
    edges = np.searchsorted(rows[order], np.arange(n_groups + 1))
    return [order[edges[group] : edges[group + 1]] for group in range(n_groups)]
