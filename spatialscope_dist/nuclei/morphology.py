"""How a nucleus looks: shape from its outline, stain and texture from the pixels inside it.

H&E colours are unmixed in optical density (Ruifrok & Johnston, Anal. Quant. Cytol. Histol. 2001): light
that passed the amounts a of the stains has the density OD = −log10(I / I_0) = a · V, V the rows of the
stains' colours, so a = OD · V⁻¹. Other images are measured by their mean intensity. All measures are
the same however the image is divided: a pixel's values depend on it and its four neighbours only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.nuclei.paint import polygon_pixels
from spatialscope_dist.nuclei.polygons import measure

SHAPE_MEASURES = ("area_um2", "perimeter_um", "eccentricity")
STAINED_MEASURES = ("haematoxylin_mean", "haematoxylin_sd", "haematoxylin_gradient", "eosin_mean")
INTENSITY_MEASURES = ("intensity_mean", "intensity_sd", "intensity_gradient")

#: Optical density of haematoxylin and eosin in red, green and blue (Ruifrok & Johnston 2001, table 1).
STAIN_COLOURS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])

Maps = NDArray[np.float32]


def measure_names(n_channels: int) -> tuple[str, ...]:
    """Return the names of all measures: three channels are taken for H&E."""
    return SHAPE_MEASURES + (STAINED_MEASURES if n_channels == 3 else INTENSITY_MEASURES)


def measure_nuclei(
    pixels: NDArray[np.integer], polygons: NDArray[np.floating], *, origin: tuple[int, int], um: float
) -> NDArray[np.float32]:
    """Return the measures of each nucleus, (nuclei, measures) in the order of `measure_names`.

    NaN for stain and texture where no pixel lies inside.

    Parameters
    ----------
    pixels : ndarray
        (channels, y, x), a region with all polygons and one pixel around them, cut at the image's border.
    polygons : ndarray
        (nuclei, rays, 2), outlines (y, x) in pixels of the image, pixel centres at integers.
    origin : tuple of int
        (y, x) of the region's first pixel.
    um : float
        µm per pixel.
    """
    maps = stain_maps(pixels)
    gradient = _gradient(maps[0], um)
    stains = [_inside(maps, gradient, polygon, origin) for polygon in polygons]
    n_stains = len(measure_names(len(pixels))) - len(SHAPE_MEASURES)
    return np.concatenate([outline_shapes(polygons, um=um), np.reshape(stains, (-1, n_stains))], axis=1).astype(
        np.float32
    )


def outline_shapes(polygons: NDArray[np.floating], *, um: float) -> NDArray[np.float64]:
    """Return area (µm²), perimeter (µm) and eccentricity, (nuclei, 3), of outlines, (nuclei, rays, 2).

    The eccentricity is that of the ellipse with the outline's second moments.
    """
    areas, centroids = measure(np.asarray(polygons, np.float32))
    here = polygons.astype(np.float64) - centroids[:, None]
    there = np.roll(here, -1, axis=1)
    perimeters = np.sqrt(((there - here) ** 2).sum(axis=2)).sum(axis=1)
    cross = here[..., 1] * there[..., 0] - there[..., 1] * here[..., 0]
    (yh, xh), (yt, xt) = np.moveaxis(here, 2, 0), np.moveaxis(there, 2, 0)
    yy = np.abs((cross * (yh * yh + yh * yt + yt * yt)).sum(axis=1)) / 12
    xx = np.abs((cross * (xh * xh + xh * xt + xt * xt)).sum(axis=1)) / 12
    yx = (cross * (2 * yh * xh + yh * xt + yt * xh + 2 * yt * xt)).sum(axis=1) / 24
    middle, reach = (yy + xx) / 2, np.sqrt(((yy - xx) / 2) ** 2 + yx**2)
    ratio = np.divide(middle - reach, middle + reach, out=np.ones_like(middle), where=middle > 0)
    eccentricity = np.sqrt(np.clip(1 - ratio, 0, 1))
    return np.stack([areas * um**2, perimeters * um, eccentricity], axis=1)


def stain_maps(pixels: NDArray[np.integer]) -> Maps:
    """Return the amounts of haematoxylin and eosin, (2, y, x), of RGB pixels; else the mean intensity, (1, y, x).

    Amounts are optical densities along the stain's colour; intensities are shares of the largest the pixels can have.
    """
    top = int(np.iinfo(pixels.dtype).max)
    if len(pixels) != 3:
        return np.asarray(pixels.mean(axis=0, keepdims=True, dtype=np.float64) / top, np.float32)
    # A table of all intensities: the same density for the same intensity, wherever the pixel lies.
    density = (-np.log10((np.arange(top + 1) + 1.0) / (top + 1.0))).astype(np.float32)
    red, green, blue = density[pixels]
    unmixing = _unmixing().astype(np.float32)
    return np.stack(
        [red * unmixing[0, stain] + green * unmixing[1, stain] + blue * unmixing[2, stain] for stain in (0, 1)]
    )


def _unmixing() -> NDArray[np.float64]:
    """Return V⁻¹, (rgb, stains); the third stain is what the other two leave, at right angles to both."""
    colours = np.vstack([STAIN_COLOURS, np.cross(*STAIN_COLOURS)])
    return np.asarray(np.linalg.inv(colours / np.linalg.norm(colours, axis=1, keepdims=True)))


def _gradient(stain: NDArray[np.float32], um: float) -> NDArray[np.float32]:
    """Return the length of the gradient per µm, (y, x), by central differences; borders repeat their pixels."""
    framed = np.pad(stain, 1, mode="edge")
    down, right = framed[2:, 1:-1] - framed[:-2, 1:-1], framed[1:-1, 2:] - framed[1:-1, :-2]
    return np.asarray(np.sqrt(down * down + right * right) / np.float32(2 * um))


def _inside(
    maps: Maps, gradient: NDArray[np.float32], polygon: NDArray[np.floating], origin: tuple[int, int]
) -> NDArray[np.float64]:
    """Return mean, sd and mean gradient of the first stain, then the means of the others, inside a polygon."""
    rows, columns = polygon_pixels(np.asarray(polygon))
    rows, columns = rows - origin[0], columns - origin[1]
    seen = (rows >= 0) & (rows < maps.shape[1]) & (columns >= 0) & (columns < maps.shape[2])
    rows, columns = rows[seen], columns[seen]
    if len(rows) == 0:
        return np.full(2 + len(maps), np.nan)
    values = maps[:, rows, columns].astype(np.float64)
    nuclear = [values[0].mean(), values[0].std(), gradient[rows, columns].mean(dtype=np.float64)]
    return np.array([*nuclear, *(other.mean() for other in values[1:])])
