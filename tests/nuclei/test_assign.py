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
