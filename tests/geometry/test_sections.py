"""Rigid maps from couplings."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from spatialscope_dist.geometry.sections import mapped, rigid_map


@given(st.floats(-np.pi, np.pi), st.floats(-500, 500), st.integers(0, 2**32 - 1))
def test_rigid_map__finds_any_turn_and_shift(angle: float, shift: float, seed: int) -> None:
    fixed = np.random.default_rng(seed).normal(size=(30, 2)) * 100
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moving = fixed @ turn.T + [shift, -2 * shift]
    order = np.random.default_rng(seed).permutation(30)
    affine = rigid_map(moving[order], fixed, np.eye(30)[:, order])
    assert np.allclose(mapped(affine, moving), fixed, atol=1e-6)
    assert np.isclose(np.linalg.det(affine), 1)


def test_rigid_map__never_mirrors() -> None:
    fixed = np.random.default_rng(0).normal(size=(20, 2))
    affine = rigid_map(fixed * [1, -1], fixed, np.eye(20))
    assert np.isclose(np.linalg.det(affine), 1)
