"""Drawing of H&E-like images and their label truth, used by the simulator and to train the demo nucleus model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from spatialscope_dist.simulate.tissue import Nuclei

Array = NDArray[np.float64]

#: Optical density of the stains per unit amount, (stains, rgb): haematoxylin (Ruifrok & Johnston 2001), pink eosin.
STAIN_DENSITY = np.array([[0.65, 0.70, 0.29], [0.08, 0.80, 0.36]], dtype=np.float32)


def draw_labels(
    centres_um: Array,
    semi_axes_um: Array,
    angles_rad: Array,
    *,
    shape: tuple[int, int],
    pixel_size_um: float,
) -> NDArray[np.int32]:
    """Return the label image, (y, x) int32: 0 background, i + 1 for nucleus i.

    Where nuclei overlap, a pixel belongs to the one whose centre is nearest in units of its own axes.

    Parameters
    ----------
    centres_um
        (nuclei, 2), (y, x) in µm; pixel (i, j) is centred at (i, j) · pixel size.
    semi_axes_um
        (nuclei, 2), long and short semi-axis in µm.
    angles_rad
        (nuclei,), angle of the long axis from the y axis towards the x axis.
    shape
        (y, x) in pixels.
    pixel_size_um
        µm per pixel.
    """
    labels = np.zeros(shape, dtype=np.int32)
    nearest = np.ones(shape, dtype=np.float32)
    for index, (window, distance) in enumerate(_ellipses(centres_um, semi_axes_um, angles_rad, shape, pixel_size_um)):
        closer = distance < nearest[window]
        labels[window][closer] = index + 1
        nearest[window][closer] = distance[closer]
    return labels


def draw_histology(
    nuclei: Nuclei,
    *,
    shape: tuple[int, int],
    pixel_size_um: float,
    rng: np.random.Generator,
    tissue: NDArray[np.floating] | None = None,
) -> NDArray[np.uint8]:
    """Return an H&E-like image, (c, y, x) uint8 RGB, with the nuclei drawn as haematoxylin ellipses.

    Parameters
    ----------
    nuclei
        What is drawn; `types` play no part.
    shape
        (y, x) in pixels.
    pixel_size_um
        µm per pixel.
    rng
        Source of stain strength, texture and camera noise.
    tissue
        (y, x) in [0, 1]: share of tissue in each pixel, 0 = glass. None: tissue everywhere.
    """
    cover = np.ones(shape, dtype=np.float32) if tissue is None else tissue.astype(np.float32)
    stain = _draw_nuclei(nuclei, shape, pixel_size_um, rng)
    stain *= 1 + 0.22 * _texture(shape, 0.7 / pixel_size_um, rng)
    ground = 0.34 + 0.07 * _texture(shape, 1.2 / pixel_size_um, rng) + 0.08 * _texture(shape, 14 / pixel_size_um, rng)
    ground += 0.10 * np.maximum(_fibres(shape, pixel_size_um, rng), 0)
    haematoxylin = (stain + 0.06 + 0.02 * _texture(shape, 6 / pixel_size_um, rng)) * cover
    eosin = np.maximum(ground, 0.05) * (1 - 0.5 * np.clip(stain, 0, 1)) * cover
    image = np.empty((3, *shape), dtype=np.uint8)
    for channel in range(3):
        density = haematoxylin * STAIN_DENSITY[0, channel] + eosin * STAIN_DENSITY[1, channel]
        light = 243.0 * np.exp(-np.log(10) * 0.62 * np.maximum(density, 0))
        light = ndimage.gaussian_filter(light, 0.35 / pixel_size_um)
        light += rng.standard_normal(shape, dtype=np.float32) * 2.5
        image[channel] = np.clip(np.rint(light), 0, 255).astype(np.uint8)
    return image


def _draw_nuclei(
    nuclei: Nuclei, shape: tuple[int, int], pixel_size_um: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    stain = np.zeros(shape, dtype=np.float32)
    strength = nuclei.stain * rng.uniform(0.75, 1.3, size=len(nuclei.stain))
    rim = rng.uniform(0.0, 0.35, size=len(nuclei.stain))
    axes = nuclei.semi_axes_um
    ellipses = _ellipses(nuclei.centres_um, axes, nuclei.angles_rad, shape, pixel_size_um, margin=1.25)
    for index, (window, distance) in enumerate(ellipses):
        soft = pixel_size_um / float(axes[index].mean())
        inside = np.clip((1 + soft / 2 - distance) / soft, 0, 1)
        amount = strength[index] * inside * (1 - rim[index] * (1 - np.minimum(distance, 1) ** 2))
        stain[window] = np.maximum(stain[window], amount)
    return stain


def _ellipses(
    centres_um: Array,
    semi_axes_um: Array,
    angles_rad: Array,
    shape: tuple[int, int],
    pixel_size_um: float,
    margin: float = 1.0,
) -> Iterator[tuple[tuple[slice, slice], NDArray[np.float32]]]:
    """Yield each nucleus' window of the image and the elliptic distance of its pixels from the centre (1 = outline)."""
    centres, axes = np.asarray(centres_um) / pixel_size_um, np.asarray(semi_axes_um) / pixel_size_um
    for (y, x), (long, short), angle in zip(centres, axes, angles_rad, strict=True):
        reach = long * margin + 1
        top, left = max(int(np.floor(y - reach)), 0), max(int(np.floor(x - reach)), 0)
        bottom, right = min(int(np.ceil(y + reach)) + 1, shape[0]), min(int(np.ceil(x + reach)) + 1, shape[1])
        rows = np.arange(top, max(bottom, top), dtype=np.float32)[:, None] - np.float32(y)
        columns = np.arange(left, max(right, left), dtype=np.float32)[None, :] - np.float32(x)
        along = rows * np.cos(angle) + columns * np.sin(angle)
        across = columns * np.cos(angle) - rows * np.sin(angle)
        window = (slice(top, max(bottom, top)), slice(left, max(right, left)))
        yield window, np.sqrt((along / long) ** 2 + (across / short) ** 2).astype(np.float32)


