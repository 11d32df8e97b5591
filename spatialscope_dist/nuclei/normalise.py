"""Global intensity percentiles, exact out of core: integer histograms add up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = {"uint8": 256, "uint16": 65536}
_VALUES_AT_ONCE = 1 << 20


def intensity_histogram(block: NDArray[np.integer], *, where: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Return how often each value occurs, (bins,), jointly over all channels.

    Parameters
    ----------
    block : ndarray
        (channels, y, x), uint8 or uint16.
    where : ndarray, optional
        (y, x) pixels to count; all when None.
    """
    values = block.reshape(-1) if where is None else block[:, where].reshape(-1)
    counts = np.zeros(BINS[block.dtype.name], np.int64)
    for start in range(0, len(values), _VALUES_AT_ONCE):  # bincount widens its input to eight bytes a value
        counts += np.bincount(values[start : start + _VALUES_AT_ONCE], minlength=len(counts))
    return counts


def histogram_percentiles(histogram: NDArray[np.int64], percentiles: tuple[float, ...]) -> tuple[float, ...]:
    """Return the percentiles numpy.percentile gives on the counted values (linear interpolation).

    Raises
    ------
    ValueError
        When nothing was counted.
    """
    total = int(histogram.sum())
    if total == 0:
        raise ValueError("percentiles of no pixels")
    ends = np.cumsum(histogram)
    results = []
    for percentile in percentiles:
        position = (total - 1) * (percentile / 100.0)
        rank = int(np.floor(position))
        share = position - rank
        low = int(np.searchsorted(ends, rank, side="right"))
        high = int(np.searchsorted(ends, min(rank + 1, total - 1), side="right"))
        # numpy's own interpolation starts from the nearer end
        results.append(low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share))
    return tuple(float(value) for value in results)


def normalise(block: NDArray[np.floating], low: float, high: float) -> NDArray[np.float32]:
    """Return (block − low) / (high − low) in float32, as csbdeep normalises, for (channels, y, x) intensities."""
    shifted = block.astype(np.float32) - np.float32(low)
    result: NDArray[np.float32] = shifted / np.float32(high - low + 1e-20)
    return result
