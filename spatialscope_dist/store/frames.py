"""Data frames as parquet files, written atomically, read whole or by rows."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import pandas as pd

from spatialscope_dist.location import opened_in_parts
from spatialscope_dist.store.documents import replacing, write_bytes

_ROWS_PER_GROUP = 1 << 16  # the least that is read


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame without its index."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, row_group_size=_ROWS_PER_GROUP)
    write_bytes(path, buffer.getvalue())


def write_frame_parts(path: Path, frames: Iterator[pd.DataFrame]) -> None:
    """Write frames of the same columns below each other, one in memory at a time; at least one frame.

    A column without a value in the first frame is one of text.

    Raises
    ------
    StoreError
        When the file cannot be written; the old content is kept.
    """
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    table = pyarrow.Table.from_pandas(next(frames), preserve_index=False)
    schema = table.schema
    for number, column in enumerate(schema):
        if pyarrow.types.is_null(column.type):
            schema = schema.set(number, column.with_type(pyarrow.string()))
    with replacing(path) as partial, ParquetWriter(partial, schema) as writer:
        writer.write_table(table.cast(schema))
        for frame in frames:
            writer.write_table(pyarrow.Table.from_pandas(frame, schema=schema, preserve_index=False))


def read_frame(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Return the frame of a parquet file."""
    return pd.read_parquet(opened_in_parts(path), columns=columns)


def read_frame_parts(path: Path) -> Iterator[pd.DataFrame]:
    """Return the frame of a parquet file in the parts it was written in, one in memory at a time; at least one."""
    with _opened(path) as file:
        if not file.num_row_groups:
            yield file.read().to_pandas()
        for number in range(file.num_row_groups):
            yield file.read_row_group(number).to_pandas()


def count_rows(path: Path) -> int:
    """Return how many rows the frame of a parquet file has; none of them is read."""
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def column_names(path: Path) -> list[str]:
    """Return the names of a parquet file's columns; no row is read."""
    with _opened(path) as file:
        return list(file.schema_arrow.names)


def read_rows(path: Path, low: int, high: int, columns: list[str] | None = None) -> pd.DataFrame:
    """Return rows low:high of the frame of a parquet file; what lies far from them is not read."""
    with _opened(path) as file:
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        starts = list(accumulate(sizes, initial=0))
        groups = [number for number, size in enumerate(sizes) if starts[number] < high and starts[number] + size > low]
        table = file.read_row_groups(groups, columns)
    first = starts[groups[0]] if groups else low
    frame: pd.DataFrame = table.slice(low - first, high - low).to_pandas()
    return frame


def read_columns(path: Path) -> Any:
    """Return the Arrow table of a parquet file: far smaller than a frame of objects."""
    from pyarrow.parquet import read_table

    return read_table(opened_in_parts(path))


def read_arrow_parts(path: Path, columns: list[str]) -> Iterator[Any]:
    """Yield some columns of a parquet file as Arrow batches, one in memory at a time."""
    with _opened(path) as file:
        yield from file.iter_batches(_ROWS_PER_GROUP, columns=columns)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(opened_in_parts(path)) as file:
        yield file


def join_sections(parts: dict[str, Path]) -> pd.DataFrame:
    """Return the frames of all sections below each other, the section's name as first column."""
    joined = pd.concat([read_frame(path).assign(section=name) for name, path in parts.items()], ignore_index=True)
    return joined[["section", *(name for name in joined.columns if name != "section")]]
