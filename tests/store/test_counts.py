"""Raw counts on disk: the same bytes however the rows were divided."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from spatialscope_dist.store import counts as module
from spatialscope_dist.store.counts import CountsWriter, open_counts, write_counts


@pytest.mark.parametrize("rows", [1, 3, 7, 40])
def test_counts_writer__same_bytes_for_any_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(module, "_CHUNK", 16)
    table = sp.csr_matrix(np.random.default_rng(0).poisson(0.4, (40, 9)))
    names = [f"c{i}" for i in range(40)]
    write_counts(tmp_path / "whole", table, names, list("abcdefghi"))
    writer = CountsWriter(tmp_path / "blocks", list("abcdefghi"))
    for low in range(0, 40, rows):
        writer.append(table[low : low + rows])
    writer.close(names)
    files = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    assert len(files) > 8
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "blocks" / file).read_bytes()
    assert (open_counts(tmp_path / "blocks").rows(3, 31) != table[3:31]).nnz == 0


@pytest.mark.parametrize("total", [0, 16, 17, 32])
def test_counts_writer__whole_chunks_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int) -> None:
    monkeypatch.setattr(module, "_CHUNK", 16)
    table = sp.csr_matrix(np.arange(1, total + 1).reshape(total, 1)) if total else sp.csr_matrix((3, 1), dtype=int)
    write_counts(tmp_path / "t", table, [str(i) for i in range(table.shape[0])], ["a"])
    back = open_counts(tmp_path / "t")
    assert back.entries().sum() == total
    assert (back.rows(0, back.shape[0]) != table).nnz == 0


def test_counts_writer__names_must_match_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found 2 row names for 3 rows"):
        write_counts(tmp_path / "t", sp.csr_matrix(np.ones((3, 2), int)), ["a", "b"], ["g", "h"])
