"""Where tissue is, from a low-resolution view: texture tells tissue from glass.

Glass may be tinted, shaded and carry printed spots (her2_B4), so neither brightness nor
saturation separates it; it is smooth at the scale of a cell, and tissue is not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.geometry.tiles import Box, WindowGrid

TEXTURE_SCALE_UM = 8.0
TEXTURE_BOUNDS = (3.0, 6.0)
DARK_SHARE = 0.45
CLOSING_UM = 25.0
MARGIN_UM = 20.0
SMALLEST_UM2 = 5000.0


def tissue_mask(view: NDArray[np.uint8], *, pixel_size_um: float) -> NDArray[np.bool_]:
    """Return where tissue is, (y, x), with a margin of 20 µm.

    Parameters
    ----------
    view : ndarray
        (channels, y, x) uint8, bright background; about 2 µm per pixel.
    pixel_size_um : float
        µm per pixel of the view.
    """
    from scipy import ndimage

    light = view.min(axis=0).astype(np.float32)
    width = max(TEXTURE_SCALE_UM / pixel_size_um, 1.0)
    detail = light - ndimage.gaussian_filter(light, width)
    texture = np.sqrt(ndimage.gaussian_filter(detail * detail, width))
    found = texture > np.clip(otsu_threshold(texture), *TEXTURE_BOUNDS)
    found |= light < DARK_SHARE * np.percentile(light, 99)
    found = _drop_small(found, SMALLEST_UM2 / pixel_size_um**2)
    reach = CLOSING_UM / pixel_size_um
    closed = _within(~_within(found, reach), reach)
    return _within(found | ~closed, MARGIN_UM / pixel_size_um)


def otsu_threshold(values: NDArray[np.floating]) -> float:
    """Return the value that best splits `values` in two (largest variance between the parts; Otsu 1979)."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centres) / np.maximum(below, 1)
    mean_above = (np.cumsum((counts * centres)[::-1]) / np.maximum(above[::-1], 1))[::-1]
    between = below[:-1].astype(float) * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centres[int(between.argmax())])


def _within(mask: NDArray[np.bool_], reach_px: float) -> NDArray[np.bool_]:
    from scipy import ndimage

    if not mask.any():
        return mask
    near: NDArray[np.bool_] = ndimage.distance_transform_edt(~mask) <= reach_px
    return near


def _drop_small(mask: NDArray[np.bool_], smallest_px: float) -> NDArray[np.bool_]:
    from scipy import ndimage

    pieces, _ = ndimage.label(mask)
    large = np.bincount(pieces.ravel()) >= smallest_px
    large[0] = False
    kept: NDArray[np.bool_] = large[pieces]
    return kept


def windows_with_tissue(grid: WindowGrid, mask: NDArray[np.bool_], *, view_pixels_per_model_pixel: float) -> list[int]:
    """Return indices of the windows whose core touches tissue."""
    return [
        window.index
        for window in grid
        if mask[view_box(window.core, mask.shape, view_pixels_per_model_pixel).slices].any()
    ]


def view_box(box: Box, view_shape: tuple[int, ...], ratio: float) -> Box:
    """Return the view pixels that a box of finer pixels touches, at least one pixel each way."""
    y0, y1 = _span(box.y0, box.y1, view_shape[0], ratio)
    x0, x1 = _span(box.x0, box.x1, view_shape[1], ratio)
    return Box(y0, y1, x0, x1)


def _span(start: int, stop: int, length: int, ratio: float) -> tuple[int, int]:
    low = min(max(int(np.floor(start * ratio)), 0), length - 1)
    return low, max(low + 1, min(int(np.ceil(stop * ratio)), length))
