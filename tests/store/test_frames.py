"""Frames read whole or by rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spatialscope_dist.store import frames
from spatialscope_dist.store.frames import read_rows, write_frame


def test_read_rows__any_rows_of_several_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_ROWS_PER_GROUP", 7)
    frame = pd.DataFrame({"spot": [f"s{i}" for i in range(30)], "count": np.arange(30)})
    write_frame(tmp_path / "f.parquet", frame)
    for low, high in ((0, 30), (0, 0), (6, 8), (13, 29), (28, 30)):
        found = read_rows(tmp_path / "f.parquet", low, high, ["count", "spot"])
        assert found["spot"].tolist() == frame["spot"].iloc[low:high].tolist()
        assert found["count"].tolist() == list(range(low, high))
