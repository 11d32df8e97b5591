"""Raw counts as compressed sparse rows in Zarr, read by blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import zarr
from numpy.typing import NDArray

from spatialscope_dist.store.arrays import open_array, write_array
from spatialscope_dist.store.documents import read_json, write_json

_CHUNK = 1 << 18


@dataclass(frozen=True)
class Counts:
    """A table of raw counts on disk: rows are spots or cells, columns genes."""

    path: Path
    row_names: tuple[str, ...]
    genes: tuple[str, ...]
    indptr: NDArray[np.int64]

    @property
    def spot_ids(self) -> tuple[str, ...]:
        """Names of the rows."""
        return self.row_names

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, genes)."""
        return len(self.row_names), len(self.genes)

    @property
    def n_stored(self) -> int:
        """Stored entries."""
        return int(self.indptr[-1])

    def rows(self, low: int, high: int) -> sp.csr_matrix[Any]:
        """Return rows low:high, (rows, genes), raw counts int32."""
        start, stop = int(self.indptr[low]), int(self.indptr[high])
        data = np.asarray(_part(self.path, "data")[start:stop])
        indices = np.asarray(_part(self.path, "indices")[start:stop])
        indptr = self.indptr[low : high + 1] - start
        return sp.csr_matrix((data, indices, indptr), shape=(high - low, len(self.genes)))

    def blocks(self, rows: int = 4096) -> Iterator[tuple[int, sp.csr_matrix[Any]]]:
        """Yield (first row, counts) of consecutive blocks of rows."""
        for low in range(0, len(self.row_names), rows):
            yield low, self.rows(low, min(low + rows, len(self.row_names)))

    def column_sums(self) -> NDArray[np.int64]:
        """Return the sum of each gene, (genes,), raw counts."""
        total = np.zeros(len(self.genes), dtype=np.int64)
        for _, block in self.blocks():
            total += np.asarray(block.sum(axis=0), dtype=np.int64).ravel()
        return total

    def row_sums(self) -> NDArray[np.int64]:
        """Return the sum of each row, (rows,), raw counts."""
        sums = [np.asarray(block.sum(axis=1), dtype=np.int64).ravel() for _, block in self.blocks()]
        return np.concatenate(sums) if sums else np.zeros(0, dtype=np.int64)


def write_counts(path: Path, counts: sp.csr_matrix[Any], row_names: Sequence[str], genes: Sequence[str]) -> None:
    """Write a sparse table of raw counts, (rows, genes)."""
    canonical = counts.tocsr().copy()
    canonical.sum_duplicates()
    canonical.eliminate_zeros()
    for name, values in (
        ("data", canonical.data.astype(np.int32)),
        ("indices", canonical.indices.astype(np.int32)),
        ("indptr", canonical.indptr.astype(np.int64)),
    ):
        write_array(path / name, values, axes=("entry",), chunks=(min(_CHUNK, max(1, len(values))),))
    write_json(path / "names.json", {"rows": list(map(str, row_names)), "genes": list(map(str, genes))})


def open_counts(path: Path) -> Counts:
    """Return the table of counts at `path`, its entries still on disk."""
    names = read_json(path / "names.json")
    return Counts(path, tuple(names["rows"]), tuple(names["genes"]), np.asarray(_part(path, "indptr")[...]))


def _part(path: Path, name: str) -> zarr.Array[Any]:
    return open_array(path / name)
