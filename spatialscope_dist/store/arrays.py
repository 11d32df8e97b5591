"""Zarr arrays: whole chunks written once, regions aligned to the write unit."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from spatialscope_dist.errors import StoreError
from spatialscope_dist.location import is_remote
from spatialscope_dist.store.documents import make_folder, refusing_to_write


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
    """Return a new array on disk with named axes; nothing but metadata is written.

    Raises
    ------
    StoreError
        When it cannot be written.
    """
    with refusing_to_write(path):
        make_folder(path.parent)
        return zarr.create_array(
            store=_store(path),
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
    return zarr.open_array(_store(path), mode="r")


def write_region(path: Path, region: Sequence[slice], values: NDArray[Any]) -> None:
    """Write one region made of whole write units (shards, or chunks when there are none).

    Raises
    ------
    StoreError
        When the region cuts a write unit, since two writers of one unit lose rows silently, or the disk is full.
    """
    array = zarr.open_array(_store(path), mode="r+")
    unit = array.shards or array.chunks
    for part, size, length in zip(region, unit, array.shape, strict=True):
        if part.start % size or (part.stop % size and part.stop != length):
            raise StoreError(
                f"{path}: region {part.start}:{part.stop} cuts a write unit of {size} along an axis of {length}"
            )
    with refusing_to_write(path):
        array[tuple(region)] = values


def write_array(path: Path, values: NDArray[Any], *, axes: Sequence[str], chunks: Sequence[int] | None = None) -> None:
    """Write a small array whole.

    Raises
    ------
    StoreError
        When the disk is full.
    """
    size = tuple(max(1, length) for length in values.shape) if chunks is None else tuple(chunks)
    array = create_array(path, shape=values.shape, dtype=values.dtype, chunks=size, axes=axes)
    with refusing_to_write(path):
        array[...] = values


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
        array = zarr.open_array(_store(path), mode="r+")
        if start % array.chunks[0]:
            raise StoreError(f"{path}: {start} entries cut a chunk of {array.chunks[0]}")
        with refusing_to_write(path):
            array.resize((start + len(values),))
    with refusing_to_write(path):
        array[start:] = values


def open_group(path: Path, *, mode: Literal["r", "w"] = "r") -> zarr.Group:
    """Return a group of arrays, opened for reading or made anew."""
    return zarr.open_group(_store(path), mode=mode)


def _store(path: Path) -> Any:
    """Return what Zarr opens: an object store is one that remembers no listings."""
    if not is_remote(path):
        return str(path)
    from zarr.storage import FsspecStore

    return FsspecStore.from_url(str(path), storage_options=dict(cast(Any, path).storage_options))


def load_npy(path: Path) -> NDArray[Any]:
    """Return the array of a .npy file: left on disk until used, or whole from an object store."""
    if is_remote(path):
        whole: NDArray[Any] = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        return whole
    left: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return left


def read_array(path: Path) -> NDArray[Any]:
    """Return a small array whole."""
    return np.asarray(open_array(path)[...])
