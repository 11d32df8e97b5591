"""Pixels of an image in the store: the whole image when it cannot be read by region, and views of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spatialscope_dist.geometry.tiles import Box, shard_boxes
from spatialscope_dist.readers.image_views import viewing_block, viewing_shape
from spatialscope_dist.readers.images import LazyImage, decoded_blocks
from spatialscope_dist.steps.damaged import MendedImage, place_name
from spatialscope_dist.store.arrays import create_array, write_region

CHUNK, IMAGE_SHARD, VIEW_SHARD = 256, 2048, 1024


def store_image(image: LazyImage, path: Path) -> None:
    """Write all pixels, (c, y, x), block by block: for images that cannot be read by region, decoded once.

    Raises
    ------
    BadInput
        When the file is damaged.
    """
    channels = image.shape[0]
    create_array(
        path,
        shape=image.shape,
        dtype=image.dtype,
        chunks=(channels, CHUNK, CHUNK),
        shards=(channels, IMAGE_SHARD, IMAGE_SHARD),
        axes=("c", "y", "x"),
    )
    for box, pixels in decoded_blocks(image, size=IMAGE_SHARD):
        write_region(path, (slice(0, channels), *box.slices), pixels)


def store_view(image: LazyImage, path: Path, *, factor: int) -> dict[str, str]:
    """Return the reasons of damaged places; writes the image reduced by area mean, (c, y, x) uint8.

    `factor` pixels of the image make one of the view; damaged places are black.
    """
    damage: dict[str, str] = {}
    for box in create_view(image, path, factor=factor):
        damage |= store_view_block(image, path, factor=factor, box=box)
    return damage


def create_view(image: LazyImage, path: Path, *, factor: int) -> list[Box]:
    """Return the boxes of a view, in its pixels, each to be written once; nothing but metadata is written."""
    channels, shape = image.shape[0], viewing_shape((image.shape[1], image.shape[2]), factor)
    create_array(
        path,
        shape=(channels, *shape),
        dtype=np.uint8,
        chunks=(channels, CHUNK, CHUNK),
        shards=(channels, VIEW_SHARD, VIEW_SHARD),
        axes=("c", "y", "x"),
    )
    return list(shard_boxes(shape, VIEW_SHARD))


def store_view_block(image: LazyImage, path: Path, *, factor: int, box: Box) -> dict[str, str]:
    """Return the reasons of damaged places; writes one box of a view."""
    mended = MendedImage(image)
    write_region(path, (slice(0, image.shape[0]), *box.slices), viewing_block(mended, factor, box))
    return {place_name(place): reason for place, reason in mended.damage.items()}
