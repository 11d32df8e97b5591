"""What every reader of counts returns: names and places in memory, the matrix still in its file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.readers.matrix import MatrixFile

INDEX = "index"
LARGEST_COUNT = 2**31 - 1


@dataclass(frozen=True)
class Table:
    """A table of raw counts, rows are spots or cells; its entries are read by blocks.

    Attributes
    ----------
    where : how messages name it
    matrix : (rows, genes), still in the file
    row_names : (rows,)
    namings : gene names by naming, (genes,) each; the file's own ('index') first
    other_matrices : places in the file that hold raw counts when the main matrix does not
    """

    where: str
    matrix: MatrixFile
    row_names: tuple[str, ...]
    namings: dict[str, tuple[str, ...]]
    other_matrices: tuple[str, ...] = ()

    @property
    def genes(self) -> tuple[str, ...]:
        """Gene names as the file has them, (genes,)."""
        return self.namings[INDEX]

    def raw_blocks(self) -> Iterator[sp.csr_matrix[Any]]:
        """Yield consecutive blocks of rows, (rows, genes), raw counts int32.

        Raises
        ------
        BadInput
            When a value is no raw count.
        """
        for _, block in self.matrix.blocks():
            values = block.data
            whole = np.rint(values)
            bad = ~((values == whole) & (values >= 0) & (values <= LARGEST_COUNT))
            if bad.any():
                example = values[bad][0]
                raise BadInput(Problem(self.where, f"{example:g} among the counts", "raw counts", "Give raw counts."))
            yield sp.csr_matrix((whole.astype(np.int32), block.indices, block.indptr), shape=block.shape)


@dataclass(frozen=True)
class SpotTable(Table):
    """The spots (beads, locations) of one section.

    Attributes
    ----------
    positions_px : (spots, 2), (y, x) in pixels of `image`, or in the units of the file without one
    pixel_size_um : µm per unit of `positions_px`; None when neither study nor folder gives it
    image : the image that goes with the positions, None without one
    image_is_given : the study names the image; otherwise the folder happens to hold it
    given_to_px : `positions_px` per unit of coordinates in the user's files
    n_cells : (spots,), cells of each spot where the study names such a column; NaN where empty
    notes : what a person should know about how the table was read
    """

    positions_px: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    pixel_size_um: float | None = None
    image: Path | None = None
    image_is_given: bool = True
    given_to_px: float = 1.0
    n_cells: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReferenceTable(Table):
    """The annotated single-cell reference.

    Attributes
    ----------
    labels : (cells,), cell type of each cell, None where the file has none
    """

    labels: tuple[str | None, ...] = ()

    @property
    def types(self) -> list[str]:
        """Names of the cell types, sorted."""
        return sorted({label for label in self.labels if label is not None})


def make_unique(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names with '-1', '-2', … behind repeated ones, as anndata does.

    Examples
    --------
    >>> make_unique(("A", "B", "A"))
    ('A', 'B', 'A-1')
    """
    taken = set(names)
    seen: set[str] = set()
    counts: dict[str, int] = {}
    unique = []
    for name in names:
        chosen = name
        while chosen in seen:
            counts[name] = counts.get(name, 0) + 1
            candidate = f"{name}-{counts[name]}"
            chosen = candidate if candidate not in taken else chosen
        seen.add(chosen)
        taken.add(chosen)
        unique.append(chosen)
    return tuple(unique)
