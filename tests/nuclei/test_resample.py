"""Resampling: a window is a cut of the whole, whatever the window."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from spatialscope_dist.geometry.tiles import Box
from spatialscope_dist.nuclei.resample import WindowSource, model_scale, model_shape, source_coordinates

RNG = np.random.default_rng(3)
IMAGE = RNG.integers(0, 256, (2, 61, 83), dtype=np.uint8)


def _window(box: Box, scale: float) -> np.ndarray:
    source = WindowSource(box, IMAGE.shape[1:], scale)
    return source.resample(IMAGE[:, source.region.slices[0], source.region.slices[1]])


@pytest.mark.parametrize("scale", [1.0, 2.752, 1.3, 0.5, 0.31])
def test_resample__window_is_a_cut_of_the_whole(scale: float) -> None:
    height, width = model_shape(IMAGE.shape[1:], scale)
    whole = _window(Box(0, height, 0, width), scale)
    box = Box(height // 3, height // 3 + 9, width // 2, width // 2 + 7)
    np.testing.assert_array_equal(_window(box, scale), whole[:, box.slices[0], box.slices[1]])


def test_resample__enlarging_is_linear_interpolation() -> None:
    scale = 2.752
    height, width = model_shape(IMAGE.shape[1:], scale)
    whole = _window(Box(0, height, 0, width), scale)
    where = np.meshgrid(*(source_coordinates(np.arange(n, dtype=float), scale) for n in (height, width)), indexing="ij")
    expected = ndimage.map_coordinates(IMAGE[0].astype(float), where, order=1, mode="nearest")
    np.testing.assert_allclose(whole[0], expected, atol=1e-3)


def test_resample__reducing_keeps_the_mean() -> None:
    height, width = model_shape(IMAGE.shape[1:], 0.25)
    whole = _window(Box(0, height, 0, width), 0.25)
    assert whole.shape == (2, 15, 21)
    assert whole.mean() == pytest.approx(IMAGE.mean(), abs=1.5)
    assert whole.std() < 0.4 * IMAGE.std()


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_resample__beyond_the_image_is_mirrored(scale: float) -> None:
    height, width = model_shape(IMAGE.shape[1:], scale)
    whole = _window(Box(0, height + 5, 0, width + 5), scale)
    mirrored = np.pad(whole[:, :height, :width], ((0, 0), (0, 5), (0, 5)), mode="reflect")
    np.testing.assert_array_equal(whole, mirrored)


def test_model_scale__near_native_is_native() -> None:
    assert model_scale(0.2525, 0.25) == 1.0
    assert model_scale(0.688, 0.25) == pytest.approx(2.752)
