from __future__ import annotations

import numpy as np
import pytest

from spatialscope_dist.downstream.multiple_testing import adjust, adjust_within, combine_cauchy


def test_adjust__scalar_reference_and_nan() -> None:
    p = np.array([0.01, 0.04, np.nan, 0.03, 0.5])
    known = sorted(value for value in p if np.isfinite(value))
    expected = {value: min(known[j] * 4 / (j + 1) for j in range(i, 4)) for i, value in enumerate(known)}
    adjusted = adjust(p)
    assert np.isnan(adjusted[2])
    for value, result in zip(p, adjusted, strict=True):
        if np.isfinite(value):
            assert result == pytest.approx(expected[value])


def test_adjust_within__each_group_alone() -> None:
    p, groups = np.array([0.01, 0.02, 0.03]), np.array(["a", "a", "b"])
    np.testing.assert_allclose(adjust_within(p, groups), [0.02, 0.02, 0.03])


def test_combine_cauchy__one_p_is_itself_and_tiny_p_survive() -> None:
    for value in (0.5, 0.01, 1e-12, 1e-40, 1e-200):
        assert combine_cauchy(np.array([[value]]))[0] == pytest.approx(value, rel=1e-6)
    assert combine_cauchy(np.array([1e-40, 1.0, 1.0])) == pytest.approx(3e-40, rel=1e-6)
    assert combine_cauchy(np.array([1e-10, 1.0])) < 1e-9
    assert combine_cauchy(np.array([1.0, 1.0])) == pytest.approx(0.99)