def _texture(shape: tuple[int, int], length_px: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return smooth unit-variance noise, (y, x), of the given correlation length; coarse scales on a coarse grid."""
    step = max(int(length_px // 3), 1)
    coarse = (int(np.ceil(shape[0] / step)) + 2, int(np.ceil(shape[1] / step)) + 2)
    noise = ndimage.gaussian_filter(rng.standard_normal(coarse, dtype=np.float32), length_px / step, mode="wrap")
    noise /= max(float(noise.std()), 1e-6)
    if step == 1:
        return noise[: shape[0], : shape[1]]
    return _enlarge(noise, step, shape)


def _enlarge(coarse: NDArray[np.float32], step: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    for axis, extent in enumerate(shape):
        position = np.arange(extent, dtype=np.float32) / step
        lower = position.astype(np.intp)
        share = (position - lower).reshape((-1, 1) if axis == 0 else (1, -1)).astype(np.float32)
        coarse = np.take(coarse, lower, axis) * (1 - share) + np.take(coarse, lower + 1, axis) * share
    return coarse


def _fibres(shape: tuple[int, int], pixel_size_um: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return stroma-like streaks, (y, x): noise stretched along the x axis, bent by a smooth shift of the rows."""
    step = max(int(2 / pixel_size_um), 1)
    coarse = (int(np.ceil(shape[0] / step)) + 2, int(np.ceil(shape[1] / step)) + 2)
    lengths = (1.2 / pixel_size_um / step + 0.5, 14 / pixel_size_um / step)
    streaks = ndimage.gaussian_filter(rng.standard_normal(coarse, dtype=np.float32), lengths, mode="wrap")
    shift = (_texture(coarse, 40 / pixel_size_um / step, rng) * 8 / pixel_size_um / step).astype(np.intp)
    rows = (np.arange(coarse[0])[:, None] + shift) % coarse[0]
    streaks = np.take_along_axis(streaks, rows, axis=0) / max(float(streaks.std()), 1e-6)
    return _enlarge(streaks.astype(np.float32), step, shape)
