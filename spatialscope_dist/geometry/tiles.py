"""One global grid of fixed windows for the network, and output shards; tasks only group windows.

A convolution gives different last bits for different input shapes, so the network always sees
windows of one shape, with origins at multiples of `align`, whatever the task size is. The first
and the last window of an axis end at the image border, where the network pads exactly as it does
in one prediction of the whole image. Every pixel lies in the core of exactly one window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Box(NamedTuple):
    """A half-open rectangle of pixels: rows y0 ≤ y < y1, columns x0 ≤ x < x1."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)


class Span(NamedTuple):
    """One window along one axis: [origin, origin + size) is seen, [start, stop) is owned."""

    origin: int
    size: int
    start: int
    stop: int


@dataclass(frozen=True)
class Window:
    """What the network sees in one call (`box`) and the pixels it decides (`core`)."""

    index: int
    box: Box
    core: Box


def padded_length(length: int, align: int) -> int:
    """Return the smallest multiple of `align` that is ≥ `length`."""
    return -(-length // align) * align


def window_spans(length: int, *, window: int, halo: int, align: int) -> tuple[Span, ...]:
    """Return the windows of one axis; their cores tile [0, length) in order.

    Parameters
    ----------
    length : int
        Pixels of the axis, > 0. The axis is padded to a multiple of `align`.
    window, halo : int
        Edge of a window and width of the read-only border inside it, multiples of `align`.
    align : int
        Windows start at multiples of it.

    Examples
    --------
    >>> [tuple(span) for span in window_spans(100, window=64, halo=16, align=16)]
    [(0, 64, 0, 48), (32, 64, 48, 80), (48, 64, 80, 100)]
    """
    if length < 1 or window % align or halo % align or window <= 2 * halo:
        raise ValueError(f"no window grid for length={length}, window={window}, halo={halo}, align={align}")
    padded = padded_length(length, align)
    if padded <= window:
        return (Span(0, padded, 0, length),)
    step = window - 2 * halo
    origins = [*range(0, padded - window, step), padded - window]
    stops = [origin + window - halo for origin in origins[:-1]] + [length]
    # A last core that would hold padding only belongs to nobody: its window is dropped.
    starts = [0, *stops[:-1]]
    spans = [Span(o, window, a, min(b, length)) for o, a, b in zip(origins, starts, stops, strict=True) if a < length]
    return tuple(spans)


@dataclass(frozen=True)
class WindowGrid:
    """The windows of one image, numbered row by row.

    Parameters
    ----------
    shape : tuple of int
        (height, width) in model pixels.
    window, halo, align : int
        See `window_spans`.
    """

    shape: tuple[int, int]
    window: int = 1024
    halo: int = 96
    align: int = 16

    @cached_property
    def rows(self) -> tuple[Span, ...]:
        """Windows along y."""
        return window_spans(self.shape[0], window=self.window, halo=self.halo, align=self.align)

    @cached_property
    def columns(self) -> tuple[Span, ...]:
        """Windows along x."""
        return window_spans(self.shape[1], window=self.window, halo=self.halo, align=self.align)

    @property
    def padded_shape(self) -> tuple[int, int]:
        """Height and width after padding to multiples of `align`."""
        return padded_length(self.shape[0], self.align), padded_length(self.shape[1], self.align)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __getitem__(self, index: int) -> Window:
        row, column = divmod(index, len(self.columns))
        y, x = self.rows[row], self.columns[column]
        box = Box(y.origin, y.origin + y.size, x.origin, x.origin + x.size)
        return Window(index, box, Box(y.start, y.stop, x.start, x.stop))

    def __iter__(self) -> Iterator[Window]:
        return (self[index] for index in range(len(self)))

    def pieces(self, window: Window, halo: int) -> list[Window]:
        """Return windows no larger than any other that share the core among them and see more around their piece.

        Parameters
        ----------
        window : Window
            One of the grid.
        halo : int
            Pixels each piece sees around itself, as far as the padded image and the window's size allow.
        """
        height, width = self.padded_shape
        core = window.core
        return [
            Window(window.index, Box(y.origin, y.origin + y.size, x.origin, x.origin + x.size), Box(*y[2:], *x[2:]))
            for y in self._pieces(core.y0, core.y1, height, halo)
            for x in self._pieces(core.x0, core.x1, width, halo)
        ]

    def _pieces(self, start: int, stop: int, length: int, halo: int) -> list[Span]:
        size = min(self.window, length)
        # Origins are cut down to the alignment: what is left of a window beside both halos must be more than that.
        halo = min(halo, max(self.halo, (self.window - max(self.halo, self.align)) // 2))
        n_pieces = -(-(stop - start) // (self.window - 2 * halo - self.align + 1)) if size < length else 1
        cuts = [start + (stop - start) * number // n_pieces for number in range(n_pieces + 1)]
        origins = [min(max(0, (cut - halo) // self.align * self.align), length - size) for cut in cuts[:-1]]
        return [Span(o, size, a, b) for o, a, b in zip(origins, cuts, cuts[1:], strict=False)]

    def tasks(self, tile: int) -> dict[str, list[int]]:
        """Return window indices per task: neighbours whose windows fit into `tile` pixels."""
        per_task = max(1, 1 + (tile - self.window) // (self.window - 2 * self.halo))
        groups: dict[str, list[int]] = {}
        for index in range(len(self)):
            row, column = divmod(index, len(self.columns))
            groups.setdefault(f"{row // per_task:04d}_{column // per_task:04d}", []).append(index)
        return groups

    def owner(self, points: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the index of the window owning each pixel, (points,), for (points, 2) as (y, x)."""
        stops_y = np.array([span.stop for span in self.rows])
        stops_x = np.array([span.stop for span in self.columns])
        row = np.searchsorted(stops_y, points[:, 0], side="right")
        column = np.searchsorted(stops_x, points[:, 1], side="right")
        owners: NDArray[np.int64] = (row * len(self.columns) + column).astype(np.int64)
        return owners


def shard_boxes(shape: tuple[int, int], size: int) -> Iterator[Box]:
    """Return the boxes of edge `size` that tile an image of `shape`, row by row, cut at its borders."""
    for y0 in range(0, shape[0], size):
        for x0 in range(0, shape[1], size):
            yield Box(y0, min(y0 + size, shape[0]), x0, min(x0 + size, shape[1]))
