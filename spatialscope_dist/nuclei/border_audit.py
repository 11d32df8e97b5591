"""Whether the borders of cores show in the nuclei: they must not.

Straight edges: how often a pixel pair that touches a nucleus is cut by an object's outline, on the
lines where cores meet against the lines through the middle of cores. 1 means no more than
elsewhere; outlines clipped at core borders would give much more. Corners: nuclei found
by a window around a corner where cores meet against those of the slide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.geometry.tiles import Box, Span, Window, WindowGrid, padded_length

SAME_PX = 2.0
NEAR_LINE = (-1, 0, 1)


class Lines(NamedTuple):
    """Positions between pixels along one axis: p lies between pixels p − 1 and p."""

    borders: tuple[int, ...]
    middles: tuple[int, ...]


class EdgeCounts(NamedTuple):
    """Pixel pairs across lines that touch a nucleus, and those that an outline cuts."""

    border_pairs: int = 0
    border_edges: int = 0
    middle_pairs: int = 0
    middle_edges: int = 0


def core_lines(spans: Sequence[Span], scale: float) -> Lines:
    """Return where cores meet and three lines inside each, in source pixels, `scale` model pixels per source pixel."""
    borders = tuple(round(span.start / scale) for span in spans[1:])
    shares = (0.3, 0.5, 0.7)
    middles = tuple(round((s.start + share * (s.stop - s.start)) / scale) for s in spans for share in shares)
    return Lines(borders, middles)


def edge_counts(labels: NDArray[np.integer], box: Box, rows: Lines, columns: Lines) -> EdgeCounts:
    """Return the pairs and edges on the lines that cross a shard of the label image.

    Parameters
    ----------
    labels : ndarray
        (y, x), 0 = background.
    box : Box
        Where the shard lies, source pixels.
    rows, columns : Lines
        Lines between rows and between columns.
    """
    border, middle = np.zeros(2, np.int64), np.zeros(2, np.int64)
    for image, start, lines in ((labels, box.y0, rows), (labels.T, box.x0, columns)):
        border += _on_lines(image, start, lines.borders)
        middle += _on_lines(image, start, lines.middles)
    return EdgeCounts(*border.tolist(), *middle.tolist())


def _on_lines(image: NDArray[np.integer], start: int, positions: Sequence[int]) -> NDArray[np.int64]:
    near = np.array([position + offset - start for position in positions for offset in NEAR_LINE], np.int64)
    near = near[(near > 0) & (near < len(image))]
    one, other = image[near - 1], image[near]
    return np.array([((one > 0) | (other > 0)).sum(), (one != other).sum()], np.int64)


def straight_edge_score(counts: EdgeCounts) -> tuple[float, float] | None:
    """Return the share of cut pairs on core borders over that inside cores, and its standard error.

    None when no outline lies on a line. The error takes the three neighbouring lines for one.
    """
    if not counts.border_edges or not counts.middle_edges:
        return None
    score = (counts.border_edges / counts.border_pairs) / (counts.middle_edges / counts.middle_pairs)
    return score, score * float(np.sqrt(len(NEAR_LINE) * (1 / counts.border_edges + 1 / counts.middle_edges)))


def crosses_cores(bounds: NDArray[np.integer], grid: WindowGrid) -> NDArray[np.bool_]:
    """Return which boxes, (n, 4) as y0, y1, x0, x1 in model pixels, reach into more than one core."""
    crossing = np.zeros(len(bounds), np.bool_)
    for low, high, spans in ((bounds[:, 0], bounds[:, 1], grid.rows), (bounds[:, 2], bounds[:, 3], grid.columns)):
        starts = np.array([span.start for span in spans[1:]])
        crossing |= np.searchsorted(starts, low, side="right") != np.searchsorted(starts, high, side="right")
    return crossing


def corner_window(window: Window, grid: WindowGrid) -> Window | None:
    """Return a window of half the size around a corner of the core where cores meet; None when the image is one core.

    Its own core is what lies a halo inside it, or at the border of the image.
    """
    size = max(grid.window // 2, 4 * grid.halo) // grid.align * grid.align
    y0, y1, inner_y0, inner_y1 = _around(window.core.y0, window.core.y1, grid.shape[0], size, grid)
    x0, x1, inner_x0, inner_x1 = _around(window.core.x0, window.core.x1, grid.shape[1], size, grid)
    if (window.core.y0, window.core.x0) == (0, 0) and window.core.shape == grid.shape:
        return None
    return Window(window.index, Box(y0, y1, x0, x1), Box(inner_y0, inner_y1, inner_x0, inner_x1))


def _around(start: int, stop: int, length: int, size: int, grid: WindowGrid) -> tuple[int, int, int, int]:
    padded = padded_length(length, grid.align)
    border = stop if stop < length else start
    low = min(max(0, (border - size // 2) // grid.align * grid.align), max(0, padded - size))
    high = min(padded, low + size)
    return low, high, low + (grid.halo if low > 0 else 0), high - (grid.halo if high < padded else 0)


def count_matches(one: NDArray[np.floating], other: NDArray[np.floating]) -> int:
    """Return how many points of two sets, (n, 2) and (m, 2), are each other's nearest within two pixels."""
    from scipy.spatial import cKDTree

    if len(one) == 0 or len(other) == 0:
        return 0
    distance, there = cKDTree(other).query(one)
    _, back = cKDTree(one).query(other)
    mutual = np.asarray(back)[np.asarray(there)] == np.arange(len(one))
    return int((mutual & (distance <= SAME_PX)).sum())
