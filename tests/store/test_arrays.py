from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from spatialscope_dist.errors import StoreError
from spatialscope_dist.store.arrays import create_array, open_array, read_array, write_array, write_region
from spatialscope_dist.store.counts import open_counts, write_counts


def test_write_region__whole_shards_only(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    create_array(path, shape=(10, 4), dtype="i4", chunks=(2, 4), shards=(4, 4), axes=("y", "x"))
    write_region(path, (slice(4, 8), slice(0, 4)), np.full((4, 4), 7))
    write_region(path, (slice(8, 10), slice(0, 4)), np.full((2, 4), 9))
    with pytest.raises(StoreError, match="cuts a write unit of 4"):
        write_region(path, (slice(0, 2), slice(0, 4)), np.zeros((2, 4)))
    assert open_array(path)[:, 0].tolist() == [0, 0, 0, 0, 7, 7, 7, 7, 9, 9]


def test_write_array__keeps_values_and_axes(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_array(tmp_path / "b.zarr", values, axes=("spot", "type"))
    assert np.array_equal(read_array(tmp_path / "b.zarr"), values)
    assert open_array(tmp_path / "b.zarr").metadata.dimension_names == ("spot", "type")


def test_counts__rows_and_sums_equal_the_matrix(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.3, (37, 11))
    write_counts(tmp_path / "c.zarr", sp.csr_matrix(dense), [f"s{i}" for i in range(37)], [f"g{i}" for i in range(11)])
    counts = open_counts(tmp_path / "c.zarr")
    assert counts.shape == (37, 11)
    assert np.array_equal(counts.rows(5, 20).toarray(), dense[5:20])
    assert np.array_equal(counts.column_sums(), dense.sum(0))
    panel = counts.panel_rows(np.array([2, 3, 30]), ["g4", "absent", "g0"])
    assert np.array_equal(panel, np.stack([dense[[2, 3, 30], 4], [0, 0, 0], dense[[2, 3, 30], 0]], axis=1))
    assert sum(block.shape[0] for _, block in counts.blocks(8)) == 37
