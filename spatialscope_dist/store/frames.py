"""Data frames as parquet files, written atomically."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd

from spatialscope_dist.store.documents import write_bytes


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame without its index."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    write_bytes(path, buffer.getvalue())


def read_frame(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Return the frame of a parquet file."""
    return pd.read_parquet(path, columns=columns)


def join_sections(parts: dict[str, Path]) -> pd.DataFrame:
    """Return the frames of all sections below each other, the section's name as first column."""
    joined = pd.concat([read_frame(path).assign(section=name) for name, path in parts.items()], ignore_index=True)
    return joined[["section", *(name for name in joined.columns if name != "section")]]
