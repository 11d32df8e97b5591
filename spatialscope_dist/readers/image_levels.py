"""Resolutions of one image, and which of them suits a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Level(NamedTuple):
    """One resolution of an image: its (height, width) and source pixels per pixel of it."""

    shape: tuple[int, int]
    factor: float


def level_for(levels: Sequence[Level], pixel_size_um: float, model_pixel_size_um: float) -> int:
    """Return the coarsest level that is, within 3 %, no coarser than the model's pixels; 0 when none is.

    Parameters
    ----------
    levels : sequence of Level
        Resolutions of an image.
    pixel_size_um : float
        µm per source pixel.
    model_pixel_size_um : float
        µm per pixel the model was trained at.
    """
    sizes = [pixel_size_um * level.factor for level in levels]
    fine = [number for number, size in enumerate(sizes) if size <= 1.03 * model_pixel_size_um]
    return max(fine, key=lambda number: sizes[number], default=0)


def level_factor(full: tuple[int, int], size: tuple[int, int]) -> float:
    """Return source pixels per pixel of a level of `size`, (height, width) both."""
    # A level of n pixels may stand for any n·f ± f source pixels: a whole f is taken when it fits.
    mean = (full[0] / size[0] + full[1] / size[1]) / 2
    whole = round(mean)
    fits = all(abs(length - whole * short) < whole for length, short in zip(full, size, strict=True))
    return float(whole) if fits else mean


def is_reduction(full: tuple[int, int], size: tuple[int, int]) -> bool:
    """Return whether `size` is the same picture, smaller: (height, width) both."""
    ratios = full[0] / size[0], full[1] / size[1]
    return min(ratios) > 1.01 and max(ratios) / min(ratios) < 1.02
