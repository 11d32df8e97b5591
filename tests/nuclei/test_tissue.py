"""Tissue mask: tinted glass with printed spots is glass; a field full of tissue is tissue."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from spatialscope_dist.geometry.tiles import Box, WindowGrid
from spatialscope_dist.nuclei.tissue import otsu_threshold, tissue_mask, view_box, windows_with_tissue


def _glass(rng: np.random.Generator) -> np.ndarray:
    """Return (3, 400, 400) pinkish shaded glass with faint printed discs every 100 px."""
    y, x = np.mgrid[:400, :400]
    shade = 205 + 10 * np.sin(x / 150) + 8 * np.cos(y / 120)
    disc = ((y % 100 - 50) ** 2 + (x % 100 - 50) ** 2) < 25**2
    light = np.stack([shade + 15, shade, shade + 12]) - 4 * ndimage.gaussian_filter(disc.astype(float), 1.5)
    return light + rng.normal(0, 0.7, light.shape)


def _tissue(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    texture = ndimage.gaussian_filter(rng.normal(0, 1, shape), 2)
    return np.array([170, 110, 170])[:, None, None] + 25 * texture / texture.std()


@pytest.mark.parametrize("seed", range(3))
def test_tissue_mask__tissue_on_spotted_glass(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = _glass(rng)
    image[:, 100:250, 80:300] = _tissue(rng, (150, 220))
    mask = tissue_mask(np.clip(image, 0, 255).astype(np.uint8), pixel_size_um=2.0)
    assert mask[100:250, 80:300].all()
    away = ndimage.distance_transform_edt(np.pad(~np.zeros((150, 220), bool), ((100, 150), (80, 100))) == 0) > 25
    assert not mask[away].any()


def test_tissue_mask__field_full_of_tissue() -> None:
    rng = np.random.default_rng(0)
    image = np.clip(_tissue(rng, (125, 125)), 0, 255).astype(np.uint8)
    assert tissue_mask(image, pixel_size_um=2.0).all()


def test_tissue_mask__bare_glass() -> None:
    image = np.clip(_glass(np.random.default_rng(1)), 0, 255).astype(np.uint8)
    assert not tissue_mask(image, pixel_size_um=2.0).any()


def test_otsu_threshold__between_two_heaps() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(1, 0.2, 900), rng.normal(9, 0.5, 300)])
    assert 1.5 < otsu_threshold(values) < 8


def test_windows_with_tissue__only_cores_count() -> None:
    grid = WindowGrid((3000, 3000))
    mask = np.zeros((300, 300), bool)
    mask[150, 150] = True
    (index,) = windows_with_tissue(grid, mask, view_pixels_per_model_pixel=0.1)
    core = grid[index].core
    assert core.y0 <= 1500 < core.y1
    assert core.x0 <= 1500 < core.x1


def test_view_box__at_least_one_pixel() -> None:
    assert view_box(Box(0, 3, 2999, 3000), (30, 30), 0.01) == (0, 1, 29, 30)
