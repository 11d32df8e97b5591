"""A classical baseline: local threshold of the nuclear stain, distance transform, watershed.

For bright-field images the stain is haematoxylin by colour deconvolution (Ruifrok & Johnston 2001);
for a grey image (fluorescence) it is the intensity. Lengths are for pixels of about 0.25 µm.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SMOOTH_PX = 3.0
SURROUNDINGS_PX = 24.0
GREY_CONTRAST, HAEMATOXYLIN_CONTRAST = 0.15, 0.015
SMALLEST_PX2 = 150
PEAK_PX = 9


def watershed_labels(pixels: NDArray[np.float32]) -> NDArray[np.integer[Any]]:
    """Return a label image, (y, x), 0 = background, of (channels, y, x) pixels between 0 and 1."""
    from scipy import ndimage
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    stain = nuclear_stain(np.clip(pixels, 0.0, 1.0))
    smooth = ndimage.gaussian_filter(stain, SMOOTH_PX)
    contrast = GREY_CONTRAST if _is_grey(pixels) else HAEMATOXYLIN_CONTRAST
    found = smooth > ndimage.gaussian_filter(stain, SURROUNDINGS_PX) + contrast
    found = ndimage.binary_fill_holes(found)
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(found), 1.0)
    peaks = peak_local_max(depth, min_distance=PEAK_PX, labels=found.astype(np.int32), exclude_border=False)
    peaks = peaks[np.lexsort((peaks[:, 1], peaks[:, 0]))]
    markers = np.zeros(stain.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = watershed(-depth, markers, mask=found)
    small = np.bincount(labels.ravel(), minlength=len(peaks) + 1) < SMALLEST_PX2
    return np.where(small[labels], 0, labels)


def nuclear_stain(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how much nuclear stain there is, (y, x): haematoxylin of RGB, or the intensity of a grey image."""
    if _is_grey(pixels):
        grey: NDArray[np.float32] = pixels[0]
        return grey
    from skimage.color import rgb2hed

    haematoxylin: NDArray[np.float32] = rgb2hed(pixels.transpose(1, 2, 0))[..., 0].astype(np.float32)
    return haematoxylin


def _is_grey(pixels: NDArray[np.float32]) -> bool:
    return all(bool((channel == pixels[0]).all()) for channel in pixels[1:])
