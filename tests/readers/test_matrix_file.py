"""A matrix on disk read by blocks: any layout, any block, the same counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from spatialscope_dist.errors import BadInput
from spatialscope_dist.readers import matrix as module
from spatialscope_dist.readers.matrix import MatrixFile, matrix_of, reading, row_ranges

VALUES = np.random.default_rng(0).poisson(0.5, (23, 11)).astype(np.int32)


def written(path: Path, values: Any) -> MatrixFile:
    anndata.AnnData(values).write_h5ad(path, compression="gzip")
    with reading(path) as handle:
        matrix = matrix_of(path, handle, "X")
    assert matrix is not None
    return matrix


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
@pytest.mark.parametrize("entries", [1, 13, 10_000])
def test_blocks__equal_the_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, entries: int) -> None:
    monkeypatch.setattr(module, "_ENTRIES", entries)
    made = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}[layout](VALUES)
    matrix = written(tmp_path / "m.h5ad", made)
    assert matrix.layout == layout
    assert matrix.shape == VALUES.shape
    blocks = list(matrix.blocks())
    assert [low for low, _ in blocks] == np.cumsum([0, *(block.shape[0] for _, block in blocks[:-1])]).tolist()
    assert (sp.vstack([block for _, block in blocks]).toarray() == VALUES).all()
    assert sum(int(values.sum()) for values in matrix.values()) == VALUES.sum()


def test_blocks__kept_columns(tmp_path: Path) -> None:
    whole = written(tmp_path / "m.h5ad", sp.csr_matrix(VALUES))
    matrix = MatrixFile(whole.path, "X", "csr", whole.stored_shape, whole.n_stored, columns=(1, 5))
    assert matrix.shape == (23, 2)
    assert (next(matrix.blocks())[1].toarray() == VALUES[:, [1, 5]]).all()


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 20))
def test_row_ranges__cover_every_row_once(entries: list[int], limit: int) -> None:
    ranges = row_ranges(np.array(entries, dtype=np.int64), limit)
    assert [row for low, high in ranges for row in range(low, high)] == list(range(len(entries)))
    for low, high in ranges:
        assert sum(entries[low:high]) <= limit or high == low + 1


def test_reading__lost_part(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5ad", "w") as handle:
        handle["X"] = VALUES
    with pytest.raises(BadInput, match="lacks a part"), reading(tmp_path / "m.h5ad") as handle:
        handle["obs"]
