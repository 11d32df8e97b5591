"""Nuclei to spots: equal to comparing every nucleus with every spot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialscope_dist.nuclei.assign import assign_to_spots, default_cap, keep_most_probable


@settings(deadline=None)
@given(n_nuclei=st.integers(0, 60), n_spots=st.integers(0, 30), seed=st.integers(0, 99), radius=st.floats(0.5, 8))
def test_assign_to_spots__equals_brute_force(n_nuclei: int, n_spots: int, seed: int, radius: float) -> None:
    rng = np.random.default_rng(seed)
    # whole numbers: many exact ties
    nuclei = rng.integers(0, 20, (n_nuclei, 2)).astype(float)
    spots = np.unique(rng.integers(0, 20, (n_spots, 2)).astype(float), axis=0)
    expected = []
    for nucleus in nuclei:
        distance = [((spot - nucleus) ** 2).sum() for spot in spots]
        best = int(np.argmin(distance)) if distance else -1
        expected.append(best if distance and distance[best] <= radius**2 else -1)
    assert assign_to_spots(nuclei, spots, radius_um=radius).tolist() == expected


@pytest.mark.parametrize(("diameter", "cap"), [(55.0, 20), (100.0, 67), (10.0, 1)])
def test_default_cap__by_hand(diameter: float, cap: int) -> None:
    assert default_cap(diameter) == cap


def test_keep_most_probable__per_spot_ties_in_order() -> None:
    spots = np.array([0, 0, 0, 1, -1, 0])
    probability = np.array([0.5, 0.9, 0.5, 0.1, 0.99, 0.4], np.float32)
    assert keep_most_probable(spots, probability, cap=2).tolist() == [True, True, False, True, False, False]


@pytest.mark.parametrize("pitch", [10.0, 25.0])
def test_assign_to_spots__square_layout_of_touching_spots(pitch: float) -> None:
    rows, columns = np.mgrid[0:300, 0:300]
    spots = pitch * np.stack([rows.ravel(), columns.ravel()], axis=1)
    nuclei = np.random.default_rng(7).uniform(-pitch, 300 * pitch, (70_000, 2))  # more than are looked at at once
    found = assign_to_spots(nuclei, spots, radius_um=pitch / 2)
    place = np.floor(nuclei / pitch + 0.5)
    inside = (((nuclei - place * pitch) ** 2).sum(axis=1) <= (pitch / 2) ** 2) & ((place >= 0) & (place < 300)).all(
        axis=1
    )
    np.testing.assert_array_equal(found, np.where(inside, place[:, 0] * 300 + place[:, 1], -1))
    assert 0.75 < inside.mean() < 0.8  # π/4 of the plane
