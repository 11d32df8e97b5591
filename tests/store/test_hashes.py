"""Hashes of results say what the values are, however the files are divided."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from spatialscope_dist.store.frames import write_frame_parts
from spatialscope_dist.store.hashes import section_hashes


def cells(n: int = 200_000) -> pd.DataFrame:
    """Return a frame longer than what is read at once, with values missing in its second half only."""
    late = np.arange(n) > n // 2
    margin = np.where(late, np.nan, np.arange(n) / 7)
    names = pd.array([None if missing else f"S{row}" for row, missing in enumerate(late)], dtype="string")
    numbers = pd.arrays.IntegerArray(np.arange(n), late & (np.arange(n) % 3 == 0))
    return pd.DataFrame({"spot_id": names, "nucleus_id": numbers, "margin": margin, "rank": np.arange(n)})


def hash_of(folder: Path, frame: pd.DataFrame, rows: int) -> str:
    folder.mkdir()
    write_frame_parts(folder / "cells.parquet", (frame[low : low + rows] for low in range(0, len(frame), rows)))
    return section_hashes(None, folder, None)["cells"]


def test_section_hashes__do_not_depend_on_how_a_table_was_written(tmp_path: Path) -> None:
    frame = cells()
    found = {hash_of(tmp_path / str(rows), frame, rows) for rows in (len(frame), 70_000, 999)}
    assert len(found) == 1


def test_section_hashes__see_every_value(tmp_path: Path) -> None:
    frame = cells(1_000)
    found = {hash_of(tmp_path / "as_is", frame, 500)}
    for name, value in {"spot_id": "other", "nucleus_id": -1, "margin": 0.5, "rank": 7}.items():
        changed = frame.copy()
        changed.loc[123, name] = value
        found.add(hash_of(tmp_path / name, changed, 500))
    assert len(found) == 5
