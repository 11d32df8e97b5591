"""Zarr arrays: whole chunks written once, regions aligned to the write unit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from spatialscope_dist.errors import StoreError


def create_array(
    path: Path,
    *,
    shape: Sequence[int],
    dtype: Any,
    chunks: Sequence[int],
    axes: Sequence[str],
    shards: Sequence[int] | None = None,
    fill: float = 0,
) -> zarr.Array[Any]:
    """Return a new array on disk with named axes; nothing but metadata is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return zarr.create_array(
        store=str(path),
        shape=tuple(shape),
        dtype=np.dtype(dtype),
        chunks=tuple(chunks),
        shards=None if shards is None else tuple(shards),
        dimension_names=list(axes),
        fill_value=fill,
        overwrite=True,
    )


def open_array(path: Path) -> zarr.Array[Any]:
    """Return an array on disk, opened for reading by region."""
    return zarr.open_array(str(path), mode="r")


def write_region(path: Path, region: Sequence[slice], values: NDArray[Any]) -> None:
    """Write one region made of whole write units (shards, or chunks when there are none).

    Raises
    ------
    StoreError
        When the region cuts a write unit, since two writers of one unit lose rows silently, or the disk is full.
    """
    array = zarr.open_array(str(path), mode="r+")
    unit = array.shards or array.chunks
    for part, size, length in zip(region, unit, array.shape, strict=True):
        if part.start % size or (part.stop % size and part.stop != length):
            raise StoreError(
                f"{path}: region {part.start}:{part.stop} cuts a write unit of {size} along an axis of {length}"
            )
    try:
        array[tuple(region)] = values
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error}). Free space, then run again.") from error


def write_array(path: Path, values: NDArray[Any], *, axes: Sequence[str], chunks: Sequence[int] | None = None) -> None:
    """Write a small array whole.

    Raises
    ------
    StoreError
        When the disk is full.
    """
    size = tuple(max(1, length) for length in values.shape) if chunks is None else tuple(chunks)
    array = create_array(path, shape=values.shape, dtype=values.dtype, chunks=size, axes=axes)
    try:
        array[...] = values
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error}). Free space, then run again.") from error


def append_entries(path: Path, values: NDArray[Any], *, start: int, chunk: int) -> None:
    """Write values behind the first `start` entries of a one-dimensional array, made new when `start` is 0.

    Raises
    ------
    StoreError
        When `start` cuts a chunk, or the disk is full.
    """
    if start == 0:
        array = create_array(path, shape=values.shape, dtype=values.dtype, chunks=(chunk,), axes=("entry",))
    else:
        array = zarr.open_array(str(path), mode="r+")
        if start % array.chunks[0]:
            raise StoreError(f"{path}: {start} entries cut a chunk of {array.chunks[0]}")
        array.resize((start + len(values),))
    try:
        array[start:] = values
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error}). Free space, then run again.") from error


def read_array(path: Path) -> NDArray[Any]:
    """Return a small array whole."""
    return np.asarray(open_array(path)[...])
