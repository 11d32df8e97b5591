"""Data frames as parquet files, written atomically."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from spatialscope_dist.errors import StoreError
from spatialscope_dist.store.documents import write_bytes


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame without its index."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    write_bytes(path, buffer.getvalue())


def write_frame_parts(path: Path, frames: Iterator[pd.DataFrame]) -> None:
    """Write frames of the same columns below each other, one in memory at a time; at least one frame.

    Raises
    ------
    StoreError
        When the file cannot be written; the old content is kept.
    """
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    table = pyarrow.Table.from_pandas(next(frames), preserve_index=False)
    try:
        with ParquetWriter(partial, table.schema) as writer:
            writer.write_table(table)
            for frame in frames:
                writer.write_table(pyarrow.Table.from_pandas(frame, schema=table.schema, preserve_index=False))
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"{path}: cannot be written ({error}). Free space, then run again.") from error


def read_frame(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Return the frame of a parquet file."""
    return pd.read_parquet(path, columns=columns)


def join_sections(parts: dict[str, Path]) -> pd.DataFrame:
    """Return the frames of all sections below each other, the section's name as first column."""
    joined = pd.concat([read_frame(path).assign(section=name) for name, path in parts.items()], ignore_index=True)
    return joined[["section", *(name for name in joined.columns if name != "section")]]
