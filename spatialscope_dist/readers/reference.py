"""The single-cell reference: an h5ad with raw counts and a column of cell types."""

from __future__ import annotations

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.readers.h5ad import (
    columns_of,
    element,
    frame_group,
    index_of,
    main_matrix,
    missing_text,
    namings_of,
    other_matrices,
)
from spatialscope_dist.readers.matrix import reading
from spatialscope_dist.readers.table import ReferenceTable
from spatialscope_dist.study import ReferenceSpec


def read_reference(reference: ReferenceSpec) -> ReferenceTable:
    """Return the reference, its counts still in the file.

    Raises
    ------
    BadInput
        When the file cannot be read or has no such column of cell types.
    """
    where = f"reference: {reference.path.name}"
    with reading(reference.path) as handle:
        matrix = main_matrix(reference.path, handle, where)
        obs = frame_group(handle, "obs", where)
        if reference.cell_type not in columns_of(obs):
            found = f"no obs column {reference.cell_type!r}; the columns are {', '.join(columns_of(obs)) or 'none'}"
            remedy = "Set cell_type in [reference] to the column that holds them."
            raise BadInput(Problem(where, found, "a column of cell types", remedy))
        return ReferenceTable(
            where=where,
            matrix=matrix,
            row_names=index_of(obs),
            namings=namings_of(handle, where),
            other_matrices=other_matrices(handle),
            labels=missing_text(element(obs[reference.cell_type])),
        )
