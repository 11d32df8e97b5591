"""Raw counts as compressed sparse rows in Zarr, read by blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from numpy.typing import NDArray

from spatialscope_dist.panel import positions_in
from spatialscope_dist.store.arrays import append_entries, open_array, write_array
from spatialscope_dist.store.documents import read_json, write_json
from spatialscope_dist.store.frames import read_rows, write_frame

_CHUNK = 1 << 18
_ROWS_AT_ONCE = 256
_ROW_NAMES = "rows.parquet"


@dataclass(frozen=True)
class Counts:
    """A table of raw counts on disk: rows are spots or cells, columns genes."""

    path: Path
    genes: tuple[str, ...]
    n_rows: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, genes)."""
        return self.n_rows, len(self.genes)

    def entries(self) -> NDArray[np.int64]:
        """Return the number of stored entries of each row, (rows,)."""
        return np.diff(np.asarray(_part(self.path, "indptr")[...]))

    def row_names(self, low: int, high: int) -> list[str]:
        """Return the names of rows low:high."""
        names: list[str] = read_rows(self.path / _ROW_NAMES, low, high)["name"].tolist()
        return names

    def rows(self, low: int, high: int) -> sp.csr_matrix[Any]:
        """Return rows low:high, (rows, genes), raw counts int32."""
        pointers = np.asarray(_part(self.path, "indptr")[low : high + 1])
        start, stop = int(pointers[0]), int(pointers[-1])
        data = np.asarray(_part(self.path, "data")[start:stop])
        indices = np.asarray(_part(self.path, "indices")[start:stop])
        return sp.csr_matrix((data, indices, pointers - start), shape=(high - low, len(self.genes)))

    def blocks(self, rows: int = 4096) -> Iterator[tuple[int, sp.csr_matrix[Any]]]:
        """Yield (first row, counts) of consecutive blocks of rows."""
        for low in range(0, self.shape[0], rows):
            yield low, self.rows(low, min(low + rows, self.shape[0]))

    def column_sums(self) -> NDArray[np.int64]:
        """Return the sum of each gene, (genes,), raw counts."""
        total = np.zeros(len(self.genes), dtype=np.int64)
        for _, block in self.blocks():
            total += np.asarray(block.sum(axis=0), dtype=np.int64).ravel()
        return total

    def panel_rows(self, rows: NDArray[np.int64], panel: Sequence[str]) -> NDArray[np.float32]:
        """Return raw counts of ascending rows and a gene panel, (rows, panel genes); 0 for genes not measured."""
        at = positions_in(self.genes, panel)
        out = np.zeros((len(rows), len(at)), np.float32)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[start : start + _ROWS_AT_ONCE]
            block = self.rows(int(part[0]), int(part[-1]) + 1)[part - part[0]]
            out[start : start + len(part), at >= 0] = block[:, at[at >= 0]].toarray()
        return out


@dataclass
class CountsWriter:
    """Writes a table of raw counts block by block of rows, in bounded memory.

    Only whole chunks are written; the table can be opened once `close` has named its rows. The bytes
    on disk depend on the counts alone, never on how the rows were divided into blocks.
    """

    path: Path
    genes: Sequence[str]
    _waiting: dict[str, list[NDArray[np.int32]]] = field(default_factory=lambda: {"data": [], "indices": []})
    _pointers: list[NDArray[np.int64]] = field(default_factory=lambda: [np.zeros(1, dtype=np.int64)])
    _n_waiting: int = 0
    _n_written: int = 0

    def append(self, block: sp.csr_matrix[Any]) -> None:
        """Add the next rows, (rows, genes), raw counts."""
        canonical = block.tocsr().copy()
        canonical.sum_duplicates()
        canonical.eliminate_zeros()
        self._waiting["data"].append(canonical.data.astype(np.int32))
        self._waiting["indices"].append(canonical.indices.astype(np.int32))
        self._pointers.append(canonical.indptr[1:].astype(np.int64) + self._pointers[-1][-1])
        self._n_waiting += canonical.nnz
        whole = self._n_waiting - self._n_waiting % _CHUNK
        if whole:
            self._write(whole, _CHUNK)

    def close(self, row_names: Sequence[str]) -> None:
        """Write what is left, and the names.

        Raises
        ------
        ValueError
            When the number of names is not the number of rows.
        """
        indptr = np.concatenate(self._pointers)
        if len(row_names) != len(indptr) - 1:
            raise ValueError(f"found {len(row_names)} row names for {len(indptr) - 1} rows; expected one each")
        if self._n_waiting or not self._n_written:
            self._write(self._n_waiting, min(_CHUNK, max(1, self._n_waiting)))
        write_array(self.path / "indptr", indptr, axes=("entry",), chunks=(min(_CHUNK, len(indptr)),))
        write_frame(self.path / _ROW_NAMES, pd.DataFrame({"name": pd.Series(list(map(str, row_names)), dtype=object)}))
        write_json(self.path / "genes.json", list(map(str, self.genes)))

    def _write(self, size: int, chunk: int) -> None:
        for name, parts in self._waiting.items():
            values = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
            append_entries(self.path / name, values[:size], start=self._n_written, chunk=chunk)
            self._waiting[name] = [values[size:]]
        self._n_written += size
        self._n_waiting -= size


def write_counts(path: Path, counts: sp.csr_matrix[Any], row_names: Sequence[str], genes: Sequence[str]) -> None:
    """Write a sparse table of raw counts, (rows, genes)."""
    writer = CountsWriter(path, genes)
    writer.append(counts)
    writer.close(row_names)


def open_counts(path: Path) -> Counts:
    """Return the table of counts at `path`, its entries still on disk."""
    return Counts(path, tuple(read_json(path / "genes.json")), _part(path, "indptr").shape[0] - 1)


def _part(path: Path, name: str) -> zarr.Array[Any]:
    return open_array(path / name)
