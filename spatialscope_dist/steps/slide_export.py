"""What users take away of a segmented slide: a label TIFF and a table of nuclei, written piece by piece."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.errors import StoreError
from spatialscope_dist.store.arrays import open_array


def export_labels(labels: str, out: str, pixel_size_um: float) -> dict[str, Any]:
    """Write the label image as a tiled TIFF with its pixel size, one tile in memory at a time (worker).

    Raises
    ------
    StoreError
        When the file cannot be written.
    """
    import tifffile

    array, target = open_array(Path(labels)), Path(out)
    partial = target.with_name(f".{target.name}.partial")
    try:
        tifffile.imwrite(
            partial,
            _tiles(array),
            shape=array.shape,
            dtype=array.dtype,
            tile=array.chunks,
            compression="zlib",
            maxworkers=1,  # several would hold hundreds of megabytes of tiles between them
            photometric="minisblack",
            bigtiff=array.nbytes >= 1 << 31,
            resolution=(1e4 / pixel_size_um, 1e4 / pixel_size_um),
            resolutionunit="CENTIMETER",
        )
        partial.replace(target)
    except OSError as error:
        raise _cannot_write(partial, target, error) from error
    return {"shape": list(array.shape)}


def _tiles(array: Any) -> Iterator[NDArray[np.uint32]]:
    (height, width), (tall, wide) = array.shape, array.chunks
    for y0 in range(0, height, tall):
        for x0 in range(0, width, wide):
            part = np.asarray(array[y0 : y0 + tall, x0 : x0 + wide])
            yield np.pad(part, [(0, tall - part.shape[0]), (0, wide - part.shape[1])])


def export_table(nuclei: str, out: str) -> dict[str, Any]:
    """Write the table of nuclei (worker).

    Raises
    ------
    StoreError
        When the file cannot be written.
    """
    target = Path(out)
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.copyfile(nuclei, partial)
        partial.replace(target)
    except OSError as error:
        raise _cannot_write(partial, target, error) from error
    return {"bytes": target.stat().st_size}


def _cannot_write(partial: Path, target: Path, error: OSError) -> StoreError:
    partial.unlink(missing_ok=True)
    return StoreError(f"{target}: cannot be written ({error}). Free space, then run again.")
