"""Rows of counts in one flat local file, read in any order: minibatches of a reference larger than memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

_ENTRY_BYTES = 8  # gene and count, int32 each


class PackedRows:
    """Raw counts, (rows, genes), of which only what is asked for is read.

    A row is one run of bytes, its gene numbers and then its counts, so taking it costs one read. Reads go through the
    file's descriptor, not a memory map: pages of the file never count as this process's memory.
    """

    def __init__(self, file: BinaryIO, starts: NDArray[np.int64], n_genes: int) -> None:
        self._file, self._starts, self._n_genes = file, starts, n_genes

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, genes)."""
        return len(self._starts) - 1, self._n_genes

    def __getitem__(self, rows: Any) -> sp.csr_matrix:
        """Return rows, (rows, genes), raw counts int32."""
        rows = np.asarray(rows)
        sizes = (self._starts[rows + 1] - self._starts[rows]).tolist()
        at = (self._starts[rows] * _ENTRY_BYTES).tolist()
        descriptor = self._file.fileno()
        read = [os.pread(descriptor, size * _ENTRY_BYTES, start) for size, start in zip(sizes, at, strict=True)]
        entries = [np.frombuffer(part, np.int32).reshape(2, -1) for part in read]
        genes, counts = np.concatenate(entries, axis=1) if entries else np.zeros((2, 0), np.int32)
        return sp.csr_matrix((counts, genes, np.r_[0, np.cumsum(sizes)]), shape=(len(rows), self._n_genes))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def pack_rows(blocks: Iterable[sp.csr_matrix], path: Path, *, n_genes: int) -> PackedRows:
    """Return the rows of consecutive blocks, (rows, genes), written to a new file at `path`."""
    starts = [np.zeros(1, np.int64)]
    with path.open("wb") as file:
        for block in blocks:
            canonical = sp.csr_matrix(block, copy=True)
            canonical.sum_duplicates()
            pairs = np.stack([canonical.indices, canonical.data]).astype(np.int32)
            for low, high in zip(canonical.indptr[:-1], canonical.indptr[1:], strict=True):
                file.write(pairs[:, low:high].tobytes())
            starts.append(canonical.indptr[1:].astype(np.int64) + starts[-1][-1])
    return PackedRows(path.open("rb"), np.concatenate(starts), n_genes)
