"""Global percentiles: histograms of pieces give exactly numpy's percentiles of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spatialscope_dist.geometry.tiles import shard_boxes
from spatialscope_dist.nuclei.normalise import histogram_percentiles, intensity_histogram, normalise


@settings(deadline=None)
@given(
    image=hnp.arrays(
        st.sampled_from([np.uint8, np.uint16]), st.tuples(st.just(3), st.integers(1, 12), st.integers(1, 12))
    ),
    percentile=st.floats(0, 100),
    size=st.integers(1, 5),
)
def test_histogram_percentiles__equal_numpy_on_the_whole_image(image: np.ndarray, percentile: float, size: int) -> None:
    blocks = [image[:, box.slices[0], box.slices[1]] for box in shard_boxes(image.shape[1:], size)]
    total = np.sum([intensity_histogram(block) for block in blocks], axis=0)
    (value,) = histogram_percentiles(total, (percentile,))
    np.testing.assert_allclose(value, np.percentile(image.astype(np.float64), percentile), rtol=1e-12, atol=1e-9)


def test_intensity_histogram__counts_only_where_asked() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    where = np.array([[True, False], [False, True]])
    assert np.flatnonzero(intensity_histogram(image, where=where)).tolist() == [0, 3, 4, 7, 8, 11]


def test_histogram_percentiles__nothing_counted() -> None:
    with pytest.raises(ValueError, match="no pixels"):
        histogram_percentiles(np.zeros(256, np.int64), (1.0,))


def test_normalise__by_hand() -> None:
    np.testing.assert_allclose(normalise(np.array([[[10.0, 30.0]]]), 10.0, 30.0), [[[0.0, 1.0]]])
