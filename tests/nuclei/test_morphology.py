"""Measures of nuclei: shapes beside shapely and scikit-image, stains of known amounts, and the same in any region."""

from __future__ import annotations

import numpy as np
import pytest
from shapely.geometry import Polygon
from skimage.color import hed_from_rgb
from skimage.draw import ellipse
from skimage.measure import label, regionprops

from spatialscope_dist.nuclei.morphology import (
    STAIN_COLOURS,
    measure_names,
    measure_nuclei,
    outline_shapes,
    stain_maps,
)
from spatialscope_dist.nuclei.paint import polygon_pixels

ANGLES = np.linspace(0, 2 * np.pi, 32, endpoint=False)


def ellipses(centres, axes, turns):
    """Return outlines, (nuclei, 32, 2)."""
    circle = np.stack([np.sin(ANGLES), np.cos(ANGLES)], axis=1)
    outlines = []
    for centre, axis, turn in zip(centres, axes, turns, strict=True):
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        outlines.append(centre + (circle * axis) @ rotation.T)
    return np.array(outlines, np.float32)


def some_nuclei(n, *, height, width, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 1, (n, 2)) * [height, width]
    return ellipses(centres, rng.uniform(3, 12, (n, 2)), rng.uniform(0, np.pi, n))


def test_outline_shapes__equal_shapely_and_analytic_ellipses():
    outlines = some_nuclei(20, height=500, width=500)
    shapes = outline_shapes(outlines, um=0.5)
    for outline, (area, perimeter, _) in zip(outlines, shapes, strict=True):
        shape = Polygon(outline.astype(float))
        assert area == pytest.approx(shape.area * 0.25, rel=1e-5)
        assert perimeter == pytest.approx(shape.length * 0.5, rel=1e-5)
    axes = np.array([[10.0, 10.0], [12.0, 6.0], [4.0, 15.0]])
    found = outline_shapes(ellipses(np.full((3, 2), 40.0), axes, [0.3, 1.0, 2.0]), um=1.0)[:, 2]
    exact = np.sqrt(1 - (axes.min(axis=1) / axes.max(axis=1)) ** 2)
    np.testing.assert_allclose(found, exact, atol=5e-4)


def test_outline_shapes__eccentricity_near_that_of_its_pixels():
    image = np.zeros((120, 120), int)
    image[ellipse(60, 60, 40, 20, rotation=0.5)] = 1
    (pixels,) = regionprops(label(image))
    outline = ellipses([[60.0, 60.0]], [[40.0, 20.0]], [0.5])
    assert outline_shapes(outline, um=1.0)[0, 2] == pytest.approx(pixels.eccentricity, abs=0.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_stain_maps__planted_amounts(dtype):
    rng = np.random.default_rng(2)
    amounts = rng.uniform(0, 0.8, (2, 30, 30))
    colours = STAIN_COLOURS / np.linalg.norm(STAIN_COLOURS, axis=1, keepdims=True)
    top = np.iinfo(dtype).max
    light = (top + 1) * 10 ** -np.einsum("syx,sc->cyx", amounts, colours) - 1
    found = stain_maps(np.rint(light).clip(0, top).astype(dtype))
    np.testing.assert_allclose(found, amounts, atol=0.03 if dtype == np.uint8 else 2e-4)


def test_stain_maps__follow_scikit_image():
    rng = np.random.default_rng(3)
    pixels = rng.integers(20, 255, (3, 40, 40), dtype=np.uint8)
    density = -np.log10((np.moveaxis(pixels, 0, -1).astype(float) + 1) / 256)
    with_dab = density @ hed_from_rgb
    found = stain_maps(pixels)
    for stain in (0, 1):  # skimage's third stain is DAB, not the remainder, so amounts differ a little
        assert np.corrcoef(found[stain].ravel(), with_dab[..., stain].ravel())[0, 1] > 0.75


def test_measure_nuclei__written_out():
    rng = np.random.default_rng(4)
    pixels = rng.integers(0, 256, (3, 60, 80), dtype=np.uint8)
    outlines = some_nuclei(6, height=60, width=80, seed=4)
    found = measure_nuclei(pixels, outlines, origin=(0, 0), um=0.5)
    stain, eosin = stain_maps(pixels).astype(float)
    for outline, row in zip(outlines, found, strict=True):
        values, slopes, pink = [], [], []
        for y, x in zip(*polygon_pixels(outline), strict=True):
            if 0 <= y < 60 and 0 <= x < 80:
                down = stain[min(y + 1, 59), x] - stain[max(y - 1, 0), x]
                right = stain[y, min(x + 1, 79)] - stain[y, max(x - 1, 0)]
                values.append(stain[y, x])
                slopes.append(np.hypot(down, right) / 2 / 0.5)
                pink.append(eosin[y, x])
        expected = [np.mean(values), np.std(values), np.mean(slopes), np.mean(pink)]
        np.testing.assert_allclose(row[3:], expected, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_measure_nuclei__same_bytes_in_any_region(channels):
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 65536, (channels, 90, 110), dtype=np.uint16)
    outlines = some_nuclei(12, height=90, width=110, seed=5)
    whole = measure_nuclei(pixels, outlines, origin=(0, 0), um=0.25)
    assert whole.shape == (12, len(measure_names(channels)))
    for outline, row in zip(outlines, whole, strict=True):
        (y0, x0), (y1, x1) = np.floor(outline.min(0)).astype(int) - 1, np.ceil(outline.max(0)).astype(int) + 2
        y0, x0, y1, x1 = max(y0, 0), max(x0, 0), min(y1, 90), min(x1, 110)
        alone = measure_nuclei(pixels[:, y0:y1, x0:x1], outline[None], origin=(y0, x0), um=0.25)
        assert alone.tobytes() == row.tobytes()


def test_measure_nuclei__none_and_outside():
    pixels = np.zeros((1, 20, 20), np.uint8)
    assert measure_nuclei(pixels, np.zeros((0, 32, 2), np.float32), origin=(0, 0), um=1.0).shape == (0, 6)
    outside = ellipses([[-30.0, -30.0]], [[5.0, 5.0]], [0.0])
    found = measure_nuclei(pixels, outside, origin=(0, 0), um=1.0)[0]
    assert np.isfinite(found[:3]).all()
    assert np.isnan(found[3:]).all()
