"""Images of which a part cannot be read: what is whole is used, and what is not is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from spatialscope_dist.errors import BadInput
from spatialscope_dist.geometry.tiles import Box
from spatialscope_dist.readers.images import LazyImage, Pixels

SMALLEST_PX = 256


def readable_parts(read: Callable[[Box], Pixels], box: Box) -> Iterator[tuple[Box, Pixels | str]]:
    """Return the box in parts, each with its pixels, or with the reason why it cannot be read.

    Parameters
    ----------
    read : callable
        Returns the (channels, y, x) pixels of a box, or raises BadInput.
    box : Box
        Divided along multiples of 256 pixels as long as a part of it is damaged.
    """
    try:
        yield box, read(box)
    except BadInput as error:
        parts = _parts(box)
        if len(parts) == 1:
            yield box, str(error)
            return
        for part in parts:
            yield from readable_parts(read, part)


def place_name(box: Box) -> str:
    """Return how a box of the image is named to users."""
    return f"image rows {box.y0} to {box.y1}, columns {box.x0} to {box.x1}"


def _parts(box: Box) -> list[Box]:
    return [
        Box(y0, y1, x0, x1) for y0, y1 in pairwise(_cut(box.y0, box.y1)) for x0, x1 in pairwise(_cut(box.x0, box.x1))
    ]


def _cut(start: int, stop: int) -> list[int]:
    first = (start // SMALLEST_PX + 1) * SMALLEST_PX
    if first >= stop:
        return [start, stop]
    return [start, first + (stop - 1 - first) // SMALLEST_PX // 2 * SMALLEST_PX, stop]


class MendedImage(LazyImage):
    """An image whose damaged parts are black: taken for tissue, so that they are looked at and found damaged.

    Attributes
    ----------
    damage : dict
        Reason by the damaged box, source pixels, of what was read so far.
    """

    def __init__(self, image: LazyImage) -> None:
        super().__init__(image.path)
        self.format, self.shape, self.dtype, self.is_tiled = image.format, image.shape, image.dtype, image.is_tiled
        self.damage: dict[Box, str] = {}
        self._image = image

    def _read(self, box: Box, level: int) -> Pixels:
        whole = np.zeros((self.shape[0], *box.shape), self.dtype)
        for part, found in readable_parts(lambda place: self._image.read(*place, level=level), box):
            if isinstance(found, str):
                self.damage[part] = found
            else:
                whole[:, part.y0 - box.y0 : part.y1 - box.y0, part.x0 - box.x0 : part.x1 - box.x0] = found
        return whole
