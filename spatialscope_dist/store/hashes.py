"""SHA-256 of results in canonical order: equal for any division of the work."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from spatialscope_dist.store.arrays import open_array
from spatialscope_dist.store.documents import read_json
from spatialscope_dist.store.frames import column_names, read_arrow_parts

_SEPARATOR = "\x1f"


def section_hashes(segment: Path | None, identify: Path | None, decompose: Path | None) -> dict[str, str]:
    """Return the hashes of a section's labels, nuclei, types and expression, those there are."""
    hashes: dict[str, str] = {}
    if segment is not None:
        hashes["labels"] = hash_array(segment / "labels.zarr")
        hashes["nuclei"] = _hash_frame(segment / "nuclei.parquet") + hash_array(segment / "polygons.zarr")
    if identify is not None:
        hashes["cells"] = _hash_frame(identify / "cells.parquet")
    if decompose is not None:
        hashes["expression"] = hash_array(decompose / "mean.zarr")
        for layer in read_json(decompose / "layers.json"):
            hashes[f"expression_{layer}"] = hash_array(decompose / f"{layer}.zarr")
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in hashes.items()}


def hash_array(path: Path) -> str:
    """Return the SHA-256 of an array's shape, dtype and values in C order, read by slabs of rows."""
    array = open_array(path)
    digest = hashlib.sha256(f"{array.shape}{array.dtype}".encode())
    rows = (array.shards or array.chunks)[0]
    for low in range(0, array.shape[0], rows):
        digest.update(np.ascontiguousarray(array[low : low + rows]).tobytes())
    return digest.hexdigest()


def _hash_frame(path: Path) -> str:
    """Return the SHA-256 of a frame's values, column by column, by parts of rows: as text, millions fill a worker."""
    digest = hashlib.sha256()
    for name in sorted(column_names(path)):
        digest.update(name.encode())
        separator = ""
        for part in read_arrow_parts(path, [name]):
            values = part.to_pandas()[name].tolist()
            digest.update((separator + _SEPARATOR.join(map(_text, values))).encode())
            separator = _SEPARATOR
    return digest.hexdigest()


def _text(value: Any) -> str:
    return float(value).hex() if isinstance(value, float) else str(value)
