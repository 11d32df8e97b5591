"""A matrix in an HDF5 file, read by blocks of rows whatever its layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.location import local_copy, storage_errors

_ENTRIES = 1 << 21  # of one block of rows
_MAX_ROWS = 1 << 14
_BYTES_PER_ENTRY = 48  # values, indices and the copies made while a block is turned into raw counts


@dataclass(frozen=True)
class MatrixFile:
    """A matrix, (rows, genes), inside an HDF5 file; nothing is read until it is asked for.

    `columns` holds the positions of the kept genes in the file; None keeps all.
    """

    path: Path
    group: str
    layout: Literal["csr", "csc", "dense"]
    stored_shape: tuple[int, int]
    n_stored: int
    columns: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, kept genes)."""
        return self.stored_shape[0], self.stored_shape[1] if self.columns is None else len(self.columns)

    def values(self) -> Iterator[NDArray[Any]]:
        """Yield every stored value, in pieces of one dimension."""
        with reading(self.path) as handle:
            if self.layout == "dense":
                for low, high in self._dense_ranges():
                    yield handle[self.group][low:high].ravel()
                return
            data = handle[self.group]["data"]
            for start in range(0, data.shape[0], _ENTRIES):
                yield data[start : start + _ENTRIES]

    def blocks(self) -> Iterator[tuple[int, sp.csr_matrix[Any]]]:
        """Yield (first row, values) of consecutive blocks of rows, (rows, kept genes), as the file has them.

        Raises
        ------
        BadInput
            When the file is damaged.
        """
        source = {"csr": self._csr, "csc": self._csc, "dense": self._dense}[self.layout]
        with reading(self.path) as handle:
            for low, block in source(handle[self.group]):
                yield low, block if self.columns is None else block[:, list(self.columns)]

    def _csr(self, group: Any) -> Iterator[tuple[int, sp.csr_matrix[Any]]]:
        indptr = group["indptr"][:].astype(np.int64)
        for low, high in row_ranges(np.diff(indptr), _ENTRIES):
            start, stop = indptr[low], indptr[high]
            parts = (group["data"][start:stop], group["indices"][start:stop], indptr[low : high + 1] - start)
            yield low, sp.csr_matrix(parts, shape=(high - low, self.stored_shape[1]))

    def _csc(self, group: Any) -> Iterator[tuple[int, sp.csr_matrix[Any]]]:
        indptr = group["indptr"][:].astype(np.int64)
        per_row = np.zeros(self.stored_shape[0], dtype=np.int64)
        pieces = range(0, self.n_stored, _ENTRIES)
        for start in pieces:
            per_row += np.bincount(group["indices"][start : start + _ENTRIES], minlength=len(per_row))
        for low, high in row_ranges(per_row, _ENTRIES):
            found: list[NDArray[Any]] = []
            for start in pieces:
                rows = group["indices"][start : start + _ENTRIES]
                place = np.flatnonzero((rows >= low) & (rows < high))
                genes = np.searchsorted(indptr, place + start, side="right") - 1
                values = group["data"][start : start + _ENTRIES][place]
                found.append(np.stack([values.astype(np.float64), rows[place] - low, genes]))
            entries = np.concatenate(found, axis=1) if found else np.zeros((3, 0))
            parts = (entries[0], (entries[1].astype(np.int64), entries[2].astype(np.int64)))
            yield low, sp.coo_matrix(parts, shape=(high - low, self.stored_shape[1])).tocsr()

    def _dense(self, dataset: Any) -> Iterator[tuple[int, sp.csr_matrix[Any]]]:
        for low, high in self._dense_ranges():
            yield low, sp.csr_matrix(dataset[low:high])

    def _dense_ranges(self) -> list[tuple[int, int]]:
        return row_ranges(np.full(self.stored_shape[0], self.stored_shape[1]), _ENTRIES)


def block_bytes(n_rows: int, n_genes: int) -> int:
    """Return the projected memory of reading a matrix block by block, bytes."""
    return 24 * (n_rows + n_genes) + _BYTES_PER_ENTRY * max(_ENTRIES, n_genes)


def row_ranges(entries: NDArray[np.int64], limit: int) -> list[tuple[int, int]]:
    """Return consecutive row ranges of at most `limit` entries each, or of one row.

    Examples
    --------
    >>> row_ranges(np.array([2, 2, 9, 1]), 4)
    [(0, 2), (2, 3), (3, 4)]
    """
    ends = np.cumsum(entries)
    ranges = []
    low = 0
    while low < len(entries):
        before = int(ends[low - 1]) if low else 0
        high = int(np.searchsorted(ends, before + limit, side="right"))
        high = min(max(high, low + 1), low + _MAX_ROWS)
        ranges.append((low, high))
        low = high
    return ranges


def matrix_of(path: Path, handle: h5py.File, group: str) -> MatrixFile | None:
    """Return the matrix an AnnData file keeps at `group`, None when there is none."""
    node = handle.get(group)
    if isinstance(node, h5py.Dataset) and node.ndim == 2:
        shape = (int(node.shape[0]), int(node.shape[1]))
        return MatrixFile(path, group, "dense", shape, shape[0] * shape[1])
    if not isinstance(node, h5py.Group) or "shape" not in node.attrs:
        return None
    kind = str(node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", "csr")))
    rows, genes = (int(size) for size in node.attrs["shape"])
    layout: Literal["csr", "csc"] = "csc" if kind.startswith("csc") else "csr"
    return MatrixFile(path, group, layout, (rows, genes), int(node["data"].shape[0]))


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; what goes wrong while it is read becomes a problem a user can act on.

    Raises
    ------
    BadInput
        When the file is missing, cut short, damaged, or lacks a part.
    """
    if not path.is_file():
        raise BadInput(Problem(str(path), "no such file", "an HDF5 file", "Correct the path in the study file."))
    try:
        with h5py.File(local_copy(path), "r") as handle:
            yield handle
    except storage_errors(RuntimeError) as error:
        raise BadInput(
            Problem(
                str(path),
                f"a file that cannot be read: it is cut short or damaged ({str(error).splitlines()[0]})",
                "a whole HDF5 file",
                "Copy or download it again.",
            )
        ) from error
    except KeyError as error:
        reason = str(error.args[0]).splitlines()[0] if error.args else "a part of it"
        raise BadInput(
            Problem(
                str(path), f"a file that lacks a part ({reason})", "a complete file", "Write it again with anndata."
            )
        ) from error
