"""Circles of a published section, written part by part: as objects, millions of points fill a worker's memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.store.frames import read_arrow_parts

_POINT = np.dtype([("little_endian", "u1"), ("kind", "<u4"), ("x", "<f8"), ("y", "<f8")])  # well-known binary


def fill_circles(shapes: Path, places: Path, key: str, *, radius: float) -> None:
    """Put circles around all places in the place of the few in a GeoParquet file, whose schema they take.

    Parameters
    ----------
    shapes : GeoParquet file of circles with columns radius, geometry and the index
    places : frame with x_px, y_px and the circles' names
    key : column of the names
    radius : of every circle, in pixels
    """
    import pyarrow
    from pyarrow.parquet import ParquetWriter, read_schema

    columns = [key, "x_px", "y_px"]
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for part in read_arrow_parts(places, columns):
        low, high = np.minimum(low, _points(part).min(axis=0)), np.maximum(high, _points(part).max(axis=0))
    schema = read_schema(shapes)
    about = json.loads(schema.metadata[b"geo"])
    about["columns"]["geometry"]["bbox"] = [*low.tolist(), *high.tolist()]
    schema = schema.with_metadata({**schema.metadata, b"geo": json.dumps(about).encode()})
    (index,) = set(schema.names) - {"radius", "geometry"}
    with ParquetWriter(shapes, schema) as writer:
        for part in read_arrow_parts(places, columns):
            filled = {
                "radius": np.full(len(part), radius),
                "geometry": _well_known_binary(_points(part)),
                index: part[key],
            }
            arrays = [pyarrow.array(filled[name]).cast(schema.field(name).type) for name in schema.names]
            writer.write_batch(pyarrow.RecordBatch.from_arrays(arrays, schema=schema))


def _points(part: Any) -> NDArray[np.float64]:
    """Return the points of a part, (places, 2), (x, y) pixels."""
    return np.stack([part[name].to_numpy(zero_copy_only=False) for name in ("x_px", "y_px")], axis=1)


def _well_known_binary(points: NDArray[np.float64]) -> Any:
    """Return points as an Arrow array of well-known binary."""
    import pyarrow

    records = np.empty(len(points), _POINT)
    records["little_endian"], records["kind"] = 1, 1
    records["x"], records["y"] = points.T
    ends = np.arange(len(points) + 1, dtype=np.int32) * np.int32(_POINT.itemsize)
    buffers = [None, pyarrow.py_buffer(ends), pyarrow.py_buffer(records)]
    return pyarrow.Array.from_buffers(pyarrow.binary(), len(points), buffers)
